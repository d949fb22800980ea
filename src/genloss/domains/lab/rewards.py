"""Selection by a reward, for chains of points: what people or a reward model prefer is what the next model learns.

    genloss run domain=gaussian curation=bradley_terry curation.bradley_terry.k=4 recipe.n=400     # one of every four
    genloss run -m domain=gaussian curation=truncate,none
    genloss run domain=categorical domain.distribution=given domain.probabilities=[0.25,0.25,0.25,0.25] recipe.n=2000 \\
        curation=best_of_k curation.best_of_k.values=[0,1,2,3]

The reward of a point is linear·x + quadratic·x² of its first coordinate, or `values[token]`. With k candidates a group,
n generated records give n/k: set recipe.n to k times the training set. genloss.theory.curation has the exact laws of
endless samples. """

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from genloss.core.capabilities import able
from genloss.core.contracts import LAST, Experiment
from genloss.core.errors import require
from genloss.core.seeds import generator
from genloss.curate import Context, PointCurator
from genloss.curate.choose import highest
from genloss.domains.lab import Moments, Tokens, load
from genloss.domains.lab.draw import Draw


@dataclass
class Reward(PointCurator):
    """What the curators by reward share. values: of the tokens of a categorical domain; empty: linear and quadratic."""

    linear: float = 1.0
    quadratic: float = 0.0
    values: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        flat = not self.linear and not self.quadratic and not self.values
        require(not flat, "linear", self.linear, "other than 0, or quadratic, or values: this reward prefers nothing")
        require(bool(np.isfinite(self.values).all()), "values", self.values, "finite numbers")

    def check(self, experiment: Experiment) -> None:
        if self.values:
            domain, given = experiment.domain, f"[{len(self.values)} numbers]"
            require(isinstance(domain, Tokens), "values", given, f"empty: the points of {domain.name} are no tokens")
            tokens = able(domain, Tokens).tokens
            require(len(self.values) >= tokens, "values", given, f"as long as the domain has tokens, {tokens}")

    def reward(self, points: np.ndarray, left: np.ndarray) -> np.ndarray:
        """[slots, chains]; -inf where nothing is left."""
        x = np.where(left, points[..., 0], 0.0)
        if not self.values:
            return np.where(left, self.linear * x + self.quadratic * x**2, -np.inf)
        return np.where(left, np.array(self.values, dtype=float)[x.astype(int)], -np.inf)


@dataclass
class BestOfK(Reward):
    """Of every k consecutive candidates the one with the highest reward; of equal ones the first, which is any."""

    k: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.k >= 2, "k", self.k, "at least 2 candidates")

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        n = able(experiment.recipe, Draw).n
        require(n % self.k == 0, "k", self.k, f"a divisor of recipe.n={n}, since one of every k is kept")

    def score(self, reward: np.ndarray, context: Context) -> np.ndarray:
        """Of groups [groups, k, chains], whose highest is kept."""
        return reward

    def decide_points(self, points: np.ndarray, left: np.ndarray, context: Context) -> np.ndarray:
        n, chains = left.shape
        score = self.score(self.reward(points, left).reshape(n // self.k, self.k, chains), context)
        best = np.arange(self.k)[:, None] == score.argmax(axis=1)[:, None]
        return best.reshape(n, chains) & left  # a group of which an earlier curator left none keeps none


@dataclass
class BradleyTerry(BestOfK):
    """Of every k consecutive candidates one, with probability softmax(reward) (Ferbach et al. 2024, arXiv 2407.09499,
    section 2: the law that `theory.curation.bradley_terry` iterates). For k = 2 it is the Bradley-Terry model of a
    preference."""

    def score(self, reward: np.ndarray, context: Context) -> np.ndarray:
        # the highest of reward + Gumbel noise has the law softmax(reward)
        return reward + generator(context.seed, "preference").gumbel(size=reward.shape)


@dataclass
class Adversarial(BradleyTerry):
    """Bradley-Terry with the preferences of a share `epsilon` of the groups turned round, softmax(-reward): they prefer
    the worst (Wei & Zhang 2025, arXiv 2505.09768). For k = 2 this swaps winner and loser."""

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.epsilon <= 1, "epsilon", self.epsilon, "a share of the groups in [0, 1]")

    def score(self, reward: np.ndarray, context: Context) -> np.ndarray:
        turned = generator(context.seed, "turned").random(reward[:, :1].shape) < self.epsilon
        return super().score(np.where(turned & np.isfinite(reward), -reward, reward), context)


@dataclass
class TopReward(Reward):
    """The fraction with the highest reward (as of a filter on a reward model's score)."""

    fraction: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.fraction <= 1, "fraction", self.fraction, "in (0, 1]")

    def decide_points(self, points: np.ndarray, left: np.ndarray, context: Context) -> np.ndarray:
        return highest(self.reward(points, left), left, self.fraction)


@dataclass
class Truncate(PointCurator):
    """Only points less than c standard deviations of their generator from its mean, in every coordinate. One round
    multiplies a normal variance by 1 - 2cφ(c)/(2Φ(c) - 1); recipe.truncation draws anew instead of dropping, so it
    keeps the number."""

    c: float = 2.0
    needs = (Moments,)

    def __post_init__(self) -> None:
        require(self.c > 0, "c", self.c, "greater than 0 standard deviations")

    def reads(self) -> tuple[str, ...]:
        return (LAST,)

    def decide_points(self, points: np.ndarray, left: np.ndarray, context: Context) -> np.ndarray:
        model = load(context.inputs[LAST] / "model.safetensors")
        deviation = np.sqrt(np.diagonal(model["covariance"], axis1=1, axis2=2))
        return left & (np.abs(points - model["mean"]) < self.c * deviation).all(axis=-1)
