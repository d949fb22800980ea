"""Arms compared over seeds: differences and trends, their intervals and verdicts.

    arms = Arms(folders)                                                       finished run directories
    a, b = (Value("diversity", {"mixing": m}) for m in ("accumulate", "replace"))
    arms.values(a)                                                             {0: 0.91, 1: 0.88, 2: 0.93}: one a seed
    measure(Contrast("replacing loses more", a, b), arms).verdict              "holds", "not shown" or "the opposite"

A `Study` is the same written down: the sweeps that make its arms, the lines (`Contrast`, `Trend`) that are tested, and
the panels of its figure. `genloss replicate NAME` runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from genloss.core.errors import UserError
from genloss.core.places import load_params
from genloss.core.plugin import flatten, plain
from genloss.observatory.results import Rounds, rounds_of

LEVEL = 0.05  # of a one-sided test over seeds
SEEDS = 3  # fewer are no claim
GREATER, SAME = "greater", "same"


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
    """`first` minus `second`, paired over seeds. kind greater: the claim is that it is above 0; same: that its interval
    lies within ±margin."""

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
    """Bars of `values` (a mean over seeds and its 95 % interval); with `rounds`, lines over rounds. `published`: the
    paper's numbers by the same names, drawn beside them on an axis of their own; only shapes compare."""

    title: str
    values: dict[str, Value]
    rounds: bool = False
    published: dict[str, float] = field(default_factory=dict)
    published_title: str = ""


@dataclass(frozen=True)
class Study:
    name: str  # also of its conf/experiment/NAME.yaml
    paper: str  # first author, year, arXiv id
    sweeps: tuple[tuple[str, ...], ...]  # overrides of each multirun; `seed` among them unless the experiment sweeps it
    lines: tuple[Statement, ...]
    panels: tuple[Panel, ...] = ()


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


# -- what is measured --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A line that was measured: a mean over seeds, its 95 % interval, a one-sided p, a verdict."""

    line: Statement
    mean: float
    low: float
    high: float
    p: float  # of a mean above 0
    seeds: int
    verdict: str


def measure(line: Statement, arms: Arms) -> Outcome:
    """Test a line over the seeds that all of its values have; UserError if they are fewer than SEEDS."""
    found = differences(line, arms) if isinstance(line, Contrast) else trends(line, arms)
    if len(found) < SEEDS:
        raise UserError("seed", sorted(found), f"are too few for {line.states!r}; run at least {SEEDS}")
    each = [found[seed] for seed in sorted(found)]
    mean, low, high = interval(each)
    p = chance(each)
    if isinstance(line, Contrast) and line.kind == SAME:
        verdict = "holds" if -line.margin <= low and high <= line.margin else "not shown"
        if low > line.margin or high < -line.margin:
            verdict = "the opposite"
    else:
        verdict = "holds" if p < LEVEL else "the opposite" if p > 1 - LEVEL else "not shown"
    return Outcome(line, mean, low, high, p, len(each), verdict)


def differences(line: Contrast, arms: Arms) -> dict[int, float]:
    """{seed: first minus second}, of the seeds that both have."""
    first, second = arms.values(line.first), arms.values(line.second)
    return {seed: first[seed] - second[seed] for seed in first.keys() & second.keys()}


def trends(line: Trend, arms: Arms) -> dict[int, float]:
    """{seed: Kendall's τ of y with x}, of the seeds that all values have."""
    from scipy.stats import kendalltau

    xs, ys = ([arms.values(v) for v in side] for side in (line.x, line.y))
    seeds = set.intersection(*(set(v) for v in (*xs, *ys)))
    return {s: float(kendalltau([x[s] for x in xs], [y[s] for y in ys]).statistic) for s in seeds}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, ends of its 95 % interval), Student's t over seeds."""
    from scipy import stats

    mean, error = float(np.mean(values)), float(stats.sem(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - reach, mean + reach


def chance(values: Sequence[float]) -> float:
    """One-sided p of the t test that their mean is above 0. Without spread there is nothing to test against: 0, 1/2 or
    1, by the sign of what all of them say."""
    from scipy import stats

    if np.ptp(values) == 0:
        return 0.5 - 0.5 * float(np.sign(np.mean(values)))
    return float(stats.ttest_1samp(values, 0.0, alternative="greater").pvalue)
