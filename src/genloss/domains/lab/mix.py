"""Mixing for chains (genloss.domains.lab.chains): the same plan, and every chain draws its own records from it.

Were one draw shared by all chains, what chance did to it would look like an effect: the spread between chains would
miss it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from genloss.mix import Mixing, Part, Regime
from genloss.mix.shards import described, planned, whole_file


def mix_chains(
    regime: Regime, n: int, sources: Mapping[str, Path], out: Path, rng: np.random.Generator
) -> dict[str, Any]:
    """Write the shards of round n and describe them (`Domain.shards`): counts are means over chains, and `spread` has
    their standard deviations where chains differ."""
    mixing = regime.rounds[n]
    total = mixing.budget.records(n) if n > 0 else None
    pooled = total is not None and mixing.by != "fraction"
    bootstrap = mixing.replacement and mixing.by == "fraction" and n > 0
    plan = plans(regime, n, sources)
    cells: list[np.ndarray | None] = []
    for part in plan:
        all_taken = bool((part.takes == part.there).all()) and not bootstrap
        if all_taken and part.size == part.available and not pooled:
            cells.append(None)
            continue
        points = slots(records.read(sources[part.source], rows=(part.first, part.size)))
        if not all_taken:
            points = pick(points, chosen(rng, present(points), part, bootstrap))
        cells.append(points)
    requested = np.sum([part.takes for part in plan], axis=0)
    if pooled and total is not None:
        cells = _budget([c for c in cells if c is not None], total, mixing.replacement, rng)
        requested = np.full(1, total)
    shards: list[dict[str, Any]] = []
    counts: list[np.ndarray] = []
    for part, found in zip(plan, cells, strict=True):
        if found is not None and len(found) == 0:
            continue
        name = f"{len(shards):02d}-{part.name}.parquet"
        if found is None:
            whole_file(sources[part.source], out / name)
            count = part.there
        else:
            count = present(found).sum(axis=0)
        entry = described(part, name, float(part.takes.mean()), float(count.mean()))
        if found is not None:
            origin, generation = entry["origin"], entry["generation"]
            table = table_of(found, origin=origin, generation=generation, recipe=f"mix/{part.name}")
            records.write(table, out / name)
        shards.append(entry)
        counts.append(count)
    if mixing.by == "weight" and n > 0:
        _weigh(mixing, shards, out)
    spread = {"requested": deviation(requested), "realised": deviation(functools.reduce(operator.add, counts))}
    return {"shards": shards, "requested": float(requested.mean()), "spread": {k: v for k, v in spread.items() if v}}


@dataclass
class ChainPart(Part):
    """A part of a plan in which every chain takes its own number of its own records."""

    there: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=int))  # [chains] records in the slice
    takes: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=int))  # [chains], or [1]: all of them alike


def plans(regime: Regime, n: int, sources: Mapping[str, Path]) -> list[ChainPart]:
    """The plan of every chain: behind a curator that keeps more in one than in another, each has its own."""
    available = records.count(sources["real"])
    kept = {int(name): _counts(path) for name, path in sources.items() if name != "real"}
    width = max((len(counts) for counts in kept.values()), default=1)
    table = np.zeros((1 + len(kept), width), dtype=int)  # a first row of zeros, so that there is one
    for row, counts in zip(table[1:], kept.values(), strict=True):
        row[:] = counts
    kinds, which = np.unique(table, axis=1, return_inverse=True)
    parts: dict[str, ChainPart] = {}
    refused: dict[int, UserError] = {}
    for i, column in enumerate(kinds[1:].T):
        try:
            plan = planned(regime, n, available, {j: int(c) for j, c in zip(kept, column, strict=True)})
        except UserError as error:
            refused[i] = error
            continue
        for p in plan:
            there, takes = (np.zeros(kinds.shape[1], dtype=int) for _ in range(2))
            part = parts.setdefault(p.name, ChainPart(**vars(p), there=there, takes=takes))
            part.there[i], part.takes[i] = p.size, p.take
    which = which.reshape(-1)
    if refused:
        first = next(iter(refused.values()))
        few = int(np.isin(which, list(refused)).sum())
        where = f" (so it is in {few} of {width} chains)" if width > 1 else ""
        raise UserError(first.key, first.value, first.remedy + where)
    for part in parts.values():
        part.there, part.takes = part.there[which], part.takes[which]
        if part.source != "real":  # slots that the fullest chain needs
            part.available = part.size = records.count(sources[part.source])
    return sorted(parts.values(), key=lambda p: (p.source != "real", p.first, int(p.source) if p.name[0] == "g" else 0))


def chosen(rng: np.random.Generator, there: np.ndarray, part: ChainPart, bootstrap: bool) -> np.ndarray:
    """int [most, chains]: the rows that every chain draws of a part; -1 where it takes fewer."""
    most = int(part.takes.max())
    again = (part.takes > part.there) | bootstrap
    if again.all():
        rows = choose(rng, there, most, True)
    else:
        rows = choose(rng, there, min(most, len(there)), False)
        if again.any():
            once = np.full((most - len(rows), rows.shape[1]), -1)
            rows = np.where(again, choose(rng, there, most, True), np.concatenate([rows, once]))
    if np.ptp(part.takes) > 0:
        rows[np.arange(most)[:, None] >= part.takes] = -1
    return rows


def deviation(counts: np.ndarray) -> float:
    """Standard deviation over chains."""
    return float(counts.std(ddof=1)) if len(counts) > 1 else 0.0


def _budget(
    cells: list[np.ndarray], total: int, replacement: bool, rng: np.random.Generator
) -> list[np.ndarray | None]:
    """Every chain's `total` points out of all parts."""
    there = np.concatenate([present(c) for c in cells])
    rows = np.sort(choose(rng, there, total, replacement), axis=0)  # so that a part's rows are a run of each chain's
    begin = np.zeros(rows.shape[1], dtype=int)
    found: list[np.ndarray | None] = []
    for lo, part in zip(np.cumsum([0, *(len(c) for c in cells)]), cells, strict=False):
        end = (rows < lo + len(part)).sum(axis=0)
        at = begin + np.arange(int((end - begin).max()))[:, None]
        mine = np.take_along_axis(rows, np.minimum(at, len(rows) - 1), axis=0) - lo
        found.append(pick(part, np.where(at < end, mine, -1)))
        begin = end
    return found


def _counts(path: Path) -> np.ndarray:
    """int [chains]: the records of every chain; [1] if all have a point in every slot."""
    table = records.read(path, columns=["id"])
    if is_whole(table.schema):
        return np.array([len(table)])
    return present(slots(records.read(path, columns=[COLUMN]))).sum(axis=0)


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
