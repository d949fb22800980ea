"""Mixing for chains (genloss.domains.lab.chains): the same plan, and every chain draws its own records from it.

Were one draw shared by all chains, what chance did to it would look like an effect: the spread between chains would
miss it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genloss.core import records
from genloss.core.errors import UserError
from genloss.domains.lab.chains import (
    COLUMN,
    WEIGHT,
    choose,
    column_of,
    is_whole,
    marked,
    pick,
    present,
    slots,
    table_of,
)
from genloss.mix import Mixing, Part
from genloss.mix.shards import described, whole_file


def mix_chains(
    mixing: Mixing, n: int, sources: Mapping[str, Path], parts: Sequence[Part], out: Path, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Write the shards of round n; returns their descriptions, with realised counts as means over chains."""
    total = mixing.budget.records(n) if n > 0 else None
    pooled = total is not None and mixing.by != "fraction"
    bootstrap = mixing.replacement and mixing.by == "fraction" and n > 0
    cells: list[np.ndarray | None] = []
    for part in parts:
        whole = part.take == part.size == part.available and not bootstrap
        if whole and not pooled:
            cells.append(None)
            continue
        points = slots(records.read(sources[part.source], rows=(part.first, part.size)))
        if bootstrap or part.take != part.size:
            there = present(points)
            points = pick(points, choose(rng, there, part.take, bootstrap or part.take > part.size))
        cells.append(points)
    if pooled and total is not None:
        cells = _budget(mixing, n, [c for c in cells if c is not None], total, rng)
    shards: list[dict[str, Any]] = []
    for part, found in zip(parts, cells, strict=True):
        if found is not None and len(found) == 0:
            continue
        name = f"{len(shards):02d}-{part.name}.parquet"
        if found is None:
            whole_file(sources[part.source], out / name)
            realised = _realised(out / name)
        else:
            realised = float(present(found).sum() / found.shape[1])
            entry = described(part, name, realised)
            origin, generation = entry["origin"], entry["generation"]
            table = table_of(found, origin=origin, generation=generation, recipe=f"mix/{part.name}")
            records.write(table, out / name)
        shards.append(described(part, name, realised))
    if mixing.by == "weight" and n > 0:
        _weigh(mixing, shards, out)
    return shards


def _budget(
    mixing: Mixing, n: int, cells: list[np.ndarray], total: int, rng: np.random.Generator
) -> list[np.ndarray | None]:
    """Every chain's `total` points out of all parts."""
    there = np.concatenate([present(c) for c in cells])
    least = int(there.sum(axis=0).min())
    if total > least and not mixing.replacement:
        raise UserError(
            "mixing.budget.n",
            mixing.budget.n,
            f"asks for {total} records in round {n}, and a chain has {least} in reach; "
            "generate or keep more, lower it, or set mixing.replacement=true",
        )
    rows = np.sort(
        choose(rng, there, total, mixing.replacement), axis=0
    )  # so that a part's rows are a run of each chain's
    begin = np.zeros(rows.shape[1], dtype=int)
    found: list[np.ndarray | None] = []
    for lo, part in zip(np.cumsum([0, *(len(c) for c in cells)]), cells, strict=False):
        end = (rows < lo + len(part)).sum(axis=0)
        at = begin + np.arange(int((end - begin).max()))[:, None]
        mine = np.take_along_axis(rows, np.minimum(at, len(rows) - 1), axis=0) - lo
        found.append(pick(part, np.where(at < end, mine, -1)))
        begin = end
    return found


def _realised(path: Path) -> float:
    """Points a chain in a shard that is used whole."""
    table = records.read(path, columns=["id"])
    if is_whole(table.schema):
        return float(len(table))
    points = slots(records.read(path, columns=[COLUMN]))
    return float(present(points).sum() / points.shape[1])


def _weigh(mixing: Mixing, shards: list[dict[str, Any]], out: Path) -> None:
    """Loss weights from what every chain realised: the real part gets its share of that chain's loss."""
    tables = [records.read(out / s["file"]) for s in shards]
    there = [present(slots(t)) for t in tables]
    real = [s["origin"] == records.REAL for s in shards]
    n_real = np.sum([t.sum(axis=0) for t, r in zip(there, real, strict=True) if r], axis=0)
    n_synthetic = np.sum([t.sum(axis=0) for t, r in zip(there, real, strict=True) if not r], axis=0)
    both = (n_real > 0) & (n_synthetic > 0)  # one side alone is all of the loss
    for shard, table, cell, is_real in zip(shards, tables, there, real, strict=True):
        share = (mixing.value or 0.0) if is_real else 1 - (mixing.value or 0.0)
        mine = n_real if is_real else n_synthetic
        weight = np.where(both, share * (n_real + n_synthetic) / np.maximum(mine, 1), 1.0)
        if np.ptp(weight) == 0:
            shard["weight"] = float(weight[0])
            continue
        column = column_of(np.broadcast_to(weight, cell.shape)[..., None])
        path = out / shard["file"]
        made = marked(table.append_column(WEIGHT, column), cell.shape[1], bool(cell.all()))
        path.unlink()  # it may be a link to the round that made it
        records.write(made, path)


def read_shards(shards: list[Path], weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """(points [slots, chains, width] with 0 where absent, weights [slots, chains] with 0 there): a chain's training
    set."""
    tables = [records.read(path) for path in shards]
    plain = all(is_whole(t.schema) and WEIGHT not in t.column_names for t in tables) and len(set(weights)) == 1
    points = [slots(t) for t in tables]
    if plain:  # one number for all
        joined = points[0] if len(points) == 1 else np.concatenate(points)
        return joined, np.broadcast_to(weights[0], joined.shape[:2])
    cells = []
    for i, (table, weight) in enumerate(zip(tables, weights, strict=True)):
        cell = np.full(points[i].shape[:2], weight)
        if WEIGHT in table.column_names:
            cell *= slots(table, WEIGHT)[..., 0]
        if not is_whole(table.schema):
            cell[~present(points[i])] = 0
            points[i] = np.nan_to_num(points[i])
        cells.append(cell)
    return np.concatenate(points), np.concatenate(cells)
