"""Linear regression: accumulating bounds the error that replacing lets grow (Gerstgrasser et al. 2024, arXiv
2404.01413).

    genloss run -m domain=regression mixing=replace,accumulate rounds=10
    genloss run -m domain=regression mixing=accumulate domain.design=shared,fresh rounds=10
    genloss run domain=regression mixing=one_shot_mix rounds=1 domain.misalignment=1  # a wrong labeller
    genloss run domain=regression model.ridge=0.1

A point is (x, y) with x ~ N(0, I) and y = <w*, x> + noise, |w*| = 1. A model is w; its records have the noise of the
real ones. The paper counts models from 1, rounds count from 0: its n is round n - 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genloss.core.capabilities import able
from genloss.core.contracts import Experiment, Fit
from genloss.core.errors import UserError, one_of, require
from genloss.core.plugin import without_effect
from genloss.core.seeds import seed_of
from genloss.domains.lab import Lab, LabModel, Parameters, in_blocks, load
from genloss.domains.lab.draw import Draw
from genloss.generate import Request

DESIGNS = ("shared", "fresh")
ROWS = 32  # slots that enter the normal equations together


@dataclass
class LinearModel(LabModel):
    """Least squares without an intercept; with ridge > 0, ridge |w|^2 is added to the mean squared error (the penalty a
    point). ridge_points: how many points the sum of penalties counts, if not those that are trained on: of what a
    curator selects from n generated points, the penalty a generated point is `ridge_points=n`."""

    ridge: float = 0.0
    ridge_points: int | None = None

    def __post_init__(self) -> None:
        require(self.ridge >= 0, "ridge", self.ridge, "at least 0 (0: least squares)")
        counted(self.ridge_points)

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        if self.ridge == 0:
            without_effect(self, ["ridge_points"], "with ridge=0")


def counted(ridge_points: int | None) -> None:
    """Refuse a count of no points."""
    require(ridge_points is None or ridge_points >= 1, "ridge_points", ridge_points, "at least 1, or null")


def normal_equations(
    points: np.ndarray, weights: np.ndarray, ridge: float, width: int, ridge_points: int | None = None
) -> np.ndarray:
    """Every chain's w [chains, width] of weighted ridge regression of column `width` on those before it. The penalty
    is `ridge` for every weighted point, or for `ridge_points` of them."""
    chains = points.shape[1]
    fewest = int((weights > 0).sum(axis=0).min())
    if ridge == 0 and fewest < width:
        raise UserError(
            "domain.dimension",
            width,
            f"must be at most the {fewest} points that a chain was left with; keep more, or use a ridge",
        )
    both = np.zeros((chains, width, width + 1))  # X'WX and X'Wy
    for at in range(0, len(points), ROWS):  # slots are the outer axis: a copy that fits the cache turns them
        rows = np.ascontiguousarray(points[at : at + ROWS, :, : width + 1].transpose(1, 0, 2))
        left = rows[..., :width] * weights[at : at + ROWS].T[..., None]
        both += left.transpose(0, 2, 1) @ rows
    penalty = ridge * (weights.sum(axis=0) if ridge_points is None else np.full(chains, float(ridge_points)))
    gram = both[..., :width] + penalty[:, None, None] * np.eye(width)
    try:
        return np.linalg.solve(gram, both[..., width:])[..., 0]
    except np.linalg.LinAlgError:
        raise UserError(
            "domain.dimension", width, "more than the different points of a training set determine; lower it"
        ) from None


def smallest(experiment: Experiment) -> int:
    """Points in the smallest training set, as far as that is known before any work: no curator that looks at its
    points."""
    from genloss.domains.lab.predict import kept
    from genloss.theory import NoPrediction

    available: int = experiment.domain.config("data")["slots"]
    regime = experiment.regime
    sizes = [sum(part.take for part in regime.plan(0, available, {}))]
    counts: dict[int, int] = {}
    for n in range(1, experiment.rounds + 1):
        x = experiment.at_round(n)
        try:
            counts[n] = kept(x)
        except NoPrediction:
            break
        total = regime.rounds[n].budget.records(n)
        sizes.append(total or sum(part.take for part in regime.plan(n, available, counts)))
    return min(sizes)


@dataclass
class Regression(Lab):
    name: str = "regression"
    dimension: int = 10
    noise: float = 1.0  # standard deviation of the labels' noise, of real and of synthetic records
    design: str = (
        "shared"  # shared: the i-th record of every round has the x of the i-th real one; fresh: x is drawn again
    )
    misalignment: float = 0.0  # |w_syn - w*|^2 of a fixed labeller; 0: the last model labels
    headline = "risk"
    panels = ("norm",)
    models = (LinearModel,)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.dimension >= 1, "dimension", self.dimension, "at least 1")
        require(self.noise >= 0, "noise", self.noise, "at least 0")
        one_of("design", self.design, DESIGNS)
        require(self.misalignment >= 0, "misalignment", self.misalignment, "at least 0 (0: the last model labels)")

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        model = able(experiment.model, LinearModel)
        fewest = smallest(experiment)
        if model.ridge == 0 and fewest <= self.dimension:
            raise UserError(
                "domain.dimension",
                self.dimension,
                f"must be less than the {fewest} points of the smallest training set, or set model.ridge above 0",
            )

    # -- points --------------------------------------------------------------------------------------------------------

    def truth(self) -> Parameters:
        """Only the length of w_syn - w* matters without a penalty; the two are orthogonal where there is room."""
        w = np.zeros(self.dimension)
        w[0] = 1.0
        labeller = w.copy()
        labeller[-1] += np.sqrt(self.misalignment)
        return {"w": w, "labeller": labeller}

    def real(self, rng: np.random.Generator, n: int, truth: Parameters) -> np.ndarray:
        return self._labelled(truth["w"][None], rng, n)

    def draw(self, model: Parameters, rng: np.random.Generator, n: int, options: Draw, truth: Parameters) -> np.ndarray:
        return self._labelled(truth["labeller"][None] if self.misalignment else model["w"], rng, n)

    def _labelled(self, w: np.ndarray, rng: np.random.Generator, n: int) -> np.ndarray:
        made = np.empty((n, self.chains, self.dimension + 1))
        made[..., :-1] = rng.standard_normal((n, self.chains, self.dimension))
        made[..., -1] = (made[..., :-1] * w).sum(axis=-1)
        made[..., -1] += self.noise * rng.standard_normal((n, self.chains))
        return made

    def made(self, request: Request, recipe: Draw) -> np.ndarray:
        if self.design == "fresh":
            return super().made(request, recipe)
        truth = load(request.data / "truth.safetensors")
        w = truth["labeller"][None] if self.misalignment else load(request.model / "model.safetensors")["w"]
        workers = request.runtime.workers
        # the stream of the real points, which goes on where there are fewer of them
        seed = seed_of(self.seed, "real")
        points = in_blocks(recipe.n, seed, lambda rng, n: self.real(rng, n, truth), workers)
        noise = in_blocks(recipe.n, request.seed, lambda rng, n: rng.standard_normal((n, self.chains)), workers)
        points[..., -1] = (points[..., :-1] * w).sum(axis=-1) + self.noise * noise
        return points

    def estimate(self, points: np.ndarray, weights: np.ndarray, fit: Fit, truth: Parameters) -> Parameters:
        model = able(fit.model, LinearModel)
        return {"w": normal_equations(points, weights, model.ridge, self.dimension, model.ridge_points)}

    # -- what is measured, and what must come out ----------------------------------------------------------------------

    def measure(self, model: Parameters, truth: Parameters) -> dict[str, np.ndarray]:
        """risk: |w - w*|^2, the excess squared error on a new point; norm: |w|^2, which is 1 of the truth."""
        return {"risk": ((model["w"] - truth["w"]) ** 2).sum(axis=1), "norm": (model["w"] ** 2).sum(axis=1)}

    def theory(self, experiment: Experiment) -> list[dict[str, float]]:
        from genloss.domains.lab.predict import kept
        from genloss.theory import NoPrediction
        from genloss.theory.linear import pools, regression

        rounds = [experiment.at_round(n) for n in range(experiment.rounds + 1)]
        if any(
            able(x.model, LinearModel).ridge or vars(x.domain) | {"slots": 0} != vars(self) | {"slots": 0}
            for x in rounds
        ):
            return []
        try:
            counts = {n: kept(rounds[n]) for n in range(1, experiment.rounds + 1)}
            sets = pools(experiment, counts)
        except NoPrediction:
            return []
        if self.design == "shared" and experiment.curators:  # every chain keeps other rows of the design
            sets = [members if len(members) == 1 else [] for members in sets]
            sets = sets[: next((n for n, members in enumerate(sets) if not members), len(sets))]
        risks = regression(
            sets, self.dimension, self.noise, shared=self.design == "shared", misalignment=self.misalignment
        )
        return [{"risk": risk} for risk in risks]
