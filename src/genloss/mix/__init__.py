"""Mix: which records train model n. One schema for every regime; the named regimes are presets in conf/mixing/.

    D_n = sample of size N_n from  Real_n ∪ { Synth_j : j in window },  real weighted by w

    genloss run -m mixing=replace,accumulate,replace_keep
    genloss run mixing=replace_keep mixing.value=0.5      # half of the training set is real
    genloss run mixing=sliding_window mixing.window=4

"Ratio" has five incompatible meanings in released code (docs/mixing.md). Here each has its own name in `by`:

    counts    real.n and synthetic.n are record counts (a missing one: all there are)
    fraction  value = share of real records in the training set                        (Shumailov: kept real; MAD: p)
    ratio     value = synthetic records per real record                                (Bertrand: λ)
    weight    value = share of the loss that the real part gets; counts as in `counts` (He, Xu & Cheng: w)

A `Mixing` is the schema of one round; a `Regime` is that of all rounds of a run, which `schedule` may change: which
real records are fresh in a round follows from all rounds before it. What a plan becomes on disk is in mix/shards.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genloss.core.contracts import Plugin
from genloss.core.errors import UserError, one_of, require

REAL_KINDS = ("none", "fixed", "fresh", "fixed+fresh")
BY = ("counts", "fraction", "ratio", "weight")
BUDGETS = ("grow", "fixed", "schedule")
NO_BOUND = 10**15  # records of a round, where only the round knows how many it makes


@dataclass
class Real:
    """The real part. fixed: the same n records every round; fresh: n records that no round used before;
    fixed+fresh: n of each."""

    kind: str = "fixed"
    n: int | None = None  # records; none: all there are (fixed only)
    first: int | None = None  # records of round 0, if not n

    def __post_init__(self) -> None:
        one_of("kind", self.kind, REAL_KINDS)
        require(self.n is None or self.n >= 1, "n", self.n, "at least 1 record; kind=none leaves real data out")
        require(self.first is None or self.first >= 1, "first", self.first, "at least 1 record, or null: as many as n")
        if "fresh" in self.kind:
            require(
                self.n is not None,
                "n",
                self.n,
                f"a number of records, since kind={self.kind} takes that many a round",
            )


@dataclass
class Synthetic:
    """The synthetic part: at most n records (chosen at random) of each round in the window."""

    n: int | None = None  # records of each round; none: all that were kept

    def __post_init__(self) -> None:
        require(
            self.n is None or self.n >= 1,
            "n",
            self.n,
            "at least 1 record; window=none leaves synthetic data out",
        )


@dataclass
class Budget:
    """The size of the training set. grow: whatever the parts give; fixed: n records drawn from them;
    schedule: n·(round)^power records in round >= 1 (Xu et al. 2025: power > 1 under replace)."""

    kind: str = "grow"
    n: int | None = None
    power: float = 0.0

    def __post_init__(self) -> None:
        one_of("kind", self.kind, BUDGETS)
        if self.kind != "grow":
            require(
                self.n is not None and self.n >= 1,
                "n",
                self.n,
                f"a number of records, since kind={self.kind}",
            )
        if self.kind != "schedule":
            require(self.power == 0, "power", self.power, f"0 unless kind=schedule (it is {self.kind})")

    def records(self, round_number: int) -> int | None:
        if self.n is None or self.kind == "grow":
            return None
        return max(1, round(self.n * max(1, round_number) ** self.power))


@dataclass
class Part:
    """One shard of a plan: `take` records of a slice of the `source`; all of the slice, or chosen from it at random."""

    source: str  # "real", or the number of the round whose kept records these are
    available: int  # records in the source
    first: int  # where the slice begins (real data is sliced in its frozen order)
    size: int  # records in the slice
    take: int
    name: str


@dataclass
class Mixing(Plugin):
    """See the module's docstring. `name` is the regime's name in tables, tags and folders."""

    name: str = "custom"
    real: Real = field(default_factory=Real)
    window: Any = "last"  # none, last, all, or a number of rounds
    synthetic: Synthetic = field(default_factory=Synthetic)
    by: str = "counts"
    value: float | None = None
    budget: Budget = field(default_factory=Budget)
    replacement: bool = False  # draw the budget with replacement (bootstrap)

    def __post_init__(self) -> None:
        if not (isinstance(self.window, int) and not isinstance(self.window, bool)):
            one_of("window", str(self.window), ("none", "last", "all", "a number of rounds"))
        else:
            require(self.window >= 1, "window", self.window, "at least 1 round; none leaves synthetic data out")
        one_of("by", self.by, BY)
        if self.by == "counts":
            require(
                self.value is None,
                "value",
                self.value,
                "absent when by=counts; set real.n and synthetic.n instead",
            )
        else:
            require(self.value is not None, "value", self.value, f"a number, since by={self.by}")
        if self.by in ("fraction", "weight"):
            require(0 <= (self.value or 0) <= 1, "value", self.value, f"in [0, 1], since by={self.by}")
        if self.by == "ratio":
            require((self.value or 0) >= 0, "value", self.value, "at least 0 synthetic records per real one")
        none_left = self.real.kind == "none" and self.window == "none"
        require(
            not none_left,
            "window",
            self.window,
            "other than none when real.kind=none: nothing would be left to train on",
        )
        if self.by in ("fraction", "ratio", "weight"):
            both = self.real.kind != "none" and self.window != "none"
            require(both, "by", self.by, "counts, unless there are both real and synthetic records to mix")
        if self.replacement:
            require(
                self.budget.kind != "grow",
                "replacement",
                True,
                "false unless budget.kind is fixed or schedule",
            )

    # -- the plan: pure arithmetic on counts ----------------------------------------------------------------------

    def rounds_in_window(self, n: int) -> list[int]:
        """The rounds whose kept records are in reach of round n >= 1 (round j's records were made by model j-1)."""
        if self.window == "none":
            return []
        width = {"last": 1, "all": n}.get(str(self.window), self.window)
        return list(range(max(1, n - int(width) + 1), n + 1))

    def real_parts(self, n: int, available: int, used: int) -> list[Part]:
        """Slices of the real training data in its frozen order; round 0 and every fixed part start at 0. used: how many
        of them the rounds before used; those after are fresh."""
        kind, count = self.real.kind, self.real.n or available
        if n == 0:
            count = self.real.first or count
            return [Part("real", available, 0, count, count, "real")]
        parts = []
        if kind in ("fixed", "fixed+fresh"):
            parts.append(Part("real", available, 0, count, count, "real"))
            used = max(used, count)
        if kind in ("fresh", "fixed+fresh"):
            parts.append(Part("real", available, used, count, count, "fresh"))
        return parts

    def plan(self, n: int, available: int, kept: Mapping[int, int], used: int) -> list[Part]:
        """The shards of round n, given how many real records there are, how many records each past round kept, and how
        many real ones the rounds before used (`Regime.used`)."""
        real = self.real_parts(n, available, used)
        if n == 0:
            return real
        synthetic = [
            Part(str(j), kept[j], 0, kept[j], min(self.synthetic.n or kept[j], kept[j]), f"g{j:02d}")
            for j in self.rounds_in_window(n)
        ]
        total = self.budget.records(n)
        n_real, n_synthetic = sum(p.take for p in real), sum(p.take for p in synthetic)
        if self.by == "fraction":
            value = self.value or 0.0
            whole = total if total is not None else n_real + n_synthetic
            if total is None:  # as large as the scarcer side allows
                limits = [
                    n_real / value if value > 0 else math.inf,
                    n_synthetic / (1 - value) if value < 1 else math.inf,
                ]
                whole = math.floor(min(limits) * (1 + 1e-12))  # 3 / (1 - 0.7) is 9.999...
            self._fit(real, round(value * whole), "real", n)
            self._fit(synthetic, whole - round(value * whole), "synthetic", n)
        elif self.by == "ratio":
            self._fit(synthetic, round((self.value or 0.0) * n_real), "synthetic", n)
        parts = [p for p in real + synthetic if p.take > 0]
        pool = sum(p.take for p in parts)
        if total is not None and total > pool and self.by != "fraction" and not self.replacement:
            why = f"asks for {total} records in round {n}, and {pool} are in reach"
            remedy = "generate or keep more, lower it, or set mixing.replacement=true"
            raise UserError("budget.n", self.budget.n, f"{why}; {remedy}")
        return parts

    def _fit(self, parts: list[Part], count: int, side: str, n: int) -> None:
        """Scale the parts' counts to `count` in all, by largest remainders."""
        have = sum(p.take for p in parts)
        if count > have and not self.replacement:
            raise UserError(
                "value",
                self.value,
                f"by={self.by} needs {count} {side} records in round {n}, and {have} are in reach; "
                "generate or keep more, or change the budget",
            )
        share = [p.take * count / max(1, have) for p in parts]
        takes = [int(s) for s in share]
        order = sorted(range(len(parts)), key=lambda i: takes[i] - share[i])
        for i in order[: count - sum(takes)]:
            takes[i] += 1
        for part, take in zip(parts, takes, strict=True):
            part.take = take


@dataclass(frozen=True)
class Regime:
    """The mixing of rounds 0, 1, ... of a run."""

    rounds: tuple[Mixing, ...]
    _used: dict[int, list[int]] = field(default_factory=dict, repr=False, compare=False)

    def used(self, n: int, available: int) -> int:
        """Real records, from the first on in their frozen order, that the rounds before n use."""
        if available not in self._used:
            ends = [0]
            for m, mixing in enumerate(self.rounds):
                parts = mixing.real_parts(m, available, ends[-1])
                ends.append(max([ends[-1], *(part.first + part.size for part in parts)]))
            self._used[available] = ends
        return self._used[available][n]

    def plan(self, n: int, available: int, kept: Mapping[int, int]) -> list[Part]:
        """`Mixing.plan` of round n."""
        try:
            return self.rounds[n].plan(n, available, kept, self.used(n, available))
        except UserError as error:
            raise UserError(f"{self.key(n)}.{error.key}", error.value, error.remedy) from None

    def check_available(self, available: int, size: int, at_most: Mapping[int, int] | None = None) -> None:
        """Refuse, before any training, a regime that needs more records than there can be.

        available: real records; at_most: records that a round can generate, for the rounds of which that is known."""
        kept = {n: (at_most or {}).get(n, NO_BOUND) for n in range(1, len(self.rounds))}
        first = self.rounds[0].real
        if first.n is None and first.first is None and size > available:
            wrong = f"more real records than exist ({available}); lower it, or use a larger corpus"
            raise UserError("size", size, wrong)
        for n, mixing in enumerate(self.rounds):
            if self.used(n + 1, available) > available:
                key = "first" if n == 0 and mixing.real.first else "n"
                all_rounds = self.used(len(self.rounds), available)
                over = f" over rounds 0 to {len(self.rounds) - 1} (kind={mixing.real.kind})"
                raise UserError(
                    f"{self.key(n)}.real.{key}",
                    getattr(mixing.real, key),
                    f"needs {all_rounds} real training records{over if all_rounds > self.used(1, available) else ''}, "
                    f"and there are {available}; lower it (the presets have `size` here), or use a larger corpus",
                )
            if mixing.budget.kind != "grow" or mixing.by in ("fraction", "ratio"):  # else any number of records will do
                self.plan(n, available, kept)

    def key(self, n: int) -> str:
        """Where round n's mixing stands in the config."""
        return "mixing" if self.rounds[n] == self.rounds[0] else f"schedule.{n}.mixing"
