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

What a plan becomes on disk is in mix/shards.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genloss.core.contracts import Plugin
from genloss.core.errors import UserError, one_of, require

REAL_KINDS = ("none", "fixed", "fresh", "fixed+fresh")
BY = ("counts", "fraction", "ratio", "weight")
BUDGETS = ("grow", "fixed", "schedule")


@dataclass
class Real:
    """The real part. fixed: the same n records every round; fresh: n records that no round used before;
    fixed+fresh: n of each."""

    kind: str = "fixed"
    n: int | None = None  # records; none: all there are (fixed only)

    def __post_init__(self) -> None:
        one_of("kind", self.kind, REAL_KINDS)
        require(self.n is None or self.n >= 1, "n", self.n, "at least 1 record; kind=none leaves real data out")
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

    def real_parts(self, n: int, available: int) -> list[Part]:
        """Slices of the real training data in its frozen order; round 0 and every fixed part start at 0."""
        kind, count = self.real.kind, self.real.n or available
        if n == 0:
            count = min(count, available)
            return [Part("real", available, 0, count, count, "real")]
        parts = []
        if kind in ("fixed", "fixed+fresh"):
            parts.append(Part("real", available, 0, count, count, "real"))
        if kind in ("fresh", "fixed+fresh"):
            # round 0 used the first slice
            parts.append(Part("real", available, n * count, count, count, "fresh"))
        return parts

    def check_available(self, available: int, rounds: int, size: int) -> None:
        """Refuse, before any training, a regime that needs more real records than there are."""
        need = self.real.n or 0
        if "fresh" in self.real.kind:
            need = (self.real.n or 0) * (rounds + 1)
        if need > available:
            raise UserError(
                "mixing.real.n",
                self.real.n,
                f"needs {need} real training records over {rounds} rounds "
                f"({self.real.kind}), and there are {available}; lower it, or use a larger corpus",
            )
        if self.real.n is None and size > available:
            raise UserError(
                "size", size, f"more real records than exist ({available}); lower it, or use a larger corpus"
            )
        if self.budget.kind != "grow" and not self.replacement and self.window == "none":
            count = len(self.real_parts(1, available)) * (self.real.n or available)
            if (self.budget.records(rounds) or 0) > count:
                raise UserError(
                    "mixing.budget.n",
                    self.budget.n,
                    f"more than the {count} records in reach; lower it or draw with replacement",
                )

    def plan(self, n: int, available: int, kept: dict[int, int]) -> list[Part]:
        """The shards of round n, given how many real records there are and how many records each past round kept."""
        real = self.real_parts(n, available)
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
                    n_real / value if value > 0 else np.inf,
                    n_synthetic / (1 - value) if value < 1 else np.inf,
                ]
                whole = int(min(limits))
            self._fit(real, round(value * whole), "real", n)
            self._fit(synthetic, whole - round(value * whole), "synthetic", n)
        elif self.by == "ratio":
            self._fit(synthetic, round((self.value or 0.0) * n_real), "synthetic", n)
        return [p for p in real + synthetic if p.take > 0]

    def _fit(self, parts: list[Part], count: int, side: str, n: int) -> None:
        """Scale the parts' counts to `count` in all, by largest remainders."""
        have = sum(p.take for p in parts)
        if count > have and not self.replacement:
            raise UserError(
                "mixing.value",
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
