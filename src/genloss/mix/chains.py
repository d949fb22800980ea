"""Mixing for chains (genloss.chains): the same plan, and every chain draws its own records from it.

Were one draw shared by all chains, what chance did to it would look like an effect: the spread between chains would miss it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genloss import records
from genloss.chains import CHAINS, WEIGHT, choose, column_of, compact, pick, present, slots, table_of
from genloss.errors import UserError

if TYPE_CHECKING:
    from genloss.mix import Mixing, Part


def mix_chains(
    mixing: Mixing, n: int, sources: dict[str, Path], parts: list[Part], out: Path, rng: np.random.Generator
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
        points = slots(records.read(sources[part.source]))[part.first : part.first + part.size]
        if bootstrap or part.take != part.size:
            there = present(points)
            points = pick(points, choose(rng, there, part.take, bootstrap or part.take > part.size))
        cells.append(points)
    if pooled and total is not None:
        cells = _budget(mixing, n, [c for c in cells if c is not None], total, rng)
    shards = []
    for part, points in zip(parts, cells, strict=True):
        if points is not None and len(points) == 0:
            continue
        name = f"{len(shards):02d}-{part.name}.parquet"
        if points is None:
            mixing._whole(sources[part.source], out / name)
            points = slots(records.read(out / name))
        else:
            synthetic = part.source != "real"
            table = table_of(
                points, origin=records.SYNTHETIC if synthetic else records.REAL,
                generation=int(part.source) if synthetic else 0, recipe=f"mix/{part.name}",
            )  # fmt: skip
            records.write(table, out / name)
        shards.append({
            "file": name, "origin": records.REAL if part.source == "real" else records.SYNTHETIC,
            "generation": 0 if part.source == "real" else int(part.source), "requested": part.take,
            "realised": float(present(points).sum() / points.shape[1]), "weight": 1.0,
        })  # fmt: skip
    if mixing.by == "weight" and n > 0:
        _weigh(mixing, shards, out)
    return shards


def _budget(
    mixing: Mixing, n: int, cells: list[np.ndarray], total: int, rng: np.random.Generator
) -> list[np.ndarray | None]:
    """Every chain's `total` points out of all parts."""
    pool = np.concatenate(cells)
    there = present(pool)
    least = int(there.sum(axis=0).min())
    if total > least and not mixing.replacement:
        raise UserError(
            "mixing.budget.n", mixing.budget.n, f"asks for {total} records in round {n}, and a chain has {least} in reach; "
            "generate or keep more, lower it, or set mixing.replacement=true",
        )  # fmt: skip
    rows = choose(rng, there, total, mixing.replacement)
    edges = np.cumsum([0, *(len(c) for c in cells)])
    found: list[np.ndarray | None] = []
    for lo, hi in zip(edges[:-1], edges[1:], strict=True):
        mine = (rows >= lo) & (rows < hi)
        found.append(compact(pick(pool, np.where(mine, rows, -1)), mine))
    return found


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
        metadata = {CHAINS: str(cell.shape[1])}
        path = out / shard["file"]
        made = table.append_column(WEIGHT, column).replace_schema_metadata(metadata)
        path.unlink()  # it may be a link to the round that made it
        records.write(made, path)


def read_shards(shards: list[Path], weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """(points [slots, chains, width] with 0 where absent, weights [slots, chains] with 0 there): a chain's training set."""
    points, cell_weights = [], []
    for path, weight in zip(shards, weights, strict=True):
        table = records.read(path)
        found = slots(table)
        there = present(found)
        own = slots(table, WEIGHT)[..., 0] if WEIGHT in table.column_names else 1.0
        points.append(found if there.all() else np.nan_to_num(found))
        cell_weights.append(there * own * weight)
    return np.concatenate(points), np.concatenate(cell_weights)
