"""What Self-Instruct throws away by looking at it (Wang et al. 2023, arXiv 2212.10560, section 2.2; Alpaca's list).

    genloss run domain=instruct domain/corpus=seed_tasks recipe=respond curation=[heuristics,novelty]

The recipe `self_instruct` uses the same rules before it asks for instances."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from genloss.core import records
from genloss.core.errors import require
from genloss.curate import Context, Decision, RecordCurator, blank, decision
from genloss.domains.instruct import Instruct
from genloss.domains.instruct.tasks import parts

SHORTEST, LONGEST = 4, 150  # words of an instruction
# what a language model cannot take or make, as the code of Self-Instruct has it
UNFIT: tuple[str, ...] = ("image", "images", "graph", "graphs", "picture", "pictures", "file", "files")
UNFIT = (*UNFIT, "map", "maps", "draw", "plot", "go to")

Pair = tuple[str, str]  # input, output


def fault(instruction: str, unfit: Iterable[str] = UNFIT) -> str:
    """Why an instruction is thrown away, in a word; '' if it is not."""
    words = len(instruction.split())
    if not words:
        return "empty"
    if words < SHORTEST:
        return "too short"
    if words > LONGEST:
        return "too long"
    if any(re.search(rf"\b{re.escape(word)}\b", instruction, re.IGNORECASE) for word in unfit):
        return "unfit"
    if instruction.startswith("Write a program"):
        return "program"
    if instruction[0] in string.punctuation:
        return "punctuation"
    return "" if instruction[0].isascii() else "non-ASCII"


def flaw(pair: Pair) -> str:
    """Why an instance is thrown away; '' if it is not."""
    given, said = (text.strip() for text in pair)
    if not said:
        return "no output"
    if given == said:
        return "output is input"
    return "colon" if given.endswith(":") or said.endswith(":") else ""


def sound(pairs: Sequence[Pair]) -> tuple[list[Pair], str]:
    """(the instances of a task that are left, why there is none). Different outputs to one input throw away the whole
    task; no input is none."""
    distinct = list(dict.fromkeys(pairs))
    given = [pair[0] for pair in distinct if pair[0]]
    if len(set(given)) < len(given):
        return [], "contradiction"
    flaws = [flaw(pair) for pair in distinct]
    left = [pair for pair, why in zip(distinct, flaws, strict=True) if not why]
    return left, "" if left else (flaws or ["no output"])[0]


@dataclass
class Heuristics(RecordCurator):
    """Drop a conversation whose last request or answer has one of the faults above, or whose answer was cut off."""

    unfit: list[str] = field(default_factory=lambda: [*UNFIT])  # words that no instruction may have
    needs = (Instruct,)

    def __post_init__(self) -> None:
        require(all(isinstance(w, str) and w for w in self.unfit), "unfit", self.unfit, "words, none of them empty")

    def decide(self, table: pa.Table, context: Context) -> Decision:
        reason = blank(len(table))
        cut = records.cut_off(table)
        for i, messages in enumerate(table.column("messages").to_pylist()):
            asked, said = (message["content"] for message in messages[-2:])
            instruction, more = parts(asked)
            reason[i] = fault(instruction, self.unfit) or flaw((more, said)) or ("truncated" if cut[i] else "")
        return decision(reason == "", reason=reason)
