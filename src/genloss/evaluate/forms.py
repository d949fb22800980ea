"""What goes wrong in a text that no parser sees: loops, continuations that leave their beginning, names and numbers
that nobody has said.

    genloss run metrics=[heldout,loops,agreement,facts]

All three look at the text alone. None says whether a statement is true: a domain with a verifier does
(docs/metrics.md)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import regex

from genloss.core.errors import require
from genloss.core.seeds import generator
from genloss.evaluate import Evidence, SampleMetric
from genloss.evaluate.diversity import words
from genloss.evaluate.embedded import Embedded

NUMBER = regex.compile(r"(?<![\p{L}\p{N}])\p{N}[\p{N}.,]*\p{N}|(?<![\p{L}\p{N}])\p{N}(?![\p{L}\p{N}])")
SENTENCE = regex.compile(r"(?<=[.!?:;\"”'’)\n])\s+|^\s+")
CAPITAL = regex.compile(r"\p{Lu}[\p{L}\p{M}'’-]*")


def looped(said: list[str], period: int, times: int) -> bool:
    """Whether the words end in `times` repetitions of the same 1..period words."""
    return any(
        len(said) >= times * k and all(said[-k:] == said[-(t + 1) * k : -t * k] for t in range(1, times))
        for k in range(1, period + 1)
    )


@dataclass
class Loops(SampleMetric):
    """loops: share of the records that end in a loop: the same 1..`period` words, `times` times in a row."""

    period: int = 16
    times: int = 3
    least = 16

    def __post_init__(self) -> None:
        require(self.period >= 1, "period", self.period, "at least 1")
        require(self.times >= 2, "times", self.times, "at least 2")

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        return {"loops": float(np.mean([looped(words(t), self.period, self.times) for t in evidence.texts(table)]))}


@dataclass
class Agreement(Embedded):
    """agreement: mean cosine, in an embedding, between the first `share` of a record's words and the others, as between
    a prompt and its continuation; agreement_shuffled: the same with the ending of another record, what any two texts of
    the sample have. Their difference is what a text has of its own. Records of fewer than 4 words are left out."""

    share: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "share", self.share, "in (0, 1)")
        super().__post_init__()

    def numbers(self, vectors: np.ndarray, evidence: Evidence) -> dict[str, float]:
        half = len(vectors) // 2
        first, rest = vectors[:half], vectors[half:]
        order = generator(evidence.seed, "agreement").permutation(half)
        other = np.empty_like(order)
        other[order] = np.roll(order, 1)  # one cycle: nobody gets its own
        return {
            "agreement": float((first * rest).sum(axis=1).mean()),
            "agreement_shuffled": float((first * rest[other]).sum(axis=1).mean()),
        }

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        said = [text.split() for text in evidence.texts(table)]
        long = [text for text in said if len(text) >= 4]
        if len(long) < self.least:
            return {}
        at = [max(2, min(len(text) - 2, round(self.share * len(text)))) for text in long]
        halves = [" ".join(text[:k]) for text, k in zip(long, at, strict=True)]
        halves += [" ".join(text[k:]) for text, k in zip(long, at, strict=True)]
        return self.numbers(self.embed(halves, evidence), evidence)


def numbers_in(text: str) -> set[str]:
    """The numbers of a text, as they are written."""
    return set(NUMBER.findall(text))


def names_in(text: str) -> set[str]:
    """Runs of capitalised words inside of sentences, which in English are mostly names; the first word of a sentence
    says nothing."""
    found = set()
    for sentence in SENTENCE.split(text):
        said = sentence.split()
        capital = [CAPITAL.match(word.lstrip("(\"“'‘")) for word in said]
        run: list[str] = []
        for i in range(1, len(said) + 1):
            match = capital[i] if i < len(said) else None
            if match and match.group() != "I":
                run.append(match.group().removesuffix("'s").removesuffix("’s"))
            if run and not (match and match.group() != "I" and said[i][-1:].isalpha()):
                found.add(" ".join(run))
                run = []
    return found


@dataclass
class Facts(SampleMetric):
    """numbers_known, names_known: share of the numbers, and of the names, of the sample that a real record of round 0's
    training set has; name_pairs_known: share of pairs of a name with another name or a number in one record that stand
    together in a real record. numbers_found, names_found, name_pairs_found: how many there are, each counted once a
    record; a share of fewer than `found` is left out.

    What is not known may be new and right, and what is known may be wrong: the floor is how much of real text is known,
    and a fall below it is invention. Names are found by capitals, which is for English and languages like it."""

    panels = ("numbers_known", "names_known")
    found: int = 20

    def __post_init__(self) -> None:
        require(self.found >= 1, "found", self.found, "at least 1")

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        numbers, names, pairs = set[str](), set[str](), set[tuple[str, str]]()
        said = list(map(_facts, evidence.texts(table)))
        wanted = {pair for _, _, each in said for pair in each}
        for real in map(_facts, evidence.real_texts()):
            numbers |= real[0]
            names |= real[1]
            pairs |= real[2] & wanted
        return {
            **self._share("numbers", (n in numbers for each, _, _ in said for n in each)),
            **self._share("names", (n in names for _, each, _ in said for n in each)),
            **self._share("name_pairs", (n in pairs for _, _, each in said for n in each)),
        }

    def _share(self, name: str, known: Iterable[bool]) -> dict[str, float]:
        known = list(known)
        found = {f"{name}_found": float(len(known))}
        return found | ({f"{name}_known": float(np.mean(known))} if len(known) >= self.found else {})


def _facts(text: str) -> tuple[set[str], set[str], set[tuple[str, str]]]:
    """The numbers, the names, and the pairs of a name with a name or a number, of a text."""
    numbers, names = numbers_in(text), names_in(text)
    return numbers, names, set(_pairs(sorted(names), sorted(numbers)))


def _pairs(names: list[str], numbers: list[str]) -> Iterator[tuple[str, str]]:
    yield from itertools.combinations(names, 2)
    yield from itertools.product(names, numbers)
