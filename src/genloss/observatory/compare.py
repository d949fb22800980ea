"""Comparisons of arms over seeds: differences and trends, with intervals and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from genloss.core.errors import UserError

LEVEL = 0.05  # of a one-sided test over seeds
SEEDS = 3  # fewer are no claim
GREATER, SAME = "greater", "same"


@dataclass(frozen=True)
class Value:
    """A number of every seed: `metric` of the arms that `where` selects, in round `round` (-1: the last).

    where: dotted keys of the config with their values. `curation` is the curators' names joined by "+" ("none": without),
    `mixing` and `recipe` are names. Arms that remain must differ in their seed alone.
    """

    metric: str
    where: dict[str, Any]
    round: int = -1


@dataclass(frozen=True)
class Contrast:
    """`first` minus `second`, paired over seeds. kind greater: the claim is that it is above 0; same: that its interval lies
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


@dataclass(frozen=True)
class Panel:
    """Bars of `values` (a mean over seeds and its 95 % interval); with `rounds`, lines over rounds. `published`: the paper's
    numbers by the same names, drawn beside them on an axis of their own; only shapes compare."""

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
    lines: tuple[Contrast | Trend, ...]
    panels: tuple[Panel, ...] = ()

    @property
    def names(self) -> set[str]:
        return {self.name, self.paper.split()[0].strip(",").lower()}


@dataclass(frozen=True)
class Outcome:
    """A line that was measured: a mean over seeds, its 95 % interval, a one-sided p, a verdict."""

    line: Contrast | Trend
    mean: float
    low: float
    high: float
    p: float
    seeds: int
    verdict: str


class Arms:
    """Finished run directories, selected by their params."""

    def __init__(self, folders: Sequence[Path]):
        from genloss.core.places import load_params
        from genloss.core.plugin import flatten, plain
        from genloss.observatory.results import rounds_of

        self.params: list[dict[str, Any]] = []
        self.rounds: list[dict[int, dict[str, float]]] = []
        for folder in dict.fromkeys(folders):
            cfg = load_params(folder / "params.yaml")
            known = dict(flatten(plain(cfg))) | {
                "curation": "+".join(str(k) for k in cfg.curation) or "none",
                "mixing": cfg.mixing.name,
                "recipe": cfg.recipe.name,
            }
            self.params.append(known)
            self.rounds.append(rounds_of(folder))

    def of(self, where: dict[str, Any]) -> dict[int, dict[int, dict[str, float]]]:
        """{seed: {round: metrics}}."""
        found: dict[int, dict[int, dict[str, float]]] = {}
        for params, rounds in zip(self.params, self.rounds, strict=True):
            if all(_same(params.get(key), value) for key, value in where.items()):
                if params["seed"] in found:
                    raise UserError("where", where, "selects two arms of one seed; name what tells them apart")
                found[params["seed"]] = rounds
        if not found:
            raise UserError("where", where, "selects no arm of the study's sweeps")
        return found

    def values(self, value: Value) -> dict[int, float]:
        """{seed: number}."""
        found = {}
        for seed, rounds in self.of(value.where).items():
            n = max(rounds) if value.round < 0 else value.round
            if value.metric not in rounds.get(n, {}):
                raise UserError("metric", value.metric, f"is not in round {n} of {value.where}")
            found[seed] = rounds[n][value.metric]
        return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return float(a) == float(b)
    return str(a) == str(b)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, ends of its 95 % interval), Student's t over seeds."""
    from scipy import stats

    mean, error = float(np.mean(values)), float(stats.sem(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - reach, mean + reach


def judge(line: Contrast | Trend, arms: Arms) -> Outcome:
    from scipy import stats

    if isinstance(line, Contrast):
        first, second = arms.values(line.first), arms.values(line.second)
        seeds = sorted(first.keys() & second.keys())
        each = [first[s] - second[s] for s in seeds]
    else:
        xs, ys = ([arms.values(v) for v in side] for side in (line.x, line.y))
        seeds = sorted(set.intersection(*(set(v) for v in (*xs, *ys))))
        each = [float(stats.kendalltau([x[s] for x in xs], [y[s] for y in ys]).statistic) for s in seeds]
    if len(seeds) < SEEDS:
        raise UserError("seed", seeds, f"are too few for {line.states!r}; run at least {SEEDS}")
    mean, low, high = interval(each)
    if np.ptp(each) == 0:  # no spread to test against: all seeds say exactly the same
        p = 0.5 - 0.5 * float(np.sign(mean))
    else:
        p = float(stats.ttest_1samp(each, 0.0, alternative="greater").pvalue)
    if isinstance(line, Contrast) and line.kind == SAME:
        verdict = "holds" if -line.margin <= low and high <= line.margin else "not shown"
        if low > line.margin or high < -line.margin:
            verdict = "the opposite"
    else:
        verdict = "holds" if p < LEVEL else "the opposite" if p > 1 - LEVEL else "not shown"
    return Outcome(line, mean, low, high, p, len(seeds), verdict)
