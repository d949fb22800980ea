"""Memorisation: what of a sample was said before, by real records and by earlier generations, kept apart.

genloss run metrics=[heldout,copies]

A copy of real text is a privacy and a copyright question; a copy of an earlier generation is how a loop closes on
itself. Words are those of genloss.evaluate.diversity; case and punctuation do not hide a copy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.contracts import HISTORY
from genloss.core.errors import require
from genloss.core.seeds import generator
from genloss.core.words import grams
from genloss.evaluate import Evidence, SampleMetric
from genloss.evaluate.diversity import words

PART = 20_000  # texts of a reference that are compared together


def shingles(text: Sequence[str], size: int) -> set[tuple[str, ...]]:
    """The n-grams of a text; the text itself where it is shorter."""
    return set(grams(text, size)) or {tuple(text)}


def nearest(texts: Sequence[Sequence[str]], others: Iterable[Sequence[str]], size: int) -> np.ndarray:
    """The highest Jaccard similarity [n] of each text's shingles with those of another text, exactly: texts meet in an
    index of the shingles, which no two unlike texts share."""
    own = [shingles(text, size) for text in texts]
    has: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, mine in enumerate(own):
        for gram in mine:
            has[gram].append(i)
    best = np.zeros(len(texts))
    for other in others:
        said = shingles(other, size)
        met = Counter(i for gram in said if gram in has for i in has[gram])
        for i, both in met.items():
            best[i] = max(best[i], both / (len(own[i]) + len(said) - both))
    return best


class Runs:
    """How many words in a row some texts share with others: windows of words are compared by 64-bit hashes."""

    def __init__(self, texts: Sequence[Sequence[str]]):
        self._ids: dict[str, int] = {}
        self._codes = np.zeros(0, dtype=np.uint64)
        self.lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self._text = self._coded(texts)
        self._of = np.repeat(np.arange(len(texts)), self.lengths)  # the text of each word
        self._first = np.concatenate([[0], np.cumsum(self.lengths)])[:-1]

    def _coded(self, texts: Iterable[Sequence[str]]) -> np.ndarray:
        """uint64 [words]: each word's code, drawn at random."""
        ids = np.array([self._ids.setdefault(word, len(self._ids)) for text in texts for word in text], dtype=np.int64)
        if len(self._codes) < len(self._ids):
            rng = generator(0, "codes")  # the same stream: what was drawn before comes first
            self._codes = rng.integers(0, 1 << 63, 2 * len(self._ids) + 1024, dtype=np.uint64) * np.uint64(
                2
            ) + np.uint64(1)
        return self._codes[ids]

    @staticmethod
    def _prefixes(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint64 [len + 1] and [len]: Σ code b^i of all before a word, and b^-i, modulo 2^64, where odd numbers have an
        inverse. (Karp & Rabin 1987, a hash of every window from two sums.)"""
        base = 0x9E3779B97F4A7C15
        ones = np.ones(len(codes), dtype=np.uint64)
        powers, inverse = (
            (ones * np.uint64(b)).cumprod() * np.uint64(pow(b, -1, 1 << 64)) for b in (base, pow(base, -1, 1 << 64))
        )
        sums = np.concatenate([np.zeros(1, np.uint64), (codes * powers).cumsum(dtype=np.uint64)])
        return sums, inverse

    @staticmethod
    def _windows(prefixes: tuple[np.ndarray, np.ndarray], size: int) -> np.ndarray:
        """uint64 [len - size + 1]: the hash of each window."""
        sums, inverse = prefixes
        count = max(0, len(sums) - size)
        return (sums[size : size + count] - sums[:count]) * inverse[:count]

    def longest(self, others: Sequence[Sequence[str]]) -> np.ndarray:
        """int [n]: the most words in a row that a text shares with one of the others. A run of k words has one of k - 1
        in it, so that all texts are halved at once."""
        lengths = np.array([len(other) for other in others], dtype=np.int64)
        codes = self._coded(others)
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(codes))  # words to the end of their text
        own_left = np.repeat(self._first + self.lengths, self.lengths) - np.arange(len(self._text))
        other, own = self._prefixes(codes), self._prefixes(self._text)
        low = np.zeros(len(self.lengths), dtype=np.int64)
        high = np.minimum(self.lengths, lengths.max(initial=0))
        while (low < high).any():
            middle = (low + high + 1) // 2
            for size in np.unique(middle[low < high]).tolist():
                asked = (middle == size) & (low < high)
                there = self._windows(other, size)
                known = np.unique(there[left[: len(there)] >= size])
                mine = self._windows(own, size)
                inside = (own_left[: len(mine)] >= size) & asked[self._of[: len(mine)]]
                hit = np.zeros(len(asked), dtype=bool)
                hit[self._of[: len(mine)][inside][records.among(mine[inside], known)]] = True
                low[asked & hit] = size
                high[asked & ~hit] = size - 1
        return low


@dataclass
class Copies(SampleMetric):
    """copies_real, copies_earlier: share of the records that are, case and white space apart, a real record of round
    0's training set, or one that curation kept in an earlier round. near_copies_*: share with a Jaccard similarity of
    word `ngram`s of at least `threshold` to one (copies are among them). run_*: mean over records of the longest run of
    words that is in one, as a share of the record; longest_run_*: its highest number of words. The floor of the
    `_earlier` ones is how much held-out real text is like what models made."""

    threshold: float = 0.7
    ngram: int = 5

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, "threshold", self.threshold, "in (0, 1]")
        require(self.ngram >= 1, "ngram", self.ngram, "at least 1")

    def reads(self) -> tuple[str, ...]:
        return (HISTORY,)

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        texts = evidence.texts(table)
        found = self._against(texts, _parts(evidence.real_texts()), "real")
        earlier = evidence.inputs.all(HISTORY) if evidence.round > 1 else ()
        if earlier:
            said = (
                text
                for path in earlier
                for part in records.batches(path, evidence.domain.payload)
                for text in evidence.texts(part)
            )
            found |= self._against(texts, _parts(said), "earlier")
        return found

    def _against(self, texts: list[str], others: Iterator[list[str]], name: str) -> dict[str, float]:
        lists = [words(text) for text in texts]
        mine = records.digests(map(records.normal, texts))
        same = np.zeros(len(texts), dtype=bool)
        near, run = np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
        runs = Runs(lists)
        for part in others:  # a reference may be larger than memory
            said = [words(text) for text in part]
            same |= records.among(mine, np.unique(records.digests(map(records.normal, part))))
            near = np.maximum(near, nearest(lists, said, self.ngram))
            run = np.maximum(run, runs.longest(said))
        return {
            f"copies_{name}": float(same.mean()),
            f"near_copies_{name}": float((same | (near >= self.threshold)).mean()),
            f"run_{name}": float((run / np.maximum(1, runs.lengths)).mean()),
            f"longest_run_{name}": float(run.max()),
        }


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for text in texts:
        part.append(text)
        if len(part) == PART:
            yield part
            part = []
    if part:
        yield part
