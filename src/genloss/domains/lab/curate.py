"""Curating chains (genloss.domains.lab.chains): every chain keeps its own records, by the same curators and chain of
curators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from genloss.core.contracts import Curated
from genloss.core.errors import UserError
from genloss.core.seeds import generator, seed_of
from genloss.curate import Context, Curator, PointCurator
from genloss.domains.lab.chains import compact, present, slots, table_of


def curate_chains(table: pa.Table, curators: Mapping[str, Curator], control: str, context: Context) -> Curated:
    """Run a chain of `PointCurator`; the counts by reason are means over chains."""
    points = slots(table)
    there = present(points)
    chains = points.shape[1]
    keep = there.copy()
    reasons: dict[str, float] = {}
    for position, (name, curator) in enumerate(curators.items()):
        assert isinstance(curator, PointCurator)
        said = curator.decide_points(points, keep, context.seeded(seed_of(context.seed, name, position))) & keep
        reasons[name] = float((keep & ~said).sum() / chains)
        keep = said
    if control == "random":
        keys = np.where(there, generator(context.seed, "control").random(there.shape), np.inf)
        keep = (keys.argsort(axis=0).argsort(axis=0) < keep.sum(axis=0)) & there
        reasons = {"control: random": float((there & ~keep).sum() / chains)}
    least = int(keep.sum(axis=0).min())
    if least == 0:
        empty = int((keep.sum(axis=0) == 0).sum())
        raise UserError(
            "curation",
            "+".join(curators),
            f"kept none of {len(points)} records in round {context.round} in {empty} of {chains} "
            "chains; loosen the curator, or generate more with recipe.n",
        )
    reasons["kept"] = float(keep.sum() / chains)
    spread = float(keep.sum(axis=0).std(ddof=1))
    origin, recipe = table["origin"][0].as_py(), table["recipe"][0].as_py()
    if keep.all():  # the same rows with the same ids
        return Curated(_with(table, "kept"), _with(table.slice(0, 0), "rejected"), reasons, spread)
    kept, rejected = (
        _judged(compact(points, mask), origin, context.round, f"{recipe}/{word}", word)
        for mask, word in ((keep, "kept"), (there & ~keep, "rejected"))
    )
    return Curated(kept, rejected, reasons, spread)


def _judged(points: np.ndarray, origin: str, generation: int, recipe: str, reason: str) -> pa.Table:
    return _with(table_of(points, origin=origin, generation=generation, recipe=recipe), reason)


def _with(table: pa.Table, reason: str) -> pa.Table:
    nothing = pa.nulls(len(table), pa.float64())
    return table.append_column("score", nothing).append_column("reason", pa.array([reason] * len(table), pa.string()))
