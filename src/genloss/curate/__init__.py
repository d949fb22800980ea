"""Curate: each generated record is kept or dropped, with a score and a reason.

A curator is one dataclass with one method, and one file in conf/curation/. Curators chain: `curation=[dedup,random]`
runs them in this order, each on what the ones before it kept. Nothing is lost: what a curator drops goes to
rejected.parquet with its reason. `control=random` replaces the chain's choice by a random one of equal size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genloss.core import records
from genloss.core.contracts import Domain, Report, Runtime, silent
from genloss.core.errors import UserError
from genloss.core.seeds import generator, seed_of
from genloss.domains.lab.chains import is_chains
from genloss.domains.lab.curate import curate_chains

if TYPE_CHECKING:
    from genloss.experiment import Experiment


@dataclass(frozen=True)
class Verdict:
    """What a curator says of n records: `keep` bool [n], `score` float [n] (nan: none), `reason` str [n].

    The reason of a kept record is ignored; that of a dropped one should be a short word: it is counted per round.
    """

    keep: np.ndarray
    score: np.ndarray
    reason: np.ndarray


def verdict(keep: np.ndarray, score: np.ndarray | None = None, reason: str | np.ndarray = "") -> Verdict:
    """A `Verdict` from a mask, optional scores, and one reason for all dropped records (or one each)."""
    n = len(keep)
    scores = np.full(n, np.nan) if score is None else np.asarray(score, dtype=float)
    reasons = np.full(n, reason, dtype=object) if isinstance(reason, str) else np.asarray(reason, dtype=object)
    return Verdict(np.asarray(keep, dtype=bool), scores, reasons)


def top(score: np.ndarray, count: int) -> np.ndarray:
    """Mask of the `count` highest scores; equal scores go by position, so the choice is reproducible."""
    keep = np.zeros(len(score), dtype=bool)
    keep[np.argsort(-score, kind="stable")[:count]] = True
    return keep


@dataclass(frozen=True)
class Context:
    """What a curator may read besides the records."""

    domain: Domain
    round: int
    seed: int  # of this curator in this round
    data: Path  # real data
    round0: Path  # the model of round 0, the default judge
    last: Path  # model n-1, the one that made the records
    runtime: Runtime = field(default_factory=Runtime)
    report: Report = silent
    history: tuple[Path, ...] = ()  # what rounds 1 to n-1 kept, in this order; only if a curator `reads` "history"

    def seeded(self, seed: int) -> Context:
        return replace(self, seed=seed)


class Curator:
    """Decides record by record. `judge` gets a table of n >= 1 records and returns a `Verdict` over them; `judge_points`, for
    domains of chains (genloss.domains.lab.chains), gets points [slots, chains, width] and which of them are left."""

    reads: tuple[str, ...] = ()  # of "data", "round0", "last", "history": what else the verdict depends on

    def check(self, experiment: Experiment) -> None:
        """Refuse, before any work, what cannot run with the rest of the config (UserError)."""

    def judge(self, table: pa.Table, context: Context) -> Verdict:
        raise UserError("curation", type(self).__name__, f"works on chains of points, not on {context.domain.name}")

    def judge_points(self, points: np.ndarray, left: np.ndarray, context: Context) -> np.ndarray:
        """bool [slots, chains]: which points to keep of those that are `left`."""
        raise UserError("curation", type(self).__name__, f"works on text, not on points ({context.domain.name})")

    def rates(self) -> tuple[float, float] | None:
        """(φ, ψ) = (P(kept | right), P(kept | wrong)) where they are given and each record is judged by them alone; else None."""
        return None

    def fingerprint(self) -> str:
        """Hash of files outside the run that the verdict depends on; '' if there are none."""
        return ""

    def payload(self, table: pa.Table, context: Context) -> list:
        """The first payload column as a list (the text of a text record)."""
        return table.column(context.domain.payload[0]).to_pylist()


def curate(
    table: pa.Table, curators: Mapping[str, Curator], control: str, context: Context
) -> tuple[pa.Table, pa.Table, Mapping[str, float]]:
    """Run the chain. Returns (kept, rejected, counts by reason); kept and rejected together are `table`."""
    if is_chains(table.schema):
        return curate_chains(table, curators, control, context)
    n = len(table)
    keep = np.ones(n, dtype=bool)
    score = np.full(n, np.nan)
    reason = np.full(n, "kept", dtype=object)
    for position, (name, curator) in enumerate(curators.items()):
        alive = np.flatnonzero(keep)
        if len(alive) == 0:
            break
        said = curator.judge(table.take(pa.array(alive)), context.seeded(seed_of(context.seed, name, position)))
        for part in (said.keep, said.score, said.reason):
            if len(part) != len(alive):
                raise ValueError(f"curator {name} returned {len(part)} verdicts for {len(alive)} records")
        keep[alive] = said.keep
        scored = ~np.isnan(said.score)
        score[alive[scored]] = said.score[scored]
        dropped = alive[~said.keep]
        reason[dropped] = [f"{name}: {r}" if r else name for r in said.reason[~said.keep]]
    if control == "random":
        chosen = generator(context.seed, "control").permutation(n)[: int(keep.sum())]
        keep = np.zeros(n, dtype=bool)
        keep[chosen] = True
        reason = np.where(keep, "kept", "control: random").astype(object)
    if n > 0 and not keep.any():
        counts = _counts(reason)
        raise UserError(
            "curation",
            "+".join(curators),
            f"kept none of {n} records in round {context.round} ({counts}); "
            "loosen the curator, or generate more with recipe.n",
        )
    full = table.append_column("score", pa.array(score, pa.float64(), from_pandas=True))
    full = full.append_column("reason", pa.array(reason.tolist(), pa.string()))
    mask = pa.array(keep)
    return full.filter(mask), full.filter(pc.invert(mask)), _counts(reason)


def rates(curators: Mapping[str, Curator], control: str) -> tuple[float, float] | None:
    """(φ, ψ) of a whole chain, where those of all its curators are given. A random choice sees no difference."""
    phi = psi = 1.0
    for curator in curators.values() if control == "none" else ():
        given = curator.rates()
        if given is None:
            return None
        phi, psi = phi * given[0], psi * given[1]
    return phi, psi


def _counts(reason: np.ndarray) -> dict[str, int]:
    values, counts = np.unique(reason.astype(str), return_counts=True)
    return {str(v): int(c) for v, c in zip(values, counts, strict=True)}


def write(kept: pa.Table, rejected: pa.Table, out: Path) -> None:
    records.write(kept, out / "kept.parquet")
    records.write(rejected, out / "rejected.parquet")
