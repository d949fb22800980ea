"""Linear classification with labels that a model made, and verifiers of them (Feng et al. 2024, arXiv 2406.07515).

    genloss run domain=classification                                               # the last model labels: replace
    genloss run -m domain=classification rounds=1 domain.generator=fixed domain.error=0.3,0.7 curation=none,verifier
    genloss run -m domain=classification domain.geometry=halfspace curation=none,linear_verifier model.kind=mean,ols

Points are a mixture x = y mu + z, z ~ N(0, I), with |mu| = separation; or, `halfspace`, x = z and y = sign <w*, x>. A
record is (x, label, y): the true y is for verifiers and is never trained on. Synthetic records are new x, which the
last model labels, or a fixed labeller: the one-round setting of Feng et al., whose labels are wrong with a given
probability."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from genloss.core.capabilities import able
from genloss.core.contracts import Experiment, Fit
from genloss.core.errors import UserError, one_of, require
from genloss.core.plugin import without_effect
from genloss.domains.lab import Lab, Labelled, LabModel, Parameters
from genloss.domains.lab.draw import Draw
from genloss.domains.lab.regression import counted, normal_equations, smallest

if TYPE_CHECKING:
    from genloss.theory.linear import Member

KINDS = ("mean", "ols", "ridge", "logistic")
GEOMETRIES = ("mixture", "halfspace")
GENERATORS = ("model", "fixed")
cdf = np.frompyfunc(lambda x: math.erfc(-x / math.sqrt(2)) / 2, 1, 1)


@dataclass
class Classifier(LabModel):
    """sign <w, x>. mean: w is the mean of label * x; ols, ridge: regression of the label; logistic: `steps` of Newton's
    method. ridge |w|^2 is added to the mean squared error, ridge/2 |w|^2 to the mean logistic loss (the penalty a
    point). ridge_points: as of the linear model."""

    kind: str = "ols"
    ridge: float = 0.01  # ridge and logistic only
    ridge_points: int | None = None  # ridge and logistic only
    steps: int = 8  # logistic only

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        if self.kind in ("ridge", "logistic"):
            # without it, a separable training set has no logistic fit
            require(self.ridge > 0, "ridge", self.ridge, f"greater than 0 with kind={self.kind}")
        require(self.steps >= 1, "steps", self.steps, "at least 1 step of Newton's method")
        counted(self.ridge_points)

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        if self.kind not in ("ridge", "logistic"):
            without_effect(self, ["ridge", "ridge_points"], f"with kind={self.kind}")
        if self.kind != "logistic":
            without_effect(self, ["steps"], f"with kind={self.kind}")


@dataclass
class Classification(Lab, Labelled):
    name: str = "classification"
    dimension: int = 10
    geometry: str = "mixture"
    separation: float = 2.0  # |mu|, mixture only
    label_noise: float = 0.0  # share of real labels that are wrong
    generator: str = "model"  # who labels synthetic records: the last model, or a labeller that no round changes
    error: float = 0.0  # fixed: share of its labels that are wrong, whatever x is
    angle: float = 0.0  # fixed: radians from the true direction
    headline = "accuracy"
    panels = ("angle", "error_rate")
    models = (Classifier,)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.dimension >= 2, "dimension", self.dimension, "at least 2")
        one_of("geometry", self.geometry, GEOMETRIES)
        one_of("generator", self.generator, GENERATORS)
        require(self.separation > 0, "separation", self.separation, "greater than 0")
        for key in ("label_noise", "error"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        require(0 <= self.angle <= math.pi, "angle", self.angle, "in radians, in [0, 3.14159]")
        for key in ("error", "angle"):
            ok = self.generator == "fixed" or getattr(self, key) == 0
            require(ok, key, getattr(self, key), "0 unless generator=fixed: a model has its own errors")

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        if self.geometry != "mixture":
            without_effect(self, ["separation"], f"with geometry={self.geometry}")
        model = able(experiment.model, Classifier)
        fewest = smallest(experiment)
        if model.kind == "ols" and fewest < self.dimension:
            raise UserError(
                "domain.dimension",
                self.dimension,
                f"must be at most the {fewest} points of the smallest training set, or choose another model.kind",
            )

    # -- points --------------------------------------------------------------------------------------------------------

    def direction(self, angle: float) -> np.ndarray:
        """The unit vector [d] at `angle` from the true direction; all of them lie in one plane."""
        found = np.zeros(self.dimension)
        found[:2] = math.cos(angle), math.sin(angle)
        return found

    def right(self, points: np.ndarray) -> np.ndarray:
        """bool [slots, chains]: whether the label is the true one."""
        return points[..., -2] == points[..., -1]

    def agrees(self, points: np.ndarray, angle: float) -> np.ndarray:
        """bool [slots, chains]: whether a linear classifier at `angle` from the truth gives the same label."""
        return (points[..., :2] @ self.direction(angle)[:2] > 0) == (points[..., -2] > 0)

    def real(self, rng: np.random.Generator, n: int, truth: Parameters) -> np.ndarray:
        made = self._unlabelled(rng, n)
        made[..., -2] = made[..., -1] * self._flips(rng, n, self.label_noise)
        return made

    def draw(self, model: Parameters, rng: np.random.Generator, n: int, options: Draw, truth: Parameters) -> np.ndarray:
        made = self._unlabelled(rng, n)
        x = made[..., :-2]
        if self.generator == "model":
            made[..., -2] = _sign((x * model["w"]).sum(axis=-1))
            return made
        by_angle = _sign(x[..., :2] @ self.direction(self.angle)[:2]) if self.angle else made[..., -1]
        made[..., -2] = by_angle * self._flips(rng, n, self.error)
        return made

    def _unlabelled(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """[n, chains, d + 2] with x and the true label."""
        made = np.empty((n, self.chains, self.dimension + 2))
        made[..., :-2] = rng.standard_normal((n, self.chains, self.dimension))
        if self.geometry == "halfspace":
            made[..., -1] = _sign(made[..., 0])
        else:
            made[..., -1] = _sign(rng.random((n, self.chains)) - 0.5)
            made[..., 0] += self.separation * made[..., -1]
        return made

    def _flips(self, rng: np.random.Generator, n: int, share: float) -> np.ndarray:
        return np.where(rng.random((n, self.chains)) < share, -1.0, 1.0)

    def estimate(self, points: np.ndarray, weights: np.ndarray, fit: Fit, truth: Parameters) -> Parameters:
        model = able(fit.model, Classifier)
        d = self.dimension
        if model.kind == "mean":
            return {
                "w": np.einsum("ncd,nc->cd", points[..., :d], points[..., d] * weights) / weights.sum(axis=0)[:, None]
            }
        if model.kind != "logistic":
            ridge = model.ridge if model.kind == "ridge" else 0.0
            return {"w": normal_equations(points, weights, ridge, d, model.ridge_points)}
        rows = (points[..., :d] * points[..., d : d + 1]).transpose(1, 0, 2)  # label * x, [chains, n, d]
        share = (weights / weights.sum(axis=0)).T
        w = np.zeros((rows.shape[0], d))
        total = weights.sum(axis=0)
        ridge = (model.ridge * (total if model.ridge_points is None else model.ridge_points) / total)[:, None]
        for _ in range(model.steps):
            # Newton's steps shrink where sigmoids saturate, and the penalty keeps the matrix regular
            wrong = 0.5 - 0.5 * np.tanh((rows @ w[..., None])[..., 0] / 2)
            gradient = ((share * wrong)[:, None] @ rows)[:, 0] - ridge * w
            curvature = (rows * (share * wrong * (1 - wrong))[..., None]).transpose(0, 2, 1) @ rows
            w = w + np.linalg.solve(curvature + ridge[..., None] * np.eye(d), gradient[..., None])[..., 0]
        return {"w": w}

    # -- what is measured, and what must come out ----------------------------------------------------------------------

    def measure(self, model: Parameters, truth: Parameters) -> dict[str, np.ndarray]:
        """accuracy: exact, given w; angle to the true direction (radians) and its square; error_rate: of the labels
        that the next round would get, against the true ones."""
        w = model["w"]
        norm = np.sqrt((w**2).sum(axis=1))
        along = w[:, 0] / np.where(norm > 0, norm, 1)
        # an arc cosine is blind to small angles
        angle = np.arctan2(np.sqrt((w[:, 1:] ** 2).sum(axis=1)), w[:, 0])
        angle = np.where(norm > 0, angle, math.pi / 2)
        accuracy = self._accuracy(along, angle)
        error = 1 - accuracy
        if self.generator == "fixed":
            turned = 1 - self._accuracy(np.cos([self.angle]), np.array([self.angle]))[0] if self.angle else 0.0
            error = np.full(len(w), turned + self.error - 2 * turned * self.error)
        return {"accuracy": accuracy, "angle": angle, "angle_squared": angle**2, "error_rate": error}

    def _accuracy(self, along: np.ndarray, angle: np.ndarray) -> np.ndarray:
        if self.geometry == "halfspace":
            return 1 - angle / math.pi
        return cdf(self.separation * along).astype(float)

    def theory(self, experiment: Experiment) -> list[dict[str, float]]:
        """What is known, none of it exact with finitely many points (genloss.theory.linear): NAME_asymptotic is the
        leading order, NAME_limit is with infinitely many points."""
        from genloss.curate.choose import Random
        from genloss.domains.lab.verifiers import LinearVerifier, Verifier
        from genloss.theory import NoPrediction
        from genloss.theory.linear import bisector, pools, verified

        if experiment.cfg.get("schedule"):
            return []
        curators = list(experiment.curators.values())
        if experiment.control == "random" and not all(isinstance(c, Random) for c in curators):
            return []
        wrong, share = self.error, 1.0  # of what is kept
        linear = [c for c in curators if isinstance(c, LinearVerifier)]
        for curator in curators:
            if isinstance(curator, Verifier):
                kept, wrong = verified(wrong, curator.phi, curator.psi)
                share *= kept
            elif isinstance(curator, Random):
                share *= curator.fraction
            elif not isinstance(curator, LinearVerifier):
                return []
        counts = dict.fromkeys(range(1, experiment.rounds + 1), max(1, round(able(experiment.recipe, Draw).n * share)))
        try:
            sets = pools(experiment, counts)
        except NoPrediction:
            return []
        if linear:
            own = all([m.group for m in members] == [n] for n, members in enumerate(sets) if n)
            one_plane = self.geometry == "halfspace" and not self.label_noise and not self.error and own
            if not one_plane or len(curators) > 1:
                return []
            angles = [0.0]
            for _ in sets[1:]:
                made = angles[-1] if self.generator == "model" else self.angle
                angles.append(bisector(made, linear[0].angle))
            return [{"angle_limit": abs(a), "accuracy_limit": 1 - abs(a) / math.pi} for a in angles]
        model = able(experiment.model, Classifier)
        if self.generator == "fixed":
            return [] if self.angle else [self._fixed(members, wrong, model) for members in sets]
        return [] if any(isinstance(c, Verifier) for c in curators) else self._recursive(sets, model)

    def _fixed(self, members: list[Member], wrong: float, model: Classifier) -> dict[str, float]:
        """Labels that are wrong whatever x is: only how many points there are matters, and how many of them are
        wrong."""
        from genloss.theory import NoPrediction
        from genloss.theory.linear import limit_accuracy, mean_accuracy, ridge_accuracy

        points = sum(m.points for m in members)
        error = sum(m.share * (wrong if isinstance(m.group, int) else self.label_noise) for m in members)
        mixture = self.geometry == "mixture"
        found = {"accuracy_limit": limit_accuracy(error, self.separation if mixture else None)}
        if mixture and all(math.isclose(m.share * points, m.points) for m in members):
            if model.kind == "mean":
                found["accuracy_asymptotic"] = mean_accuracy(points, error, self.dimension, self.separation)
            elif model.kind != "logistic":
                ridge = model.ridge if model.kind == "ridge" else 0.0
                ridge *= 1 if model.ridge_points is None else model.ridge_points / points
                with contextlib.suppress(NoPrediction):
                    found["accuracy_asymptotic"] = ridge_accuracy(points, error, ridge, self.dimension, self.separation)
        return found

    def _recursive(self, sets: list[list[Member]], model: Classifier) -> list[dict[str, float]]:
        """Models that label for one another: each fit turns the direction at random, as noise moves that of a
        regression."""
        from genloss.theory.linear import Noises, angle_noise, average

        if self.geometry != "halfspace" or self.label_noise or model.kind not in ("mean", "ols"):
            return []
        models: list[Noises] = []
        size: dict[Any, float] = {}
        for members in sets:
            if not all(m.whole for m in members):
                break
            size |= {m.group: m.points for m in members}
            models.append(average({m.group: m.share for m in members}, models))
        return [
            {
                "angle_squared_asymptotic": sum(
                    c**2 * angle_noise(model.kind, size[g], self.dimension) for g, c in noises.items()
                )
            }
            for noises in models
        ]


def _sign(x: np.ndarray) -> np.ndarray:
    """-1 or 1."""
    return np.where(x > 0, 1.0, -1.0)
