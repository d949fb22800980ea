"""Curves over rounds: the four shapes that collapse has in theory, fitted by least squares.

    fit("saturating", [0, 1, 2, 3], [1.0, 2.0, 2.25, 2.36])(10)          what it says of round 10
    best([0, 1, 2, 3, 4, 5], losses)                                     the shape that predicts held-out rounds best

Each is a + b g(n; c): linear in a and b; c is found by a search in one dimension:

    linear       g = n                      risk of least squares under replace (Gerstgrasser et al. 2024)
    saturating   g = 1 + 1/4 + ... + 1/n²   the same under accumulate: a bound of π²/6
    geometric    g = c^n                    diversity under replace; what a share of fresh data comes to
    power        g = n^c                    rates between these (Xu et al. 2025)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Shape = Callable[[np.ndarray, float], np.ndarray]


def _saturating(n: np.ndarray, c: float) -> np.ndarray:
    sums = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(n.max(initial=0)) + 1) ** 2)])
    return sums[n.astype(int)]


SHAPES: dict[str, Shape] = {
    "linear": lambda n, c: n.astype(float),
    "saturating": _saturating,
    "geometric": lambda n, c: c**n,
    "power": lambda n, c: n.astype(float) ** c,
}
# least and greatest c, below and above those that make a line of a shape
SEARCHED = {"geometric": ((0.05, 0.998), (1.002, 2.0)), "power": ((0.1, 0.95), (1.05, 4.0))}
LEAST = {"linear": 3, "saturating": 3, "geometric": 4, "power": 4}  # points of a fit: one more than it has parameters
GRID = 24  # values of c that are tried in each range before the best is refined


@dataclass(frozen=True)
class Curve:
    """a + b g(n; c) of a shape; `error`: the mean squared distance of the points that it was fitted to."""

    shape: str
    a: float
    b: float
    c: float
    error: float

    def __call__(self, rounds: int | Sequence[int] | np.ndarray) -> np.ndarray:
        """Its values at rounds, float [rounds], or one number; not finite where they are too large."""
        n = np.asarray(rounds)
        with np.errstate(over="ignore", invalid="ignore"):
            return self.a + self.b * SHAPES[self.shape](np.atleast_1d(n), self.c).reshape(n.shape)


def fit(shape: str, rounds: Sequence[int] | np.ndarray, values: Sequence[float] | np.ndarray) -> Curve:
    """The curve of a shape nearest to values [n] at rounds [n], whole numbers from 0 on, LEAST of them or more."""
    n, y = np.asarray(rounds), np.asarray(values, dtype=float)
    found = [fit_at(shape, n, y, 0.0)] if shape not in SEARCHED else []
    for low, high in SEARCHED.get(shape, ()):
        grid = np.linspace(low, high, GRID)
        errors = [fit_at(shape, n, y, c).error for c in grid]
        at = int(np.argmin(errors))
        found.append(_refined(shape, n, y, grid[max(at - 1, 0)], grid[min(at + 1, GRID - 1)]))
    return min(found, key=lambda curve: curve.error)


def fit_at(shape: str, n: np.ndarray, y: np.ndarray, c: float) -> Curve:
    """The same with c given. Where its numbers are too large to be computed with, the error is infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        g = SHAPES[shape](n, c)
        centred = g - g.mean()
        scale = float(centred @ centred)
        b = float(centred @ y) / scale if scale > 0 else 0.0
        a = float(y.mean() - b * g.mean())
        error = float(((a + b * g - y) ** 2).mean())
    return Curve(shape, a, b, c, error if math.isfinite(error) else math.inf)


def _refined(shape: str, n: np.ndarray, y: np.ndarray, low: float, high: float) -> Curve:
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda c: fit_at(shape, n, y, c).error, bounds=(low, high), method="bounded", options={"xatol": 1e-9}
    )
    return fit_at(shape, n, y, float(found.x))


def ahead(shape: str, n: np.ndarray, y: np.ndarray, first: int) -> float:
    """Mean squared error of rounds that a fit has not seen (rolling origin): of every later part, fitted to what comes
    before it, `first` points or more."""
    with np.errstate(over="ignore", invalid="ignore"):
        errors = [((fit(shape, n[:k], y[:k])(n[k:]) - y[k:]) ** 2).mean() for k in range(first, len(n))]
    return float(np.nan_to_num(np.mean(errors), nan=math.inf, posinf=math.inf))


def best(rounds: Sequence[int] | np.ndarray, values: Sequence[float] | np.ndarray) -> Curve:
    """The shape that predicts held-out rounds best, fitted to all of them. All shapes are held against the same
    rounds. ValueError where there are fewer than 4."""
    n, y = np.asarray(rounds), np.asarray(values, dtype=float)
    if len(n) < min(LEAST.values()) + 1:
        raise ValueError("at least 4 rounds are needed")
    first = max(m for m in LEAST.values() if m < len(n))
    able = [shape for shape in SHAPES if LEAST[shape] <= first]
    errors = {shape: ahead(shape, n, y, first) for shape in able}
    least = min(errors.values())
    # of shapes that are equally good the first: the simplest
    return fit(next(s for s in able if errors[s] <= least * (1 + 1e-6) + 1e-20), n, y)
