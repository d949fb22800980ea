"""Logic expressions that are true: texts of which a program knows whether they are well-formed and right.

    genloss run experiment=self_consuming hydra.mode=RUN rounds=1 seed=0

Briesch et al. train a model from scratch on logic expressions of seven tokens, and let it train on its own. Ours are
strings over `T F & | ~ ( )`, fully bracketed, all different, and all of them true: half of those that are drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from genloss.core.errors import require
from genloss.core.seeds import seed_of
from genloss.evaluate.validity import Checker
from genloss.language.corpus import Corpus

LONGEST = 60  # characters
SHORTEST = 8
DEEPEST = 5  # operators inside one another


@dataclass
class Expressions(Corpus):
    """n different true expressions, a document each."""

    n: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        require(4 <= self.n <= 100_000, "n", self.n, "in 4 ... 100000 different expressions")

    def documents(self) -> Iterator[tuple[str, str]]:
        rng, found = random.Random(seed_of(self.seed, "expressions")), dict[str, None]()
        while len(found) < self.n:
            text = drawn(rng, DEEPEST)
            if SHORTEST <= len(text) <= LONGEST and value(text):
                found[text] = None
        for i, text in enumerate(found):
            yield f"{i:06d}", text


def drawn(rng: random.Random, deep: int) -> str:
    """A random expression of at most so many operators inside one another."""
    kind = rng.random() if deep else 0.0
    if kind < 0.2:
        return rng.choice("TF")
    if kind < 0.4:
        return "~" + drawn(rng, deep - 1)
    return f"({drawn(rng, deep - 1)}{rng.choice('&|')}{drawn(rng, deep - 1)})"


def value(text: str) -> bool | None:
    """Of an expression; None if it is none."""
    at = 0

    def read() -> bool | None:
        nonlocal at
        sign = text[at : at + 1]
        at += 1
        if sign in ("T", "F"):
            return sign == "T"
        if sign == "~":
            inner = read()
            return None if inner is None else not inner
        if sign != "(":
            return None
        left, operator = read(), text[at : at + 1]
        at += 1
        right, end = read(), text[at : at + 1]
        at += 1
        if left is None or right is None or operator not in ("&", "|") or end != ")":
            return None
        return (left and right) if operator == "&" else (left or right)

    try:
        found = read()
    except RecursionError:
        return None
    return found if at == len(text) else None


@dataclass
class Holds(Checker):
    """Expressions that are well-formed and true."""

    def valid(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([bool(value(text.strip())) for text in texts], dtype=bool)
