"""Verifiers of labelled points (Feng et al. 2024, arXiv 2406.07515): a record is a point with a label, right or wrong.

genloss run domain=classification curation=verifier curation.verifier.psi=0.5 domain.generator=fixed domain.error=0.3
genloss run domain=classification domain.geometry=halfspace curation=linear_verifier
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from genloss.core.contracts import Domain
from genloss.core.errors import UserError, require
from genloss.core.seeds import generator
from genloss.curate import Context, Curator

if TYPE_CHECKING:
    from genloss.experiment import Experiment


@dataclass
class Verifier(Curator):
    """Keep right points with probability phi and wrong ones with psi, whatever else they are. It needs a domain that knows which
    points are right."""

    phi: float = 0.9
    psi: float = 0.3

    def __post_init__(self) -> None:
        for key in ("phi", "psi"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        require(self.phi + self.psi > 0, "phi", self.phi, "greater than 0 where psi=0, or nothing is kept")

    def check(self, experiment: Experiment) -> None:
        labelled(experiment.domain, "right")

    def rates(self) -> tuple[float, float]:
        return self.phi, self.psi

    def judge_points(self, points: np.ndarray, left: np.ndarray, context: Context) -> np.ndarray:
        chance = np.where(labelled(context.domain, "right")(points), self.phi, self.psi)
        return generator(context.seed, "verifier").random(left.shape) < chance


@dataclass
class LinearVerifier(Curator):
    """Keep a point where a linear classifier through the origin gives the same label. Its direction is `angle` radians from the
    true one, on the same side as a fixed generator's (domain.angle) if it is positive."""

    angle: float = math.pi / 12

    def __post_init__(self) -> None:
        require(abs(self.angle) <= math.pi, "angle", self.angle, "in radians, in [-3.14159, 3.14159]")

    def check(self, experiment: Experiment) -> None:
        labelled(experiment.domain, "agrees")

    def judge_points(self, points: np.ndarray, left: np.ndarray, context: Context) -> np.ndarray:
        return labelled(context.domain, "agrees")(points, self.angle)


def labelled(domain: Domain, question: str) -> Any:
    """The domain's answer to `question`: right(points), or agrees(points, angle)."""
    method = getattr(domain, question, None)
    if method is None:
        key = "phi" if question == "right" else "angle"
        raise UserError(key, None, f"needs labelled points, and {domain.name} has none; use domain=classification")
    return method
