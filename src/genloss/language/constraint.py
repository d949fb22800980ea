"""Constrained decoding: a text that matches a regular expression, is one of several, JSON of a schema, or of a grammar.

    genloss run '+recipe.constraint.regex="[A-Z][a-z ]{3,40}\\."'
    genloss run domain=reasoning recipe=solve '+recipe.constraint.choice=["yes", "no"]'
    genloss run "+recipe.constraint.lark='start: WORD+
    WORD: /[a-z]+ /'"
    genloss run '+recipe.constraint.json={type: object, properties: {age: {type: integer}}, required: [age]}'

At each step the tokens that no text of the constraint can go on with are masked (llguidance; Willard & Louf 2023, arXiv
2307.09702), before every other option acts: a record is drawn from the model's own tokens, each renormalised over those
that are left, which is not the model's distribution over texts that match. A record that ends matches; one that reached
the limit is the beginning of one that does, with `finish` length."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from genloss.core.errors import UserError, first_line, one_of, require

KINDS = ("regex", "choice", "json", "lark")
COMPACT: Any = {"whitespace_flexible": False}  # else a model can write spaces between two values for ever


def check_constraint(constraint: Mapping[str, Any]) -> None:
    """UserError with the key `constraint` if it is none."""
    if not constraint:
        return
    require(len(constraint) == 1, "constraint", dict(constraint), f"one of {', '.join(KINDS)}")
    ((kind, value),) = constraint.items()
    one_of("constraint", kind, KINDS)
    key = f"constraint.{kind}"
    if kind == "choice":
        texts = isinstance(value, list) and value and all(isinstance(text, str) and text for text in value)
        require(bool(texts), key, value, "a list of texts")
        require(len(set(value)) == len(value), key, value, "texts that differ")
    else:
        of = str if kind in ("regex", "lark") else dict
        require(isinstance(value, of) and bool(value), key, value, "a text" if of is str else "a schema, with keys")
    from llguidance import LLMatcher, LLTokenizer

    if said := LLMatcher.validate_grammar(grammar(constraint)):
        raise UserError(key, value, f"is not understood by llguidance ({first_line(ValueError(said))})")
    matcher = LLMatcher(LLTokenizer("byte"), grammar(constraint), log_level=0)
    matcher.compute_bitmask()
    if matcher.is_error():
        raise UserError(key, value, "is matched by no text; write one that is")


def grammar(constraint: Mapping[str, Any]) -> str:
    """As llguidance reads it."""
    from llguidance import LLMatcher

    ((kind, value),) = constraint.items()
    if kind == "json":
        return LLMatcher.grammar_from_json_schema(json.dumps(value), overrides=COMPACT)
    if kind == "lark":
        return LLMatcher.grammar_from_lark(value)
    if kind == "choice":
        value = "|".join(re.escape(text) for text in value)
    return LLMatcher.grammar_from_regex(value)


class Masks:
    """Which tokens may come next, for each record of a chunk."""

    def __init__(self, constraint: Mapping[str, Any], codec: Any, rows: int):
        from llguidance import LLExecutor, LLMatcher

        first = LLMatcher(tokenizer_of(codec), grammar(constraint), log_level=0)
        self.matchers = [first, *(first.deep_copy() for _ in range(rows - 1))]
        self.executor, self.size = LLExecutor(1), codec.size

    def of(self, rows: Sequence[int]) -> Any:
        """bool [rows, vocabulary]: the tokens that may follow in those records, the end among them."""
        import numpy as np
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

        bits = allocate_token_bitmask(len(rows), self.size)
        fill_next_token_bitmask_par(self.executor, [(self.matchers[row], i) for i, row in enumerate(rows)], bits)
        for matcher in (self.matchers[row] for row in rows):
            if matcher.is_error():  # it leaves nothing but the end, of a text that need not match
                why = f"is too much for llguidance ({first_line(ValueError(matcher.get_error()))}); write a simpler one"
                raise UserError("recipe.constraint", None, why)
        return np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, : self.size].astype(bool)

    def take(self, row: int, token: int) -> None:
        """A record goes on with this token."""
        self.matchers[row].consume_token(token)


def tokenizer_of(codec: Any) -> Any:
    """A codec's tokenizer as llguidance has it."""
    return _read((codec.folder / "tokenizer.json").read_text(encoding="utf-8"), codec.size, codec.end)


@lru_cache(maxsize=2)  # takes a second
def _read(text: str, size: int, end: int) -> Any:
    from llguidance import LLTokenizer

    try:
        return LLTokenizer(text, n_vocab=size, eos_token=end)
    except ValueError as error:
        why = f"needs a tokenizer that llguidance can read, and this one it cannot ({first_line(error)})"
        raise UserError("recipe.constraint", None, why) from None
