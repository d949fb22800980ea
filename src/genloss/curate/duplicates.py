"""Duplicates: exact copies and near copies, among the generated records and of the real training data.

genloss run curation=dedup        # exact copies, after white space and case are ignored
genloss run curation=near_dedup   # Jaccard similarity of word 5-grams above 0.7 (MinHash; Broder 1997)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Texts, able
from genloss.core.errors import require
from genloss.core.records import normal
from genloss.curate import Context, Decision, RecordCurator, decision


def _real(context: Context) -> Iterator[str]:
    for batch in records.read(context.data / "train.parquet", columns=list(context.domain.payload)).to_batches():
        yield from able(context.domain, Texts).texts(pa.table(batch))


@dataclass
class Deduplicate(RecordCurator):
    """Drop every record whose normalised text came before, in this round or (`real`) in the real training data."""

    real: bool = True
    needs = (Texts,)

    def decide(self, table: pa.Table, context: Context) -> Decision:
        copies = {normal(t) for t in _real(context)} if self.real else set()
        seen: set[str] = set()
        reason = np.full(len(table), "", dtype=object)
        for i, text in enumerate(map(normal, able(context.domain, Texts).texts(table))):
            if text in copies:
                reason[i] = "copy of real"
            elif text in seen:
                reason[i] = "copy"
            seen.add(text)
        return decision(reason == "", reason=reason)


@dataclass
class Near(RecordCurator):
    """Drop every record whose estimated Jaccard similarity to an earlier kept one, or (`real`) to a real training
    record, is at least `threshold`. Shingles are word `ngram`s; signatures have `permutations` values (datasketch
    MinHash + LSH)."""

    threshold: float = 0.7
    ngram: int = 5
    permutations: int = 128
    real: bool = False
    needs = (Texts,)

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, "threshold", self.threshold, "in (0, 1]")
        require(self.ngram >= 1, "ngram", self.ngram, "at least 1")
        require(self.permutations >= 16, "permutations", self.permutations, "at least 16")

    def _shingles(self, text: str) -> list[bytes]:
        words = normal(text).split()
        return [" ".join(words[i : i + self.ngram]).encode() for i in range(max(1, len(words) - self.ngram + 1))]

    def decide(self, table: pa.Table, context: Context) -> Decision:
        from datasketch import MinHash, MinHashLSH

        index = MinHashLSH(threshold=self.threshold, num_perm=self.permutations)

        def signatures(texts: list[str]) -> Iterator[MinHash]:
            return MinHash.generator([self._shingles(t) for t in texts], num_perm=self.permutations, seed=1)

        if self.real:
            for i, signature in enumerate(signatures(list(_real(context)))):
                index.insert(("real", i), signature)
        reason = np.full(len(table), "", dtype=object)
        for i, signature in enumerate(signatures(able(context.domain, Texts).texts(table))):
            found = index.query(signature)
            if found:
                reason[i] = "near copy of real" if any(kind == "real" for kind, _ in found) else "near copy"
            else:
                index.insert(("generated", i), signature)
        return decision(reason == "", reason=reason)
