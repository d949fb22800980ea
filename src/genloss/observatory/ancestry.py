"""Arithmetic on ancestry: who descends from which real record, in arrays of numbers.

    people = Population([real_ids, ids_of_round_1, ids_of_round_2])
    people.find(keys(parents))                      where each parent stands, -1 where it is nobody known
    backward(weights, people, families)             what weights of records are worth in real ones

A record is known by 64 bits that are computed of its id, so that ten million are 80 MB and are sorted in a second. Two
of n ids, which are digits of a sha256, share them with a probability of about n²/2⁶⁵: 3 in a million for n = 10⁷."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from genloss.core import records

DIGITS = 32  # of an id
# factors of a multilinear hash (Lemire & Kaser 2014, arXiv 1202.4961): any odd numbers with bits of both kinds
ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype=np.uint64)
NOBODY = -1


def keys(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """uint64 [n] of n ids."""
    array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    if not len(array):
        return np.zeros(0, dtype=np.uint64)
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    if array.null_count == 0 and (np.diff(offsets) == DIGITS).all():
        words = np.frombuffer(array.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]]
        return words.view(np.uint64).reshape(-1, DIGITS // 8) @ ODD
    others = array.fill_null("").to_pylist()  # some are of another maker than records.make_table
    long = np.array([len(name.encode()) == DIGITS for name in others])
    made = records.digests(others).view(np.uint64)[::2].copy()
    made[long] = keys(pa.array([name for name, same in zip(others, long, strict=True) if same], pa.string()))
    return made


class Family(NamedTuple):
    """The parents of the records of one generation."""

    counts: np.ndarray  # int32 [records]: how many each has
    parents: np.ndarray  # int32 [sum of counts]: where they stand, NOBODY where that is not known


class Population:
    """Records in a fixed order, generation by generation, of which the first is the real data.

    Keys are spread evenly, so that the first bits of one say where to look for it among all that are sorted: in about
    one place, where bisection would read twenty."""

    def __init__(self, generations: Iterable[np.ndarray]):
        parts = list(generations)
        self.edges = np.cumsum([0, *map(len, parts)])
        found = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)
        del parts
        self.order = np.argsort(found, kind="stable").astype(np.int32)  # of equal ones the first counts
        self.sorted = found[self.order]
        bits = max(1, len(found).bit_length() - 1)
        self.shift = np.uint64(64 - bits)
        heads = np.arange(1 << bits, dtype=np.uint64) << self.shift
        self.starts = np.append(np.searchsorted(self.sorted, heads), len(found)).astype(np.int32)

    def __len__(self) -> int:
        return len(self.sorted)

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """int32 [n]: where records with these keys stand, NOBODY for those that are not here."""
        found = np.full(len(wanted), NOBODY, dtype=np.int32)
        head = (wanted >> self.shift).astype(np.int64)
        at, end = self.starts[head], self.starts[head + 1]
        left = np.flatnonzero(at < end)
        while len(left):
            here = at[left]
            hit = self.sorted[here] == wanted[left]
            found[left[hit]] = self.order[here[hit]]
            at[left] += 1
            left = left[~hit & (here + 1 < end[left])]
        return found


def backward(weights: np.ndarray, people: Population, families: Mapping[int, Family]) -> tuple[np.ndarray, float]:
    """(float64 [real records], float): what records are worth in real ancestors, and what is left of those that have
    none.

    weights: float64 [all records], which is changed. The weight of a record goes to its parents in equal parts, from
    the newest generation to the real data; what a parent that is not known, or not older, would get is left over, and
    so is the weight of a record without parents: a model made it of nothing but what it had learned.
    """
    left = 0.0
    for generation in range(len(people.edges) - 2, 0, -1):
        first, last = people.edges[generation : generation + 2]
        mine = weights[first:last]
        family = families.get(generation)
        if family is None or not mine.any():
            left += float(mine.sum())
            continue
        none = family.counts == 0
        left += float(mine[none].sum())
        each = np.repeat(mine / np.maximum(1, family.counts), family.counts)
        older = np.where(family.parents < first, family.parents, NOBODY)
        flow = np.bincount(older + 1, each, minlength=first + 1)
        left += float(flow[0])
        weights[:first] += flow[1:]
    return weights[: people.edges[1]], left


def effective(weights: np.ndarray) -> float:
    """(Σw)² / Σw²: the number of equal weights that are as uneven as these (inverse Simpson index; Hill number of
    order 2). 0 if all are 0."""
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def depth(shares: Mapping[int, float], before: Mapping[int, float]) -> float | None:
    """The mean number of models between real data and a record of a training set. shares: of the set, by generation;
    before: the same number for earlier rounds. None if that of one is not known."""
    total = 0.0
    for generation, share in shares.items():
        if generation > 0:
            if generation - 1 not in before:
                return None
            total += share * (1 + before[generation - 1])
    return total


def children(parents: pa.ChunkedArray, known: np.ndarray) -> np.ndarray:
    """int64: the rows of a column of lists of ids of which one has a key among the known ones, which rise."""
    column = parents.combine_chunks() if isinstance(parents, pa.ChunkedArray) else parents
    hit = np.flatnonzero(records.among(keys(column.flatten()), known))
    return np.unique(np.searchsorted(_ends(column), hit, side="right"))


def families(tables: Iterable[pa.Table], people: Population) -> Family:
    """The family of a generation, whose records come part by part, with their `parents`."""
    counts: list[np.ndarray] = []
    found: list[np.ndarray] = []
    for table in tables:
        column = table["parents"].combine_chunks()
        counts.append(np.diff(_ends(column), prepend=0).astype(np.int32))
        found.append(people.find(keys(column.flatten())))
    empty = np.zeros(0, dtype=np.int32)
    return Family(np.concatenate([empty, *counts]), np.concatenate([empty, *found]))


def _ends(column: pa.ListArray) -> np.ndarray:
    """int64 [n]: where the list of each row ends among the values of all."""
    lengths: Sequence[int] | np.ndarray = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.cumsum(lengths, dtype=np.int64)
