"""What a replication case is, and how a number is taken from every chain of its runs.

A case is a published result: an experiment of conf/experiment/, its arms, and checks. A check sets a prediction, which
theory gives, against what the chains of the arms say.

    Check("E v of replace, n = 10", "(9/10)^6", 0.9**6, mean("replace", 5, "diversity"))

`mean`, `spread`, `slope` ... are functions of an arm, rounds and a metric's name; each gives the function that takes
the number of every chain from finished `Results`; the scoreboard takes their mean and its standard error.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from genloss.core.places import load_params
from genloss.domains.lab import Lab, Parameters, load
from genloss.experiment import Experiment
from genloss.observatory.results import metrics_of

CLAIM = "claim"  # must hold
WRONG = "wrong"  # another regime's prediction, or a misread paper: must not hold, or the check has no power
READING = "reading"  # another reading, or an approximation: the table says whether it holds too

Sample = np.ndarray  # float [chains], independent of one another; their mean is what is measured


@dataclass(frozen=True)
class Check:
    """One line of the scoreboard."""

    states: str  # what the paper says, or what this line holds against it
    formula: str  # of the prediction
    expected: float | Callable[[Results], float]
    measured: Callable[[Results], Sample]
    kind: str = CLAIM


@dataclass(frozen=True)
class Case:
    name: str  # also of its conf/experiment/NAME.yaml
    paper: str  # first author, year, arXiv id
    where: str  # in the paper
    arms: dict[str, tuple[str, ...]]  # overrides of the experiment
    checks: Callable[[], list[Check]]  # a function, so that the list of cases needs no theory

    @property
    def names(self) -> set[str]:
        """What it answers to: its own name, that name's first word (`mad`), the paper's first author."""
        return {self.name, self.name.split("_")[0], self.paper.split()[0].strip(",").lower()}


class Results:
    """The finished arms of a case."""

    def __init__(self, folders: dict[str, Path]):
        self.folders = folders
        self._metrics: dict[tuple[str, int], dict[str, float]] = {}

    def metrics(self, arm: str, n: int) -> dict[str, float]:
        if (arm, n) not in self._metrics:
            self._metrics[arm, n] = metrics_of(self.folders[arm] / "rounds" / f"{n:02d}")
        return self._metrics[arm, n]

    def theory(self, arm: str, n: int, name: str) -> float:
        return self.metrics(arm, n)[f"theory/{name}"]

    @cached_property
    def _domains(self) -> dict[str, Lab]:
        return {arm: self._domain(folder) for arm, folder in self.folders.items()}

    def _domain(self, folder: Path) -> Lab:
        domain = Experiment(load_params(folder / "params.yaml")).domain
        assert isinstance(domain, Lab)
        return domain

    def model(self, arm: str, n: int) -> Parameters:
        """The parameters of all chains, by name: [chains, ...]."""
        return load(self.folders[arm] / "rounds" / f"{n:02d}" / "model" / "model.safetensors")

    def truth(self, arm: str) -> Parameters:
        """What is fixed about the arm's real world, by name."""
        return load(self.folders[arm] / "data" / "truth.safetensors")

    def chains(self, arm: str, n: int, name: str) -> np.ndarray:
        """What the domain measures, of every chain: [chains]."""
        return self._domains[arm].measure(self.model(arm, n), self.truth(arm))[name]


# -- ways to measure and to expect -------------------------------------------------------------------------------------


def mean(arm: str, n: int, name: str, scale: float = 1.0) -> Callable[[Results], Sample]:
    return lambda r: r.chains(arm, n, name) * scale


def theory(arm: str, n: int, name: str, scale: float = 1.0) -> Callable[[Results], float]:
    """What the engine said when the arm ran (genloss.theory)."""
    return lambda r: r.theory(arm, n, name) * scale


def second(arm: str, n: int) -> Callable[[Results], Sample]:
    """E mu^2 + E v of a Gaussian arm: what the conservation law is about."""
    return lambda r: r.chains(arm, n, "diversity") + r.chains(arm, n, "drift")


def spread(arm: str, n: int, name: str) -> Callable[[Results], Sample]:
    """The variance over chains, as the mean of their squared distances from their mean."""

    def measured(r: Results) -> Sample:
        values = r.chains(arm, n, name)
        return (values - values.mean()) ** 2 * len(values) / (len(values) - 1)

    return measured


def weights(x: Sequence[float]) -> list[float]:
    """With which values at x add up to the slope of their least-squares line."""
    centred = [a - sum(x) / len(x) for a in x]
    return [a / sum(b * b for b in centred) for a in centred]


def total(terms: Iterable[np.ndarray]) -> np.ndarray:
    return functools.reduce(operator.add, terms)


def _line(r: Results, arm: str, rounds: Sequence[int], name: str) -> np.ndarray:
    return total(w * r.chains(arm, n, name) for w, n in zip(weights(rounds), rounds, strict=True))


def slope(arm: str, rounds: Sequence[int], name: str) -> Callable[[Results], Sample]:
    """Of the line through every chain's values over rounds."""
    return lambda r: _line(r, arm, rounds, name)


def bend(arm: str, early: Sequence[int], late: Sequence[int], name: str) -> Callable[[Results], Sample]:
    """By how much the late slope exceeds the early one."""
    return lambda r: _line(r, arm, late, name) - _line(r, arm, early, name)


def log_slope_of(values: Sequence[float], rounds: Sequence[int]) -> float:
    """Of log value over log of the number of fits."""
    fits = [math.log(n + 1) for n in rounds]
    return sum(w * math.log(v) for w, v in zip(weights(fits), values, strict=True))


def log_slope(arm: str, rounds: Sequence[int], name: str) -> Callable[[Results], Sample]:
    """The same of the means over chains; every chain adds what it moves that by, the logarithm being linear about
    them."""

    def measured(r: Results) -> Sample:
        found = [r.chains(arm, n, name) for n in rounds]
        means = [float(v.mean()) for v in found]
        ws = weights([math.log(n + 1) for n in rounds])
        moved = total(w * (v / m - 1) for w, v, m in zip(ws, found, means, strict=True))
        return log_slope_of(means, rounds) + moved

    return measured
