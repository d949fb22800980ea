"""Duplicates: exact copies and near copies, among the generated records and of the real training data.

genloss run curation=dedup        # exact copies, after white space and case are ignored
genloss run curation=near_dedup   # Jaccard similarity of word 5-grams above 0.7 (MinHash; Broder 1997)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Texts, able
from genloss.core.errors import require
from genloss.core.records import normal
from genloss.core.words import words
from genloss.curate import Context, Decision, RecordCurator, decision

RECALL = 0.99  # of the pairs whose similarity is the threshold, the least share that is compared


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


def jaccard(a: set[bytes], b: set[bytes]) -> float:
    return len(a & b) / len(a | b)


@dataclass
class Near(RecordCurator):
    """Drop every record whose Jaccard similarity to an earlier kept one, or (`real`) to a real training record, is at
    least `threshold`. Shingles are word `ngram`s. MinHash signatures of `permutations` values propose pairs (datasketch
    LSH), at least RECALL of those at the threshold and more of those above; the exact similarity decides."""

    threshold: float = 0.7
    ngram: int = 5
    permutations: int = 128
    real: bool = False
    needs = (Texts,)

    def __post_init__(self) -> None:
        require(0.002 <= self.threshold <= 1, "threshold", self.threshold, "in [0.002, 1]")
        require(self.ngram >= 1, "ngram", self.ngram, "at least 1")
        enough = math.ceil(math.log(1 - RECALL) / math.log1p(-self.threshold)) if self.threshold < 1 else 1
        why = f"at least {enough}, which find {RECALL:.0%} of the pairs at threshold={self.threshold}"
        require(self.permutations >= enough, "permutations", self.permutations, why)

    def _shingles(self, text: str) -> list[bytes]:
        said = words(normal(text))
        return [" ".join(said[i : i + self.ngram]).encode() for i in range(max(1, len(said) - self.ngram + 1))]

    def _bands(self) -> tuple[int, int]:
        """(bands, rows of each): as many rows as propose RECALL of the pairs at the threshold, which are the fewest
        others. A band of r rows agrees with probability similarity^r."""
        for rows in range(self.permutations // 2, 1, -1):
            bands = self.permutations // rows
            if 1 - (1 - self.threshold**rows) ** bands >= RECALL:
                return bands, rows
        return self.permutations, 1

    def decide(self, table: pa.Table, context: Context) -> Decision:
        from datasketch import MinHash, MinHashLSH

        index = MinHashLSH(num_perm=self.permutations, params=self._bands())
        texts = able(context.domain, Texts).texts(table)
        real = list(_real(context)) if self.real else []
        sources = {"real": real, "generated": texts}

        def signatures(texts: list[str]) -> Iterator[MinHash]:
            return MinHash.generator([self._shingles(t) for t in texts], num_perm=self.permutations, seed=1)

        for i, signature in enumerate(signatures(real)):
            index.insert(("real", i), signature)
        reason = np.full(len(table), "", dtype=object)
        for i, signature in enumerate(signatures(texts)):
            mine = set(self._shingles(texts[i]))
            found = [
                (kind, j)
                for kind, j in index.query(signature)
                if jaccard(mine, set(self._shingles(sources[kind][j]))) >= self.threshold
            ]
            if found:
                reason[i] = "near copy of real" if any(kind == "real" for kind, _ in found) else "near copy"
            else:
                index.insert(("generated", i), signature)
        return decision(reason == "", reason=reason)
