"""A plan on disk: the mixed set is a folder of Parquet shards, one for each origin, and mix.json.

A shard that is used whole is the same file as in the round that made it: accumulating n rounds stores no byte twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genloss.core import records
from genloss.core.contracts import Domain
from genloss.core.errors import UserError
from genloss.core.files import link
from genloss.core.hashes import canonical
from genloss.core.seeds import generator
from genloss.mix import Mixing, Part, Regime


def mix(
    regime: Regime, domain: Domain, n: int, real: Path, kept: Mapping[int, Path], out: Path, seed: int
) -> dict[str, Any]:
    """Write round n's training set to `out` as shards plus mix.json; returns requested and realised counts.

    real: the real training records in their frozen order; kept: the kept.parquet of each round in the window.
    """
    out.mkdir(parents=True, exist_ok=True)
    sources = {"real": real} | {str(j): path for j, path in kept.items()}
    result = domain.shards(regime, n, sources, out, generator(seed, "mix"))
    (out / "mix.json").write_text(canonical(result), encoding="utf-8")
    return result


def planned(regime: Regime, n: int, available: int, kept: Mapping[int, int]) -> list[Part]:
    """`Regime.plan`, refused where it is empty."""
    parts = regime.plan(n, available, kept)
    if not parts:
        why = f"leaves nothing to train on in round {n}: no records were generated"
        raise UserError(regime.key(n), regime.rounds[n].name, why)
    return parts


def described(part: Part, file: str, requested: float, realised: float) -> dict[str, Any]:
    """An entry of mix.json."""
    real = part.source == "real"
    return {
        "file": file,
        "origin": records.REAL if real else records.SYNTHETIC,
        "generation": 0 if real else int(part.source),
        "requested": requested,
        "realised": realised,
        "weight": 1.0,
    }


def record_shards(
    regime: Regime, n: int, sources: Mapping[str, Path], out: Path, rng: np.random.Generator
) -> dict[str, Any]:
    """Write the shards of round n, record by record, and describe them (`Domain.shards`)."""
    mixing = regime.rounds[n]
    kept = {int(name): records.count(path) for name, path in sources.items() if name != "real"}
    parts = planned(regime, n, records.count(sources["real"]), kept)
    pool = sum(p.take for p in parts)
    total = mixing.budget.records(n) if n > 0 else None
    # by=fraction has sized the parts to the budget already: each is drawn on its own
    bootstrap = mixing.replacement and mixing.by == "fraction" and n > 0
    rows = [_rows(p, rng, bootstrap) for p in parts]
    if total is not None and mixing.by != "fraction":
        drawn = rng.integers(0, pool, total) if mixing.replacement else rng.permutation(pool)[:total]
        drawn.sort()
        edges = np.cumsum([0, *(p.take for p in parts)])
        rows = [
            (np.arange(p.available) if r is None else r)[drawn[(drawn >= lo) & (drawn < hi)] - lo]
            for p, r, lo, hi in zip(parts, rows, edges[:-1], edges[1:], strict=True)
        ]
    shards: list[dict[str, Any]] = []
    for part, chosen in zip(parts, rows, strict=True):
        if chosen is not None and len(chosen) == 0:
            continue
        source, target = sources[part.source], out / f"{len(shards):02d}-{part.name}.parquet"
        if chosen is None:
            whole_file(source, target)
            count = part.available
        else:
            records.choose(source, chosen, target)
            count = len(chosen)
        shards.append(described(part, target.name, part.take, count))
    if mixing.by == "weight" and n > 0:
        _weigh(mixing, shards)
    return {"shards": shards, "requested": pool if total is None else total}


def _weigh(mixing: Mixing, shards: list[dict[str, Any]]) -> None:
    """Weights with which the real part gets its share of the loss, from what was realised: a budget draws by chance."""
    counts = {o: sum(s["realised"] for s in shards if s["origin"] == o) for o in (records.REAL, records.SYNTHETIC)}
    if not all(counts.values()):
        return  # one side alone is all of the loss
    share = {records.REAL: mixing.value or 0.0, records.SYNTHETIC: 1 - (mixing.value or 0.0)}
    for shard in shards:
        shard["weight"] = share[shard["origin"]] * sum(counts.values()) / counts[shard["origin"]]


def _rows(part: Part, rng: np.random.Generator, replacement: bool) -> np.ndarray | None:
    """Row numbers of a part, all within its slice, or None for the whole file."""
    if replacement or part.take > part.size:
        return part.first + np.sort(rng.integers(0, part.size, part.take))
    if part.take < part.size:
        return part.first + np.sort(rng.permutation(part.size)[: part.take])
    return None if part.size == part.available else np.arange(part.first, part.first + part.size)


def whole_file(source: Path, target: Path) -> None:
    try:
        link(source, target)
    except OSError:
        shutil.copyfile(source, target)
