"""Curate: each generated record is kept or dropped, with a score and a reason.

A curator is one dataclass with one method, and one file in conf/curation/. Curators chain: `curation=[dedup,random]`
runs them in this order, each on what the ones before it kept. Nothing is lost: what a curator drops goes to
rejected.parquet with its reason. `control=random` replaces the chain's choice by a random one of equal size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genloss.core import records
from genloss.core.capabilities import Points
from genloss.core.contracts import Curated, Domain, Inputs, Plugin, Report, Runtime, silent
from genloss.core.errors import UserError
from genloss.core.seeds import generator, seed_of


@dataclass(frozen=True)
class Decision:
    """What a curator says of n records: `keep` bool [n], `score` float [n] (nan: none), `reason` str [n].

    The reason of a kept record is ignored; that of a dropped one should be a short word: it is counted per round.
    """

    keep: np.ndarray
    score: np.ndarray
    reason: np.ndarray


def decision(keep: np.ndarray, score: np.ndarray | None = None, reason: str | np.ndarray = "") -> Decision:
    """A `Decision` from a mask, optional scores, and one reason for all dropped records (or one each)."""
    n = len(keep)
    scores = np.full(n, np.nan) if score is None else np.asarray(score, dtype=float)
    reasons = np.full(n, reason, dtype=object) if isinstance(reason, str) else np.asarray(reason, dtype=object)
    return Decision(np.asarray(keep, dtype=bool), scores, reasons)


@dataclass(frozen=True)
class Context:
    """What a curator may read besides the records."""

    domain: Domain
    round: int
    seed: int  # of this curator in this round
    data: Path  # real data
    inputs: Inputs  # what else the curators `read`
    runtime: Runtime = field(default_factory=Runtime)
    report: Report = silent

    def seeded(self, seed: int) -> Context:
        return replace(self, seed=seed)


class Curator(Plugin):
    """A selector: derive from `RecordCurator`, or in the lab from `PointCurator`."""


class RecordCurator(Curator, ABC):
    """Decides record by record."""

    @abstractmethod
    def decide(self, table: pa.Table, context: Context) -> Decision:
        """What to keep of a table of n >= 1 records."""


class PointCurator(Curator, ABC):
    """Decides for every chain on its own (genloss.domains.lab)."""

    needs: ClassVar[tuple[type, ...]] = (Points,)

    @abstractmethod
    def decide_points(self, points: np.ndarray, left: np.ndarray, context: Context) -> np.ndarray:
        """bool [slots, chains]: which points [slots, chains, width] to keep of those that are `left` [slots,
        chains]."""


class Rated(ABC):
    """A curator whose rates are given, and that judges each record by them alone."""

    @abstractmethod
    def rates(self) -> tuple[float, float]:
        """(φ, ψ) = (P(kept | right), P(kept | wrong))."""


def rates(curators: Mapping[str, Plugin], control: str) -> tuple[float, float] | None:
    """(φ, ψ) of a whole chain, where those of all its curators are given. A random choice sees no difference."""
    phi = psi = 1.0
    for curator in curators.values() if control == "none" else ():
        if not isinstance(curator, Rated):
            return None
        given = curator.rates()
        phi, psi = phi * given[0], psi * given[1]
    return phi, psi


def curate(table: pa.Table, curators: Mapping[str, Curator], control: str, context: Context) -> Curated:
    """Run a chain of `RecordCurator` on a table."""
    n = len(table)
    keep = np.ones(n, dtype=bool)
    score = np.full(n, np.nan)
    reason = np.full(n, "kept", dtype=object)
    for position, (name, curator) in enumerate(curators.items()):
        assert isinstance(curator, RecordCurator)
        alive = np.flatnonzero(keep)
        if len(alive) == 0:
            break
        said = curator.decide(table.take(pa.array(alive)), context.seeded(seed_of(context.seed, name, position)))
        for part in (said.keep, said.score, said.reason):
            if len(part) != len(alive):
                raise ValueError(f"curator {name} decided on {len(part)} of {len(alive)} records")
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
        counts = ", ".join(f"{count} {what}" for what, count in _counts(reason).items())
        why = f"kept none of {n} records in round {context.round} ({counts})"
        raise UserError("curation", "+".join(curators), f"{why}; loosen the curator, or generate more with recipe.n")
    full = table.append_column("score", pa.array(score, pa.float64(), from_pandas=True))
    full = full.append_column("reason", pa.array(reason.tolist(), pa.string()))
    mask = pa.array(keep)
    return Curated(full.filter(mask), full.filter(pc.invert(mask)), _counts(reason))


def _counts(reason: np.ndarray) -> dict[str, int]:
    values, counts = np.unique(reason.astype(str), return_counts=True)
    return {str(v): int(c) for v, c in zip(values, counts, strict=True)}


def write(curated: Curated, out: Path) -> None:
    records.write(curated.kept, out / "kept.parquet")
    records.write(curated.rejected, out / "rejected.parquet")
