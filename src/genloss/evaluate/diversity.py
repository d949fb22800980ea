"""Diversity of a set of texts, at equal sample size for generated and real records.

Words are maximal runs of letters with their marks, digits and apostrophes, lower-cased; in scripts that write no
spaces (core/words.py) each character is one. N-grams do not cross records.
"""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core.errors import require
from genloss.core.seeds import generator
from genloss.core.words import grams
from genloss.core.words import terms as words
from genloss.curate.rules import repeated_share
from genloss.evaluate import Evidence, SampleMetric


def ngrams(lists: Iterable[list[str]], n: int) -> Counter[tuple[str, ...]]:
    return Counter(itertools.chain.from_iterable(grams(ws, n) for ws in lists))


def shared_words(evidence: Evidence, most: int, *others: pa.Table) -> int:
    """Words that the sample, its floor and what both are compared with have, `most` at most: what depends on length
    gets equally many."""
    tables = [evidence.floor, *([evidence.sample] if evidence.sample is not None else []), *others]
    for table in tables:
        most = sum(map(len, first_words(evidence.texts(table), most)))
    return most


def first_words(texts: Iterable[str], count: int) -> list[list[str]]:
    """The first `count` words of some texts, text by text."""
    found = []
    for text in texts:
        said = words(text)[:count]
        found.append(said)
        count -= len(said)
        if count == 0:
            break
    return found


def entropy_bits(counts: Counter) -> float:
    """Plug-in entropy with the Miller-Madow correction (V-1)/2N, in bits; biased low where most n-grams are unique."""
    c = np.array(list(counts.values()), dtype=float)
    if not len(c):
        return 0.0
    p = c / c.sum()
    return float((-(p * np.log(p)).sum() + (len(c) - 1) / (2 * c.sum())) / np.log(2))


@dataclass
class Diversity(SampleMetric):
    """distinct_n (unique / all n-grams; Li et al. 2016) and entropy_n (bits) for n = 1..max_n, over exactly `n_words`
    words (fewer where the sample has fewer): both depend on the length of the text, so generated and real get the
    same."""

    max_n: int = 3
    n_words: int = 20_000

    def __post_init__(self) -> None:
        require(1 <= self.max_n <= 5, "max_n", self.max_n, "from 1 to 5")
        require(self.n_words >= 1, "n_words", self.n_words, "at least 1")

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        lists = first_words(evidence.texts(table), shared_words(evidence, self.n_words))
        found = {}
        for n in range(1, self.max_n + 1):
            counts = ngrams(lists, n)
            found[f"distinct_{n}"] = len(counts) / max(1, sum(counts.values()))
            found[f"entropy_{n}"] = entropy_bits(counts)
        return found


@dataclass
class RareWords(SampleMetric):
    """coverage_d1 .. coverage_d10: share of the real vocabulary, by frequency decile, that occurs in the sample.

    Words of the real training data are ordered by frequency and cut into ten groups of equally many types: d1 the most
    frequent, d10 the rarest. Depends on the sample size: compare with the floor, never with 1.
    """

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        counts = Counter(w for t in evidence.real_texts() for w in words(t))
        ranked = [w for w, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        present = {w for t in evidence.texts(table) for w in words(t)}
        groups = np.array_split(np.array([w in present for w in ranked]), 10)
        return {f"coverage_d{i}": float(g.mean()) if len(g) else 0.0 for i, g in enumerate(groups, 1)}


@dataclass
class Repetition(SampleMetric):
    """Mean share of a record's word n-grams that came before in the same record, and the share of records that copy
    another one of the sample."""

    panels = ()
    ngram: int = 3

    def __post_init__(self) -> None:
        require(self.ngram >= 1, "ngram", self.ngram, "at least 1")

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        texts = evidence.texts(table)
        return {
            "repetition": float(np.mean([repeated_share(t.lower(), self.ngram) for t in texts])),
            "duplicates": 1 - len(set(texts)) / len(texts),
        }


@dataclass
class Overlap(SampleMetric):
    """Memorisation: share of records that are a real training record verbatim, and share of records with at least one
    `ngram`-word sequence from real training data (13 words: the contamination rule of Brown et al. 2020, appendix
    C)."""

    ngram: int = 13

    def __post_init__(self) -> None:
        require(self.ngram >= 1, "ngram", self.ngram, "at least 1")

    def _grams(self, text: str) -> set[int]:
        return set(map(hash, grams(words(text), self.ngram)))

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        texts = evidence.texts(table)
        wanted = [self._grams(t) for t in texts]
        in_sample = set().union(*wanted)
        said = set(texts)
        in_both: set[int] = set()
        exact: set[str] = set()
        for text in evidence.real_texts():  # neither the real texts nor their n-grams are held at once
            in_both |= self._grams(text) & in_sample
            exact |= {text} & said
        return {
            "overlap_exact": float(np.mean([t in exact for t in texts])),
            f"overlap_{self.ngram}gram": float(np.mean([bool(w & in_both) for w in wanted])),
        }


@dataclass
class Compression(SampleMetric):
    """compression_ratio: raw bytes over zlib bytes of the sample, in a random order, cut to `n_bytes`. Rises as text
    repeats."""

    n_bytes: int = 100_000

    def __post_init__(self) -> None:
        require(self.n_bytes >= 1000, "n_bytes", self.n_bytes, "at least 1000")

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        texts = evidence.texts(table)
        order = generator(evidence.seed, "compression").permutation(len(texts))
        tables = [evidence.floor] + ([evidence.sample] if evidence.sample is not None else [])
        size = min(self.n_bytes, *(sum(len(t.encode()) + 1 for t in evidence.texts(x)) for x in tables))
        raw = "\n".join(texts[i] for i in order).encode()[:size]
        return {"compression_ratio": len(raw) / max(1, len(zlib.compress(raw, 9)))}
