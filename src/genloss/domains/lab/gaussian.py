"""Gaussian models of Gaussian data: the case in which collapse was first proved (Shumailov et al. 2024; Alemohammad et
al. 2024).

    genloss run -m domain=gaussian mixing=replace,accumulate,accumulate_subsample,fresh rounds=50
    genloss run domain=gaussian model.estimator=unbiased
    genloss run domain=gaussian recipe.bias=0.9                 # sampling bias: variance λ v
    genloss run domain=gaussian size=1 domain.batch=100         # sufficient statistics of 100 points, not the points

Real points are N(0, I) in `dimension` dimensions. A model is a mean and a covariance matrix (or, with a kernel, its
points)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from genloss.core.capabilities import able
from genloss.core.contracts import Experiment, Fit
from genloss.core.errors import UserError, one_of, require
from genloss.core.plugin import without_effect
from genloss.domains.lab import Lab, LabModel, Moments, Parameters, by_chains, is_even
from genloss.domains.lab.draw import Draw

ESTIMATORS = ("mle", "unbiased", "known", "kde")


@dataclass
class GaussianModel(LabModel):
    """mle: divide by N; unbiased: by N - 1 (with weights, by 1 - Σw²); known: only the mean is estimated, the
    covariance is that of the truth, 1 (He, Xu & Cheng 2025, section 3); kde: a Gaussian kernel of width `bandwidth` on
    every point (Kazdan et al. 2025)."""

    estimator: str = "mle"
    bandwidth: float = 0.1  # kde only

    def __post_init__(self) -> None:
        one_of("estimator", self.estimator, ESTIMATORS)
        require(self.bandwidth > 0, "bandwidth", self.bandwidth, "greater than 0")

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        if self.estimator != "kde":
            without_effect(self, ["bandwidth"], f"with estimator={self.estimator}")


@dataclass
class Gaussian(Lab, Moments):
    name: str = "gaussian"
    dimension: int = 1
    batch: int = 1  # points that one record stands for by their count, mean and squared deviations; 1: the point itself
    models = (GaussianModel,)
    options = ("bias", "truncation")
    panels = ("drift", "log_diversity")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.dimension >= 1, "dimension", self.dimension, "at least 1")
        require(self.batch >= 1, "batch", self.batch, "at least 1 point")

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        model, recipe = able(experiment.model, GaussianModel), able(experiment.recipe, Draw)
        if self.dimension > 1 and recipe.truncation:
            raise UserError("recipe.truncation", recipe.truncation, "must be 0 (off) unless domain.dimension=1")
        if model.estimator == "kde" and (recipe.bias != 1 or recipe.truncation):
            raise UserError(
                "recipe.bias", recipe.bias, "must be 1, and recipe.truncation 0, with a kernel: it has no mode"
            )
        points = experiment.size * self.batch
        if points <= self.dimension and model.estimator != "known":
            raise UserError(
                "domain.dimension",
                self.dimension,
                f"must be less than size={points}: so few points have a singular covariance",
            )
        if self.batch > 1:  # sums do not remember their points
            for ok, key, value, need in (
                (self.dimension == 1, "domain.dimension", self.dimension, "1"),
                (model.estimator != "kde", "model.estimator", model.estimator, "another than kde"),
                (not recipe.truncation, "recipe.truncation", recipe.truncation, "0"),
                (not experiment.curators, "curation", "+".join(experiment.curators), "none"),
            ):
                require(ok, key, value, f"{need} with domain.batch={self.batch}: sums do not remember their points")

    # -- points --------------------------------------------------------------------------------------------------------

    def real(self, rng: np.random.Generator, n: int, truth: Parameters) -> np.ndarray:
        if self.batch > 1:
            return self._sums(rng, n, np.zeros(self.chains), np.ones(self.chains))
        return rng.standard_normal((n, self.chains, self.dimension))

    def estimate(self, points: np.ndarray, weights: np.ndarray, fit: Fit, truth: Parameters) -> Parameters:
        model = able(fit.model, GaussianModel)
        if self.batch > 1:
            return self._from_sums(points, weights, model)
        even = is_even(weights)
        total = np.full(self.chains, len(points) * weights[0, 0]) if even else weights.sum(axis=0)
        mean = np.empty((self.chains, self.dimension))
        covariance = np.empty((self.chains, self.dimension, self.dimension))

        def moments(some: slice) -> None:
            own, share = points[:, some], None if even else weights[:, some] / total[some]
            if self.dimension == 1 and share is None:  # the common case, without an axis of length 1
                flat = own[..., 0]
                mean[some, 0] = flat.mean(axis=0)
                flat = flat - mean[some, 0]
                covariance[some, 0, 0] = np.einsum("nc,nc->c", flat, flat) / len(flat)
            else:
                mean[some] = own.mean(axis=0) if share is None else np.einsum("ncd,nc->cd", own, share)
                centred = own - mean[some]
                centred *= np.sqrt(1 / len(own) if share is None else share[..., None])
                rows = np.ascontiguousarray(centred.transpose(1, 2, 0))  # [chains, d, n]: one matrix product a chain
                covariance[some] = rows @ rows.transpose(0, 2, 1)

        by_chains(self.chains, moments)
        if model.estimator == "known":
            covariance[:] = np.eye(self.dimension)
        if model.estimator == "unbiased":
            lost = 1 - (np.full(self.chains, 1 / len(points)) if even else ((weights / total) ** 2).sum(axis=0))
            if lost.min() <= 0:
                raise UserError("model.estimator", "unbiased", "needs at least 2 points in every training set")
            covariance = covariance / lost[:, None, None]
        found = {"mean": mean, "covariance": covariance}
        if model.estimator == "kde":
            found["covariance"] = covariance + model.bandwidth**2 * np.eye(self.dimension)
            found["points"] = points.transpose(1, 0, 2)
            found["cumulative"] = np.cumsum(weights / total, axis=0).T
            found["bandwidth"] = np.full(self.chains, model.bandwidth)
        return found

    def draw(self, model: Parameters, rng: np.random.Generator, n: int, options: Draw, truth: Parameters) -> np.ndarray:
        if "points" in model:
            u = rng.random((n, self.chains))
            cumulative = model["cumulative"]
            # one search for all chains: chain c's steps lie in [c, c + 1)
            offset = np.arange(self.chains)
            flat = (cumulative / cumulative[:, -1:] * (1 - 1e-12) + offset[:, None]).ravel()
            which = np.searchsorted(flat, u * (1 - 1e-9) + offset, side="right") - offset * cumulative.shape[1]
            chosen = model["points"][offset, np.minimum(which, cumulative.shape[1] - 1)]
            return chosen + model["bandwidth"][:, None] * rng.standard_normal(chosen.shape)
        if self.batch > 1:
            return self._sums(rng, n, model["mean"][:, 0], options.bias * model["covariance"][:, 0, 0])
        z = rng.standard_normal((n, self.chains, self.dimension))
        if options.truncation:
            while (outside := np.abs(z) >= options.truncation).any():
                z[outside] = rng.standard_normal(int(outside.sum()))
        if self.dimension == 1:
            z *= np.sqrt(options.bias * model["covariance"][:, :, 0])
        else:
            values, vectors = np.linalg.eigh(options.bias * model["covariance"])
            root = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
            z = np.einsum("cij,ncj->nci", root, z)
        z += model["mean"]
        return z

    def fill(self, model: Parameters, options: Draw, truth: Parameters) -> Callable[..., None] | None:
        if self.batch > 1 or self.dimension > 1 or options.truncation or "points" in model:
            return None
        scale, mean = np.sqrt(options.bias * model["covariance"][:, :, 0]), model["mean"]

        def normal(rng: np.random.Generator, out: np.ndarray) -> None:
            rng.standard_normal(out=out)
            out *= scale
            out += mean

        return normal

    # -- sufficient statistics: the same law without the points --------------------------------------------------------

    def _sums(self, rng: np.random.Generator, n: int, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """n records [n, chains, 3] of `batch` points each: count, mean ~ N(μ, v/batch), squared deviations ~ v χ²(batch
        - 1)."""
        means = mean + np.sqrt(variance / self.batch) * rng.standard_normal((n, self.chains))
        deviations = 2 * variance * rng.standard_gamma((self.batch - 1) / 2, (n, self.chains))
        return np.stack([np.full((n, self.chains), float(self.batch)), means, deviations], axis=-1)

    def _from_sums(self, rows: np.ndarray, weights: np.ndarray, model: GaussianModel) -> Parameters:
        count, mean, deviations = (rows[..., i] for i in range(3))
        share = weights * count
        total = share.sum(axis=0)
        centre = (share * mean).sum(axis=0) / total
        variance = (weights * deviations + share * (mean - centre) ** 2).sum(axis=0) / total
        if model.estimator == "known":
            variance = np.ones_like(variance)
        elif model.estimator == "unbiased":
            variance = variance / (1 - (weights**2 * count).sum(axis=0) / total**2)
        return {"mean": centre[:, None], "covariance": variance[:, None, None]}

    # -- what is measured, and what must come out ----------------------------------------------------------------------

    def measure(self, model: Parameters, truth: Parameters) -> dict[str, np.ndarray]:
        """A dimension each: diversity, the mean variance; drift, the squared distance of the mean; w2, the squared
        2-Wasserstein distance from the real distribution to the Gaussian with the model's mean and covariance, which
        for a kernel estimate is a lower bound (Gelbrich 1990); log_diversity, the mean log of the covariance's
        eigenvalues, which is not ruled by rare chains."""
        values = np.maximum(
            np.linalg.eigvalsh(model["covariance"]) if self.dimension > 1 else model["covariance"][:, 0], 0
        )
        drift = (model["mean"] ** 2).sum(axis=1)
        return {
            "diversity": values.mean(axis=1),
            "drift": drift / self.dimension,
            "w2": drift / self.dimension + ((np.sqrt(values) - 1) ** 2).mean(axis=1),
            "log_diversity": np.log(np.maximum(values, 1e-300)).mean(axis=1),
        }

    def theory(self, experiment: Experiment) -> list[dict[str, float]]:
        from genloss.domains.lab.predict import predict_arm
        from genloss.theory import Law, NoPrediction, gaussian

        def law(x: Experiment) -> Law:
            model, recipe = able(x.model, GaussianModel), able(x.recipe, Draw)
            return gaussian(model.estimator, recipe.bias, recipe.truncation or None, model.bandwidth, batch=self.batch)

        try:
            found = predict_arm(experiment, law)
        except NoPrediction:
            return []
        return [{"diversity": p.diversity, "drift": p.drift} for p in found]
