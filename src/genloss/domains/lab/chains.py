"""Chains: thousands of independent repetitions of one experiment, side by side in every record.

Where theory is exact, one run says little and thousands say all, and they cost no more than one if every stage is one
array operation. A record of such a domain is a *slot*: the i-th point of every chain, [chains, width] numbers in the
column `points`. Chains never mix: a mixer or a curator chooses for each chain on its own, and a cell that a chain did
not choose is absent (nan). `slots` turns a table into an array, `table_of` an array into a table.

    points = slots(records.read(run / "rounds/01/kept.parquet"))        # [slots, chains, width]
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from genloss.core import records

COLUMN = "points"
WEIGHT = "weight"  # a loss weight of each cell, where it is not the same for a whole shard
CHAINS = b"genloss.chains"
WHOLE = b"genloss.whole"  # set where every chain has a point in every slot


def is_chains(schema: pa.Schema) -> bool:
    return CHAINS in (schema.metadata or {})


def slots(table: pa.Table, column: str = COLUMN) -> np.ndarray:
    """float64 [slots, chains, width]; nan where a chain has no point."""
    chains = int(table.schema.metadata[CHAINS])
    flat = table.column(column).combine_chunks()
    values = flat.values if len(flat) == 0 else flat.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(len(table), chains, flat.type.list_size // chains)


def column_of(points: np.ndarray) -> pa.Array:
    """[slots, chains, width] as an Arrow column."""
    flat = np.ascontiguousarray(points, dtype=np.float64)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1] * flat.shape[2])


def table_of(points: np.ndarray, *, origin: str, generation: int, recipe: str) -> pa.Table:
    """A table of records from [slots, chains, width]."""
    made = records.make_table({COLUMN: column_of(points)}, origin=origin, generation=generation, recipe=recipe)
    return marked(made, points.shape[1], bool(present(points).all()))


def marked(table: pa.Table, chains: int, whole: bool) -> pa.Table:
    """The table with what its readers must know: how many chains it has, and whether any of them lacks a point."""
    return table.replace_schema_metadata({CHAINS: str(chains)} | ({WHOLE: "yes"} if whole else {}))


def is_whole(schema: pa.Schema) -> bool:
    return WHOLE in (schema.metadata or {})


def present(points: np.ndarray) -> np.ndarray:
    """bool [slots, chains]: whether the chain has a point in this slot."""
    return ~np.isnan(points[..., 0])


def pick(points: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For every chain its own slots: points [slots, chains, width], rows int [take, chains] -> [take, chains, width].
    A negative row is a cell that stays absent."""
    chosen = points[np.maximum(rows, 0), np.arange(points.shape[1])]
    chosen[rows < 0] = np.nan
    return chosen


def compact(points: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The kept cells of every chain in their order, in as few slots as the fullest chain needs."""
    order = np.argsort(~keep, axis=0, kind="stable")[: int(keep.sum(axis=0).max(initial=0))]
    return pick(points, np.where(np.take_along_axis(keep, order, axis=0), order, -1))


def distinct(rng: np.random.Generator, size: int, take: int, chains: int) -> np.ndarray:
    """int [take, chains]: for every chain `take` different numbers below `size`, each set equally likely."""
    if take * 3 > size:
        return (
            np.argpartition(rng.random((size, chains)), take - 1, axis=0)[:take] if take else np.empty((0, chains), int)
        )
    drawn = rng.integers(0, size, (take, chains))
    while True:  # a number that a chain already has is drawn again: sampling without replacement by rejection
        order = np.argsort(drawn, axis=0, kind="stable")
        ordered = np.take_along_axis(drawn, order, axis=0)
        again = np.zeros(drawn.shape, dtype=bool)
        np.put_along_axis(again, order[1:], ordered[1:] == ordered[:-1], axis=0)
        if not again.any():
            return drawn
        drawn[again] = rng.integers(0, size, int(again.sum()))


def choose(rng: np.random.Generator, there: np.ndarray, take: int, replacement: bool) -> np.ndarray:
    """int [take, chains]: rows of `there` (bool [size, chains]) that every chain draws among its present ones; -1 where
    it has fewer than `take` and draws without replacement."""
    size, chains = there.shape
    if there.all():
        return rng.integers(0, size, (take, chains)) if replacement else distinct(rng, size, take, chains)
    if replacement:
        count = there.sum(axis=0)
        ranks = np.minimum((rng.random((take, chains)) * count).astype(int), count - 1)
        order = np.argsort(~there, axis=0, kind="stable")
        return np.take_along_axis(order, ranks, axis=0)
    keys = np.where(there, rng.random((size, chains)), np.inf)
    order = np.argsort(keys, axis=0)[:take]
    return np.where(np.isinf(np.take_along_axis(keys, order, axis=0)), -1, order)
