"""Mixtures of Gaussians: modes that a model misses once are lost (Alemohammad et al. 2024, Fig. 14; Shumailov et al.
2024).

    genloss run -m domain=gmm mixing=replace,accumulate rounds=5
    genloss run domain=gmm domain.chains=4 mixing=replace rounds=200                # 18 of 25 modes are gone
    genloss run domain=gmm domain.modes=9 model.components=9 size=300

Real points come from `modes` equal Gaussians on a grid in the plane. A model has weights, means and covariance
matrices, found by expectation-maximisation (EM), a fixed number of steps for all chains together. There is no exact
theory of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genloss.core.capabilities import able
from genloss.core.contracts import Experiment, Fit
from genloss.core.errors import require
from genloss.domains.lab import Lab, LabModel, Parameters, load, stream
from genloss.domains.lab.draw import Draw

# Candidates for each first centre, of which the best is taken: with 4, EM overlooks modes even of real data.
TRIALS = 16
TEST = 1000  # fresh real points
NEAR = 3.0  # standard deviations within which a point belongs to a mode, and a mode to a component


@dataclass
class GmmModel(LabModel):
    """`components` Gaussians with full covariance matrices; `floor` is added to their variances, so that none closes on
    one point."""

    components: int = 25
    iterations: int = 30
    floor: float = 1e-4

    def __post_init__(self) -> None:
        require(self.components >= 1, "components", self.components, "at least 1")
        require(self.iterations >= 1, "iterations", self.iterations, "at least 1 step of EM")
        require(self.floor > 0, "floor", self.floor, "greater than 0, or a component may close on one point")

    def check(self, experiment: Experiment) -> None:
        """EM is no formula: it continues from the last model."""


@dataclass
class Gmm(Lab):
    name: str = "gmm"
    chains: int = 16
    modes: int = 25
    spacing: float = 1.0  # between neighbouring modes
    std: float = 0.1  # of a mode
    threshold: float = 0.25  # least weight of what covers a mode, as a share of the mode's own
    headline = "modes"
    panels = ("recall", "log_likelihood")
    models = (GmmModel,)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.modes <= 25, "modes", self.modes, "1 to 25")
        require(self.spacing > 0, "spacing", self.spacing, "greater than 0")
        require(self.std > 0, "std", self.std, "greater than 0")
        require(0 < self.threshold <= 1, "threshold", self.threshold, "a share of a mode's weight in (0, 1]")

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        model = able(experiment.model, GmmModel)
        require(
            model.components <= experiment.size,
            "model.components",
            model.components,
            f"at most size={experiment.size}: every component starts at a point",
        )

    # -- points --------------------------------------------------------------------------------------------------------

    def truth(self) -> Parameters:
        """The centres on the smallest square grid that holds them, around 0, and test points of which no model
        learns."""
        side = int(np.ceil(np.sqrt(self.modes)))
        at = np.array([(i % side, i // side) for i in range(self.modes)], dtype=float)
        centres = self.spacing * (at - at.mean(axis=0))
        rng = stream(self.seed, "test")
        points = centres[rng.integers(0, self.modes, TEST)] + self.std * rng.standard_normal((TEST, 2))
        return {"centres": centres, "test": points}

    def real(self, rng: np.random.Generator, n: int, truth: Parameters) -> np.ndarray:
        which = rng.integers(0, self.modes, (n, self.chains))
        return truth["centres"][which] + self.std * rng.standard_normal((n, self.chains, 2))

    def draw(self, model: Parameters, rng: np.random.Generator, n: int, options: Draw, truth: Parameters) -> np.ndarray:
        steps = np.cumsum(model["weights"], axis=1)
        u = rng.random((n, self.chains)) * steps[:, -1]
        which = (u[..., None] >= steps[:, :-1]).sum(axis=-1)
        chain = np.arange(self.chains)
        root = np.linalg.cholesky(model["covariances"])[chain, which]
        return model["means"][chain, which] + np.einsum("ncij,ncj->nci", root, rng.standard_normal((n, self.chains, 2)))

    # -- the model: EM over all chains, in matrix products -------------------------------------------------------------

    def estimate(self, points: np.ndarray, weights: np.ndarray, fit: Fit, truth: Parameters) -> Parameters:
        model = able(fit.model, GmmModel)
        x = np.ascontiguousarray(points.transpose(1, 0, 2))  # [chains, n, 2]
        share = (weights / weights.sum(axis=0)).T[..., None]  # [chains, n, 1]
        terms = _terms(x)
        if fit.start:  # warm: EM goes on from the last model
            found = load(fit.start / "model.safetensors")
        else:
            means = _centres(x, share[..., 0], model.components, stream(fit.seed, "init"))
            nearest = ((x[:, :, None] - means[:, None]) ** 2).sum(axis=-1).argmin(axis=2)
            member = np.arange(model.components) == nearest[..., None]
            found = self._maximise(terms, share * member, means, model.floor)
        for _ in range(model.iterations):
            log = terms @ _coefficients(found)
            log -= log.max(axis=2, keepdims=True)
            np.exp(log, out=log)
            log *= share / log.sum(axis=2, keepdims=True)
            found = self._maximise(terms, log, found["means"], model.floor)
        return found

    @staticmethod
    def _maximise(terms: np.ndarray, member: np.ndarray, last: np.ndarray, floor: float) -> Parameters:
        """The M step from memberships [chains, n, components], which sum to 1 in each chain. An empty component stays
        where it was, with weight 0."""
        sums = member.transpose(0, 2, 1) @ terms  # [chains, components, 6]: of 1, x, y, xx, xy, yy
        weight = sums[..., 0]
        some = weight > 1e-9
        moments = sums[..., 1:] / np.where(some, weight, 1.0)[..., None]
        means = np.where(some[..., None], moments[..., :2], last)
        second = moments[..., [2, 3, 3, 4]].reshape(*weight.shape, 2, 2)
        covariance = np.where(some[..., None, None], second - means[..., :, None] * means[..., None, :], 0.0)
        weight = np.where(some, weight, 0.0)
        return {
            "weights": weight / weight.sum(axis=1, keepdims=True),
            "means": means,
            "covariances": covariance + floor * np.eye(2),
        }

    # -- what is measured ----------------------------------------------------------------------------------------------

    def measure(self, model: Parameters, truth: Parameters) -> dict[str, np.ndarray]:
        """modes: those near which (within 3 of their standard deviations) components with enough weight in all are
        centred; recall: share of fresh real points within 3 standard deviations of a component that has enough weight;
        log_likelihood of those points, in nats a point; confusion: share of those points whose likeliest component lies
        nearest to another mode than theirs; outside: share of what the model makes that is farther than 3 standard
        deviations from every mode (of real points exp(-9/2) = 1.1 %); diversity: trace of the covariance of all that
        the model makes; drift: squared distance of its mean."""
        weights, means = model["weights"], model["means"]
        least = self.threshold / self.modes
        gap = np.linalg.norm(means[:, :, None] - truth["centres"], axis=-1)  # [chains, components, modes]
        covered = (weights[..., None] * (gap < NEAR * self.std)).sum(axis=1) >= least
        coefficients = _coefficients(model)
        log = _terms(truth["test"])[None] @ coefficients  # log of weight times density, [chains, test, components]
        with np.errstate(divide="ignore"):
            peak = np.log(weights) - np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(model["covariances"])[1]
        # weight x density falls by r²/2 at r standard deviations from its peak
        with np.errstate(invalid="ignore"):
            inside = (log > peak[:, None] - NEAR**2 / 2) & (weights >= least)[:, None]
        highest = log.max(axis=2, keepdims=True)
        likelihood = np.log(np.exp(log - highest).sum(axis=2)) + highest[..., 0]
        own = ((truth["test"][:, None] - truth["centres"]) ** 2).sum(axis=-1).argmin(axis=1)  # of the points [test]
        said = np.take_along_axis(
            gap.argmin(axis=2), log.argmax(axis=2), axis=1
        )  # mode of the component [chains, test]
        made = self.draw(model, stream(self.seed, "outside"), TEST, Draw(), truth)
        off = (
            np.linalg.norm(made[:, :, None] - truth["centres"], axis=-1).min(axis=2) > NEAR * self.std
        )  # [TEST, chains]
        mean = np.einsum("ck,ckd->cd", weights, means)
        spread = np.trace(model["covariances"], axis1=2, axis2=3) + ((means - mean[:, None]) ** 2).sum(axis=2)
        return {
            "modes": covered.sum(axis=1).astype(float),
            "recall": inside.any(axis=2).mean(axis=1),
            "log_likelihood": likelihood.mean(axis=1),
            "confusion": (said != own).mean(axis=1),
            "outside": off.mean(axis=0),
            "diversity": (weights * spread).sum(axis=1),
            "drift": ((mean - truth["centres"].mean(axis=0)) ** 2).sum(axis=1),
        }


def _terms(x: np.ndarray) -> np.ndarray:
    """[..., 6]: 1, x, y, x², xy, y². A log density is linear in them, and so are a component's sufficient
    statistics."""
    a, b = x[..., 0], x[..., 1]
    return np.stack([np.ones_like(a), a, b, a * a, a * b, b * b], axis=-1)


def _coefficients(model: Parameters) -> np.ndarray:
    """[chains, 6, components]: log of weight times density, as a function of `_terms`."""
    precision = np.linalg.inv(model["covariances"])
    means = model["means"]
    slope = np.einsum("ckij,ckj->cki", precision, means)
    with np.errstate(divide="ignore"):
        constant = np.log(model["weights"]) - np.log(2 * np.pi) + 0.5 * np.linalg.slogdet(precision)[1]
    constant = np.maximum(
        constant - 0.5 * (slope * means).sum(axis=-1), -1e300
    )  # weight 0: never, yet no nan in products
    own = [constant, slope[..., 0], slope[..., 1]]
    own += [-0.5 * precision[..., 0, 0], -precision[..., 0, 1], -0.5 * precision[..., 1, 1]]
    return np.stack(own, axis=1)


def _centres(x: np.ndarray, share: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """First centres [chains, count, 2]: points drawn by their squared distance from the nearest centre so far, each the
    best of a few (greedy k-means++)."""
    chains, n, _ = x.shape
    chain = np.arange(chains)[:, None]
    distance = np.ones((chains, n))
    found = np.empty((chains, count, 2))
    for k in range(count):
        steps = np.cumsum(share * distance, axis=1)
        u = rng.random((chains, TRIALS)) * steps[:, -1:]
        tried = x[chain, np.minimum((steps[:, None] <= u[..., None]).sum(axis=2), n - 1)]  # [chains, TRIALS, 2]
        own = ((x[:, None] - tried[:, :, None]) ** 2).sum(axis=-1)
        if k:
            own = np.minimum(own, distance[:, None])
        best = np.einsum("ctn,cn->ct", own, share).argmin(axis=1)
        found[:, k] = tried[chain[:, 0], best]
        distance = own[chain[:, 0], best]
    return found
