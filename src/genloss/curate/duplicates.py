"""Duplicates: exact copies and near copies, among the generated records and of the real training data.

genloss run curation=dedup        # exact copies, after white space and case are ignored
genloss run curation=near_dedup   # Jaccard similarity of word 5-grams above 0.7 (MinHash; Broder 1997)
"""

from __future__ import annotations

import math
import os
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Texts, able
from genloss.core.contracts import Domain
from genloss.core.errors import require
from genloss.core.records import normal
from genloss.core.words import words
from genloss.curate import Context, Decision, RecordCurator, blank, decision, texts

CACHED = 1024  # records whose shingles are at hand: many copies meet the same record
RECALL = 0.99  # of the pairs whose similarity is the threshold, the least share that is compared


def _real(context: Context) -> Iterator[list[str]]:
    for part in records.batches(context.data / "train.parquet", context.domain.payload):
        yield able(context.domain, Texts).texts(part)


@dataclass
class Deduplicate(RecordCurator):
    """Drop every record whose normalised text came before, in this round or (`real`) in the real training data."""

    real: bool = True
    needs = (Texts,)

    def decide(self, table: pa.Table, context: Context) -> Decision:
        mine = records.digests(map(normal, texts(table, context.domain)))
        known, first = np.unique(mine, return_index=True)
        reason = blank(len(table), "copy")
        reason[first] = ""
        if self.real:
            of_real = np.zeros(len(known), dtype=bool)
            for part in _real(context):
                real = records.digests(map(normal, part))
                at = np.minimum(np.searchsorted(known, real), len(known) - 1)
                of_real[at[known[at] == real]] = True
            reason[of_real[np.searchsorted(known, mine)]] = "copy of real"
        return decision(reason == "", reason=reason)


def jaccard(a: set[bytes], b: set[bytes]) -> float:
    return len(a & b) / len(a | b)


@dataclass
class Near(RecordCurator):
    """Drop every record whose Jaccard similarity to an earlier kept one, or (`real`) to a real training record, is at
    least `threshold`. Shingles are word `ngram`s. MinHash signatures of `permutations` values propose pairs
    (`Buckets`), at least RECALL of those at the threshold and more of those above; the exact similarity decides."""

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

    def _signatures(self, texts: list[str]) -> np.ndarray:
        """uint64 [n, permutations]"""
        from datasketch import MinHash

        made = MinHash.generator([self._shingles(t) for t in texts], num_perm=self.permutations, seed=1)
        return np.stack([signature.hashvalues for signature in made]).astype(np.uint64)

    def decide(self, table: pa.Table, context: Context) -> Decision:
        columns = context.domain.payload
        files = [records.load(context.data / "train.parquet", context.scratch, columns)] if self.real else []
        tables = [*files, table]
        real = sum(map(len, files))
        said = TextsOf(tables, context.domain)
        alike = Buckets(said.parts(), len(said), self._signatures, *self._bands(), context.scratch)
        shingles = lru_cache(CACHED)(lambda i: set(self._shingles(said[i])))
        for i in range(real):
            alike.insert(i)
        reason = blank(len(table))
        for i in range(real, len(said)):
            found = [j for j in alike.query(i) if jaccard(shingles(i), shingles(j)) >= self.threshold]
            if found:
                reason[i - real] = "near copy of real" if min(found) < real else "near copy"
            else:
                alike.insert(i)
        return decision(reason == "", reason=reason)


class TextsOf:
    """The texts of some tables, one after the other, each read where it lies."""

    def __init__(self, tables: Sequence[pa.Table], domain: Domain):
        self._tables, self._domain = tables, able(domain, Texts)
        self._edges = np.cumsum([0, *map(len, tables)]).tolist()

    def __len__(self) -> int:
        return self._edges[-1]

    def __getitem__(self, number: int) -> str:
        at = bisect_right(self._edges, number) - 1
        return self._domain.texts(self._tables[at].slice(number - self._edges[at], 1))[0]

    def parts(self) -> Iterator[list[str]]:
        for table in self._tables:
            yield from map(self._domain.texts, records.parts(table))


class Buckets:
    """Locality-sensitive hashing (Indyk & Motwani 1998): two of n records meet if their signatures agree in all rows of
    a band.

    The hashes of the bands are on disk, 8 bytes each. In memory are 24 bytes a record while they are sorted, and 12
    bytes for each band in which a record meets another one."""

    def __init__(
        self,
        parts: Iterable[list[str]],
        n: int,
        signatures: Callable[[list[str]], np.ndarray],
        bands: int,
        rows: int,
        folder: Path | None,
    ):
        weights = np.random.default_rng(0).integers(0, 1 << 63, rows, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        record, group, groups = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)], 0
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here; at a page it would be a signal
                os.posix_fallocate(file.fileno(), 0, 8 * bands * n)
            hashes = np.memmap(file, np.uint64, "w+", shape=(bands, n))
            at = 0
            for texts in parts:
                made = signatures(texts)[:, : bands * rows].reshape(len(texts), bands, rows)
                hashes[:, at : at + len(texts)] = (made * weights).sum(axis=2, dtype=np.uint64).T
                at += len(texts)
            for band in range(bands):
                order = np.argsort(hashes[band], kind="stable")
                same = hashes[band][order]
                first = np.concatenate([[True], same[1:] != same[:-1]])
                alone = first & np.concatenate([first[1:], [True]])
                record.append(order[~alone].astype(np.int32))
                group.append((groups + np.cumsum(first[~alone]) - 1).astype(np.int32))
                groups += int(first[~alone].sum())
            del hashes
        records_, groups_ = np.concatenate(record), np.concatenate(group)
        order = np.argsort(records_, kind="stable")
        self._record, self._group = records_[order], groups_[order]  # of each meeting, by record
        self._head = np.full(groups, -1, np.int32)  # the meeting that was inserted last, of each group
        self._before = np.full(len(order), -1, np.int32)  # the one that was inserted before, of each meeting

    def _meetings(self, number: int) -> range:
        return range(*np.searchsorted(self._record, [number, number + 1]).tolist())

    def query(self, number: int) -> list[int]:
        """Those that were inserted and meet the record, rising."""
        found: set[int] = set()
        for meeting in self._meetings(number):
            at = int(self._head[self._group[meeting]])
            while at >= 0:
                found.add(int(self._record[at]))
                at = int(self._before[at])
        return sorted(found)

    def insert(self, number: int) -> None:
        for meeting in self._meetings(number):
            group = self._group[meeting]
            self._before[meeting] = self._head[group]
            self._head[group] = meeting
