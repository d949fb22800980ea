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

The mixed set is a folder of Parquet shards, one for each origin. A shard that is used whole is the same file as in the
round that made it: accumulating n rounds stores no byte twice.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.errors import UserError, one_of, require
from genloss.core.files import link
from genloss.core.hashes import canonical
from genloss.core.seeds import generator
from genloss.domains.lab.chains import is_chains
from genloss.domains.lab.mix import mix_chains

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
class Mixing:
    """See the module's docstring. `name` is the regime's name in tables, tags and folders."""

    name: str = "custom"
    real: Real = field(default_factory=Real)
    window: Any = "last"  # none, last, all, or a number of rounds
    synthetic: Synthetic = field(default_factory=Synthetic)
    by: str = "counts"
    value: float | None = None
    budget: Budget = field(default_factory=Budget)
    replacement: bool = False  # draw the budget with replacement (bootstrap)
    init: str = "cold"  # cold: train from scratch (or base); warm: continue from model n-1

    def __post_init__(self) -> None:
        if not (isinstance(self.window, int) and not isinstance(self.window, bool)):
            one_of("window", str(self.window), ("none", "last", "all", "a number of rounds"))
        else:
            require(self.window >= 1, "window", self.window, "at least 1 round; none leaves synthetic data out")
        one_of("by", self.by, BY)
        one_of("init", self.init, ("cold", "warm"))
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

    def check(self, available: int, rounds: int, size: int) -> None:
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

    # -- the shards -------------------------------------------------------------------------------------------------

    def mix(self, n: int, data: Path, kept: dict[int, Path], out: Path, seed: int) -> dict[str, Any]:
        """Write round n's training set to `out` as shards plus mix.json; returns requested and realised counts.

        kept: the kept.parquet of each round in the window.
        """
        counts = {j: records.read(path, columns=["id"]).num_rows for j, path in kept.items()}
        real = records.read(data / "train.parquet", columns=["id"])
        available = real.num_rows
        parts = self.plan(n, available, counts)
        if not parts:
            raise UserError("mixing", self.name, f"leaves nothing to train on in round {n}: no records were generated")
        rng = generator(seed, "mix")
        pool = sum(p.take for p in parts)
        total = self.budget.records(n)
        if is_chains(real.schema):
            sources = {"real": data / "train.parquet"} | {str(j): path for j, path in kept.items()}
            return self._entered(out, mix_chains(self, n, sources, parts, out, rng), total, pool, n)
        # by=fraction has sized the parts to the budget already: each is drawn on its own
        bootstrap = self.replacement and self.by == "fraction" and n > 0
        rows = [self._rows(p, rng, bootstrap) for p in parts]
        if total is not None and self.by != "fraction" and n > 0:
            if total > pool and not self.replacement:
                raise UserError(
                    "mixing.budget.n",
                    self.budget.n,
                    f"asks for {total} records in round {n}, and {pool} are in reach; "
                    "generate or keep more, lower it, or set mixing.replacement=true",
                )
            drawn = rng.integers(0, pool, total) if self.replacement else rng.permutation(pool)[:total]
            drawn.sort()
            edges = np.cumsum([0, *(p.take for p in parts)])
            rows = [
                (np.arange(p.available) if r is None else r)[drawn[(drawn >= lo) & (drawn < hi)] - lo]
                for p, r, lo, hi in zip(parts, rows, edges[:-1], edges[1:], strict=True)
            ]
        shards: list[dict[str, Any]] = []
        out.mkdir(parents=True, exist_ok=True)
        for part, chosen in zip(parts, rows, strict=True):
            if chosen is not None and len(chosen) == 0:
                continue
            source = data / "train.parquet" if part.source == "real" else kept[int(part.source)]
            target = out / f"{len(shards):02d}-{part.name}.parquet"
            if chosen is None:
                self.whole(source, target)
                count = part.available
            else:
                records.write(records.read(source).take(pa.array(chosen)), target)
                count = len(chosen)
            shards.append(
                {
                    "file": target.name,
                    "origin": records.REAL if part.source == "real" else records.SYNTHETIC,
                    "generation": 0 if part.source == "real" else int(part.source),
                    "requested": part.take,
                    "realised": count,
                    "weight": 1.0,
                }
            )
        if self.by == "weight" and n > 0:
            self._weigh(shards)
        return self._entered(out, shards, total, pool, n)

    @staticmethod
    def _entered(out: Path, shards: list[dict[str, Any]], total: int | None, pool: int, n: int) -> dict[str, Any]:
        result = {"shards": shards, "requested": total if total is not None and n > 0 else pool}
        (out / "mix.json").write_text(canonical(result), encoding="utf-8")
        return result

    def _weigh(self, shards: list[dict[str, Any]]) -> None:
        """Weights with which the real part gets its share of the loss, from what was realised: a budget draws by chance."""
        counts = {o: sum(s["realised"] for s in shards if s["origin"] == o) for o in (records.REAL, records.SYNTHETIC)}
        if not all(counts.values()):
            return  # one side alone is all of the loss
        share = {records.REAL: self.value or 0.0, records.SYNTHETIC: 1 - (self.value or 0.0)}
        for shard in shards:
            shard["weight"] = share[shard["origin"]] * sum(counts.values()) / counts[shard["origin"]]

    @staticmethod
    def _rows(part: Part, rng: np.random.Generator, replacement: bool) -> np.ndarray | None:
        """Row numbers of a part, all within its slice, or None for the whole file."""
        if replacement or part.take > part.size:
            return part.first + np.sort(rng.integers(0, part.size, part.take))
        if part.take < part.size:
            return part.first + np.sort(rng.permutation(part.size)[: part.take])
        return None if part.size == part.available else np.arange(part.first, part.first + part.size)

    @staticmethod
    def whole(source: Path, target: Path) -> None:
        try:
            link(source, target)
        except OSError:
            shutil.copyfile(source, target)
