"""Optimal mixing: how much of the loss fresh real records should get, and how many of them to buy.

    limit(0.618, real=50, synthetic=50)                          drift that a constant weight ends in
    weight(real=50, synthetic=50)                                the weight that makes it smallest: 1/golden ratio
    optimal(300, cost_real=1, cost_synthetic=0.1, rounds=20)     the best split of a budget, and a weight for each round

The closed forms are of He, Xu & Cheng (arXiv 2502.18049): a mean is estimated each round from fresh real records, of
which the loss has the share w, and from records of the last model. At the optimum w*, limit(w*) real / variance = w*.
The best weights of a finite run are larger at first and fall to w*: they are the gains of a Kalman filter, whose past
is the last model. `schedule` finds them for any regime and law, from the recursion of pairs.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from genloss.core.errors import require
from genloss.mix import Mixing, Real, Regime
from genloss.theory.pairs import Law, Pairs, Prediction, gaussian, plans

GRID = 16  # candidates at each refinement of `optimal`


@dataclass(frozen=True)
class Optimum:
    """A split of a round's budget and what it gives. weights: of rounds 1, 2, ...; predictions: of rounds 0, 1, ..."""

    real: int
    synthetic: int
    weights: list[float]
    predictions: list[Prediction]


def limit(w: float, real: float, synthetic: float, variance: float = 1.0) -> float:
    """Drift after many rounds with the constant weight w > 0 on `real` fresh records."""
    return variance * (w**2 / real + (1 - w) ** 2 / synthetic) / (1 - (1 - w) ** 2)


def weight(real: float, synthetic: float) -> float:
    """The weight with the smallest `limit`, (sqrt(c^2 + 4 c) - c) / 2 for c = real / synthetic, without
    cancellation."""
    c = real / synthetic
    return 2 / (1 + (1 + 4 / c) ** 0.5)


def schedule(
    mixing: Mixing, rounds: int, available: int, kept: int | Callable[[int], int], law: Law
) -> tuple[list[float], list[Prediction]]:
    """Weights of rounds 1..`rounds`, each with the smallest drift that the past allows, and the predictions with them.

    mixing: any with by=weight; its value is not used. Given the past, the drift is quadratic in the weight (also when
    a budget draws how many records are real), so three values give its minimum exactly."""
    require(mixing.by == "weight", "by", mixing.by, "weight, since a schedule gives the weights")
    counts = {n: kept if isinstance(kept, int) else kept(n) for n in range(1, rounds + 1)}
    pairs = Pairs(plans(Regime((mixing,) * (rounds + 1)), available, counts), counts, [law] * (rounds + 1))
    weights: list[float] = []
    predictions = [pairs.fit(0, mixing)]
    for n in range(1, rounds + 1):
        none, half, full = (pairs.fit(n, replace(mixing, value=w)).drift for w in (0.0, 0.5, 1.0))
        bend = 2 * (full + none - 2 * half)
        # a line has its minimum at an end; a drift that the weight does not change asks for real records alone
        best = 0.5 + (none - full) / (2 * bend) if bend > 0 else float(full <= none)
        weights.append(min(1.0, max(0.0, best)))
        predictions.append(pairs.fit(n, replace(mixing, value=weights[-1])))
    return weights, predictions


def optimal(budget: float, cost_real: float, cost_synthetic: float, rounds: int, law: Law | None = None) -> Optimum:
    """How many fresh real records to buy a round, the rest of the budget going to records of the last model, so that
    the drift of round `rounds` is smallest under the best weights. law: by default a mean with known variance."""
    for key, cost in (("cost_real", cost_real), ("cost_synthetic", cost_synthetic)):
        require(cost > 0, key, cost, "above 0")
    require(budget >= cost_real, "budget", budget, f"at least one real record, {cost_real}")
    require(rounds >= 1, "rounds", rounds, "at least 1")

    def spend(real: int) -> Optimum:
        mixing = Mixing(real=Real("fresh", real), by="weight", value=1.0)
        synthetic = int((budget - real * cost_real) / cost_synthetic)
        weights, predictions = schedule(mixing, rounds, real * (rounds + 1), synthetic, law or gaussian("known"))
        return Optimum(real, synthetic, weights, predictions)

    tried: dict[int, Optimum] = {}
    low, high = 1, int(budget / cost_real)
    while True:
        step = max(1, (high - low) // GRID)
        grid = [*range(low, high, step), high]
        tried |= {real: spend(real) for real in grid if real not in tried}
        best = min(grid, key=lambda real: tried[real].predictions[-1].drift)
        if step == 1:
            return tried[best]
        low, high = max(low, best - step), min(high, best + step)


def golden(budget: float, cost_real: float, cost_synthetic: float, rounds: int) -> int:
    """`genloss golden`: the best split of a budget, and the weights round by round."""
    best = optimal(budget, cost_real, cost_synthetic, rounds)
    print(f"{best.real} fresh real and {best.synthetic} synthetic records a round (mixing.real.n, recipe.n)")
    if best.synthetic:
        constant = weight(best.real, best.synthetic)
        print(f"one weight of the real part for all rounds (mixing.value): {constant:.4f}; or round by round:\n")
        print("round  weight  squared error of the mean, in variances of a record")
    for n, (share, prediction) in enumerate(zip(best.weights, best.predictions[1:], strict=True), 1):
        print(f"{n:5d}  {share:6.4f}  {prediction.drift:.6g}")
    return 0
