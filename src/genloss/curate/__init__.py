"""Curate: each generated record is kept or dropped, with a score and a reason.

A curator is one dataclass with one method, and one file in conf/curation/. Curators chain: `curation=[dedup,random]`
runs them in this order, each on what the ones before it kept. Nothing is lost: what a curator drops goes to
rejected.parquet with its reason. `control=random` replaces the chain's choice by a random one of equal size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Points, Texts, able
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


def blank(n: int, word: str = "") -> np.ndarray:
    """n times the same word, as objects; np.full would make n of them."""
    made = np.empty(n, dtype=object)
    made[:] = word
    return made


def decision(keep: np.ndarray, score: np.ndarray | None = None, reason: str | np.ndarray = "") -> Decision:
    """A `Decision` from a mask, optional scores, and one reason for all dropped records (or one each)."""
    n = len(keep)
    scores = np.full(n, np.nan) if score is None else np.asarray(score, dtype=float)
    reasons = blank(n, reason) if isinstance(reason, str) else np.asarray(reason, dtype=object)
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
    # survives a kill, and tables lie there that are larger than memory; None: where the system has such files
    scratch: Path | None = None
    account: Path | None = None  # of `Sampling`
    store: Path | None = None  # holds what is made of real data once for all; None: it is made here

    def seeded(self, seed: int) -> Context:
        return replace(self, seed=seed)


class Curator(Plugin):
    """A selector: derive from `RecordCurator`, or in the lab from `PointCurator`."""


class RecordCurator(Curator, ABC):
    """Decides record by record."""

    @abstractmethod
    def decide(self, table: pa.Table, context: Context) -> Decision:
        """What to keep of a table of n >= 1 records, which may be larger than memory: `records.parts` goes through it
        part by part."""


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
    reason = blank(n, "kept")
    for position, (name, curator) in enumerate(curators.items()):
        assert isinstance(curator, RecordCurator)
        alive = np.flatnonzero(keep)
        if len(alive) == 0:
            break
        left = table if len(alive) == n else records.spilled(_where(table, keep), context.scratch)
        said = curator.decide(left, context.seeded(seed_of(context.seed, name, position)))
        for part in (said.keep, said.score, said.reason):
            if len(part) != len(alive):
                raise ValueError(f"curator {name} decided on {len(part)} of {len(alive)} records")
        keep[alive] = said.keep
        scored = ~np.isnan(said.score)
        score[alive[scored]] = said.score[scored]
        dropped = alive[~said.keep]
        why = said.reason[~said.keep]
        named = {r: f"{name}: {r}" if r else name for r in set(why)}  # one object for all that share it
        reason[dropped] = [named[r] for r in why]
    if n > 0 and not keep.any():  # told by what kept none, also where a control would have kept as many
        counts = ", ".join(f"{count} {what}" for what, count in _counts(reason).items())
        why = f"kept none of {n} records in round {context.round} ({counts})"
        raise UserError("curation", "+".join(curators), f"{why}; loosen the curator, or let the recipe make more")
    if control == "random":
        chosen = generator(context.seed, "control").permutation(n)[: int(keep.sum())]
        keep = np.zeros(n, dtype=bool)
        keep[chosen] = True
        reason = blank(n, "control: random")
        reason[keep] = "kept"
    columns = {"score": score, "reason": reason}
    kept, rejected = (
        records.spilled(_where(table, mask, columns), context.scratch) for mask in (keep, np.logical_not(keep))
    )
    return Curated(kept, rejected, _counts(reason))


def texts(table: pa.Table, domain: Domain) -> Iterator[str]:
    """The text of each record, one after the other."""
    for part in records.parts(table):
        yield from able(domain, Texts).texts(part)


def _where(table: pa.Table, mask: np.ndarray, columns: Mapping[str, np.ndarray] | None = None) -> Iterator[pa.Table]:
    """Those records, in parts, with what is said of each: `score` and `reason`."""
    first = 0
    for part in records.parts(table) if len(table) else [table]:
        here = slice(first, first + len(part))
        if columns is not None:
            part = part.append_column("score", pa.array(columns["score"][here], pa.float64(), from_pandas=True))
            part = part.append_column("reason", pa.array(columns["reason"][here].tolist(), pa.string()))
        yield part.filter(pa.array(mask[here]))
        first = here.stop


def _counts(reason: np.ndarray) -> dict[str, int]:
    return dict(sorted(Counter(reason.tolist()).items()))


def write(curated: Curated, out: Path) -> None:
    records.write(curated.kept, out / "kept.parquet")
    records.write(curated.rejected, out / "rejected.parquet")
