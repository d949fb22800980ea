"""Arms compared over seeds: differences and trends, their intervals and verdicts.

    arms = Arms(folders)                                                       finished run directories
    a, b = (Value("diversity", {"mixing": m}) for m in ("accumulate", "replace"))
    arms.values(a)                                                             {0: 0.91, 1: 0.88, 2: 0.93}: one a seed
    measure(Contrast("replacing loses more", a, b), arms).verdict              "holds", "not shown" or "the opposite"

The rule of every verdict: a line is decided if its two-sided p is below LEVEL, which is to say if its 1 - LEVEL
interval lies on one side of what is tested. `together` corrects the lines of a study by Holm's method (Scand. J.
Statist. 6, 1979), so that the chance of any false verdict in it is at most LEVEL; only what survives that is claimed.

    contrast, greater    Student's t of the paired differences over seeds, against 0
    contrast, same       two such tests, against the two ends of the margin (equivalence)
    trend                Kendall's tau, a mean over seeds; all orders of the arms are equally likely under the null, the
                         same order in every seed, since arms differ in more than x: n arms allow p >= 2/n!
    no spread            seeds that all say the same have no standard error: signs alone are counted, p = 2^(1-seeds)

A `Study` is the same written down: the sweeps that make its arms, the lines (`Contrast`, `Trend`) that are tested, and
the panels of its figure. `genloss replicate NAME` runs it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from genloss.core.errors import UserError
from genloss.core.places import load_params
from genloss.core.plugin import flatten, plain
from genloss.observatory.results import Rounds, rounds_of

LEVEL = 0.05  # two-sided, of one line; of all lines of a study together after Holm's correction
SEEDS = 3  # fewer are no claim
ORDERS = 7  # arms of a trend whose orders are all looked at; of more, a fixed random sample of as many orders
GREATER, SAME = "greater", "same"
HOLDS, OPPOSITE, OPEN = "holds", "the opposite", "not shown"


# -- what is stated ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """A number of every seed: `metric` of the arms that `where` selects, in round `round` (-1: the last).

    where: what `described` says of an arm, with the values that it must have. Arms that remain must differ in their
    seed alone.
    """

    metric: str
    where: dict[str, Any]
    round: int = -1


@dataclass(frozen=True)
class Contrast:
    """`first` minus `second`, paired over seeds. kind greater: the claim is that it is above 0; same: that it lies
    within ±margin."""

    states: str  # what the paper states, with its numbers
    first: Value
    second: Value
    kind: str = GREATER
    margin: float = 0.0


@dataclass(frozen=True)
class Trend:
    """y grows with x over arms (Kendall's τ, one a seed): the claim is that its mean over seeds is above 0."""

    states: str
    x: tuple[Value, ...]
    y: tuple[Value, ...]


Statement = Contrast | Trend


@dataclass(frozen=True)
class Panel:
    """Bars of `values` (a mean over seeds and its 95 % interval); with `rounds`, lines over rounds. `against`: of each
    seed it is drawn what they are above that value, so that what seeds differ in by themselves is no part of the
    interval. `published`: the paper's numbers by the same names, drawn beside them on an axis of their own; only shapes
    compare."""

    title: str
    values: dict[str, Value]
    rounds: bool = False
    against: Value | None = None
    published: dict[str, float] = field(default_factory=dict)
    published_title: str = ""


@dataclass(frozen=True)
class Study:
    name: str  # also of its conf/experiment/NAME.yaml
    paper: str  # first author, year, arXiv id
    sweeps: tuple[tuple[str, ...], ...]  # overrides of each multirun; `seed` among them unless the experiment sweeps it
    lines: tuple[Statement, ...]
    panels: tuple[Panel, ...] = ()
    looked: int = 0  # seeds of an earlier look, after which some lines got more: their p counts twice


# -- arms and their numbers --------------------------------------------------------------------------------------------


def described(cfg: DictConfig) -> dict[str, Any]:
    """What `where` may name of an arm: the dotted keys of its config, and each plug-in by the name of its class
    ("trainer": "Grpo", "recipe.teacher": "Program"), not by where that class lives. Three are known by the names that
    a user gives: "mixing", "recipe", and "curation", the curators' joined by "+" ("none": without)."""
    known: dict[str, Any] = {}
    for key, value in flatten(plain(cfg)):
        if key.endswith("._target_"):
            known[key.removesuffix("._target_")] = str(value).rpartition(".")[2]
        else:
            known[key] = value
    curation = "+".join(str(name) for name in cfg.curation) or "none"
    return known | {"curation": curation, "mixing": cfg.mixing.name, "recipe": cfg.recipe.name}


def fits(known: dict[str, Any], where: dict[str, Any]) -> bool:
    """Whether what `described` says of an arm has all values of `where`."""
    return all(_same(known.get(key), value) for key, value in where.items())


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return float(a) == float(b)
    return str(a) == str(b)


class Arms:
    """Finished run directories, selected by what `described` says of them."""

    def __init__(self, folders: Sequence[Path]):
        self.known = [(described(load_params(f / "params.yaml")), rounds_of(f)) for f in dict.fromkeys(folders)]

    def of(self, where: dict[str, Any]) -> dict[int, Rounds]:
        """{seed: {round: metrics}}. UserError if nothing is selected, or two arms of one seed."""
        found: dict[int, Rounds] = {}
        for known, rounds in self.known:
            if fits(known, where):
                if known["seed"] in found:
                    raise UserError("where", where, "selects two arms of one seed; name what tells them apart")
                found[known["seed"]] = rounds
        if not found:
            raise UserError("where", where, "selects no arm of the study's sweeps")
        return found

    def values(self, value: Value) -> dict[int, float]:
        """{seed: number}. UserError if the round of an arm has no such metric."""
        found = {}
        for seed, rounds in self.of(value.where).items():
            n = max(rounds) if value.round < 0 else value.round
            if value.metric not in rounds.get(n, {}):
                raise UserError("metric", value.metric, f"is not in round {n} of {value.where}")
            found[seed] = rounds[n][value.metric]
        return found

    def bars(self, panel: Panel) -> dict[str, list[float]]:
        """The numbers of each of its values, one a seed."""
        base = self.values(panel.against) if panel.against else {}
        found = {}
        for name, value in panel.values.items():
            known = self.values(value)
            if panel.against:
                known = {seed: number - base[seed] for seed, number in known.items() if seed in base}
            found[name] = list(known.values())
        return found

    def lines(self, panel: Panel) -> dict[str, dict[int, list[float]]]:
        """{name: {round: one number a seed}}, over the rounds that all seeds have."""
        base = self.of(panel.against.where) if panel.against else {}
        found = {}
        for name, value in panel.values.items():
            runs = {seed: run for seed, run in self.of(value.where).items() if not base or seed in base}
            own = set.intersection(*(_rounds_with(value.metric, run) for run in runs.values()))
            if panel.against:
                own = own.intersection(*(_rounds_with(panel.against.metric, base[seed]) for seed in runs))
            found[name] = {
                n: [
                    run[n][value.metric] - (base[seed][n][panel.against.metric] if panel.against else 0)
                    for seed, run in runs.items()
                ]
                for n in sorted(own)
            }
        return found


def _rounds_with(metric: str, run: Rounds) -> set[int]:
    return {n for n, known in run.items() if metric in known}


# -- what is measured --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A line that was measured: a mean over seeds, its 1 - LEVEL interval (nan where seeds have no spread), a two-sided
    p, and p after the correction over a study's lines (`together`; until then the same)."""

    line: Statement
    mean: float
    low: float
    high: float
    p: float
    seeds: int
    corrected: float

    @property
    def verdict(self) -> str:
        """Of this line alone."""
        return self._decided(self.p)

    @property
    def survives(self) -> str:
        """Of the line among all lines of its study."""
        return self._decided(self.corrected)

    def _decided(self, p: float) -> str:
        if p >= LEVEL:
            return OPEN
        if isinstance(self.line, Contrast) and self.line.kind == SAME:
            return HOLDS if abs(self.mean) < self.line.margin else OPPOSITE
        return HOLDS if self.mean > 0 else OPPOSITE


def measure(line: Statement, arms: Arms) -> Outcome:
    """Test a line over the seeds that all of its values have; UserError if they are fewer than SEEDS."""
    if isinstance(line, Trend):
        x, y = series(line, arms)
        _enough(line, list(x))
        mean, reach, p = trend(list(x.values()), list(y.values()))
        return Outcome(line, mean, max(-1.0, mean - reach), min(1.0, mean + reach), p, len(x), p)
    found = differences(line, arms)
    _enough(line, list(found))
    return outcome(line, [found[seed] for seed in sorted(found)])


def outcome(line: Contrast, each: Sequence[float]) -> Outcome:
    """Test a line on its differences, one a seed."""
    mean, low, high = interval(each)
    p = chance(each)
    if line.kind == SAME:  # against the nearer end of the margin: within it, the other end is farther
        p = chance([abs(mean) + (v - mean) - line.margin for v in each])
    if flat(each):
        low = high = float("nan")
    return Outcome(line, mean, low, high, p, len(each), p)


def together(outcomes: Sequence[Outcome], looked: int = 0) -> list[Outcome]:
    """The outcomes of a study with p corrected: Bonferroni over the looks at a line (two if it has more seeds than the
    `looked` of an earlier one), then Holm over the lines."""
    p = [o.p * (2 if 0 < looked < o.seeds else 1) for o in outcomes]
    return [replace(o, corrected=corrected) for o, corrected in zip(outcomes, holm(p), strict=True)]


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's step-down method: the chance of any false rejection among them is at most LEVEL."""
    found, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        found[i] = least
    return found


def _enough(line: Statement, seeds: list[int]) -> None:
    if len(seeds) < SEEDS:
        raise UserError("seed", sorted(seeds), f"are too few for {line.states!r}; run at least {SEEDS}")


def differences(line: Contrast, arms: Arms) -> dict[int, float]:
    """{seed: first minus second}, of the seeds that both have."""
    first, second = arms.values(line.first), arms.values(line.second)
    return {seed: first[seed] - second[seed] for seed in first.keys() & second.keys()}


def series(line: Trend, arms: Arms) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    """({seed: x of every arm}, {seed: y}), of the seeds that all values have."""
    xs, ys = ([arms.values(v) for v in side] for side in (line.x, line.y))
    seeds = sorted(set.intersection(*(set(v) for v in (*xs, *ys))))
    return {s: [x[s] for x in xs] for s in seeds}, {s: [y[s] for y in ys] for s in seeds}


def trend(x: Sequence[Sequence[float]], y: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """(mean of Kendall's tau-b over seeds, how far from it the interval reaches, two-sided p) of x, y [seeds, arms].

    The interval is the test turned round: it contains 0 exactly where p >= LEVEL. A seed whose x or y are all equal
    has tau = 0."""
    signs = [[np.sign(np.subtract.outer(v, v)) for v in side] for side in (x, y)]
    scales = [max(1.0, float(np.sqrt((a**2).sum() * (b**2).sum()))) for a, b in zip(*signs, strict=True)]
    o = _orders(len(x[0]))
    null = np.mean(
        [
            np.einsum("oij,ij->o", a[o[:, :, None], o[:, None, :]], b) / scale
            for a, b, scale in zip(*signs, scales, strict=True)
        ],
        axis=0,
    ).round(12)
    mean, far = float(null[0]), np.sort(np.abs(null))[::-1]  # the first order is that of the arms themselves
    p = float((far >= abs(mean)).mean())
    # the least certain value that the test would not reject: as far out as LEVEL of the orders, or more, reach
    reach = float(next(v for v in np.unique(far)[::-1] if (far >= v).mean() >= LEVEL))
    return mean, reach, p


@cache
def _orders(arms: int) -> np.ndarray:
    """int [orders, arms]: all orders of the arms, or a fixed random sample of them; the first is 0, 1, 2, ..."""
    if arms <= ORDERS:
        return np.array(list(itertools.permutations(range(arms))))
    rng = np.random.default_rng(0)
    return np.stack([np.arange(arms), *(rng.permutation(arms) for _ in range(math.factorial(ORDERS) - 1))])


def flat(values: Sequence[float] | np.ndarray) -> bool:
    """Whether they are all the same, but for rounding."""
    return float(np.ptp(values)) <= 1e-12 * max(1.0, float(np.abs(values).max()))


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """(mean, ends of its 1 - LEVEL interval), Student's t over seeds; of one seed the ends are nan."""
    from scipy.special import stdtrit  # Student's t; scipy.stats, which has it too, takes a second to import

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    reach = float(stdtrit(len(values) - 1, 1 - LEVEL / 2) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - reach, mean + reach


def chance(values: Sequence[float] | np.ndarray) -> float:
    """Two-sided p of the t test that their mean is 0; without spread, of their signs."""
    from scipy import stats

    if flat(values):
        return 1.0 if abs(np.mean(values)) <= 1e-12 else 2.0 ** (1 - len(values))
    return float(stats.ttest_1samp(values, 0.0).pvalue)
