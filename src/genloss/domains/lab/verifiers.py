"""Verifiers of labelled points (Feng et al. 2024, arXiv 2406.07515): a record is a point with a label, right or wrong.

genloss run domain=classification curation=verifier curation.verifier.psi=0.5 domain.generator=fixed domain.error=0.3
genloss run domain=classification domain.geometry=halfspace curation=linear_verifier
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from genloss.core.capabilities import able
from genloss.core.errors import require
from genloss.core.seeds import generator
from genloss.curate import Context, PointCurator
from genloss.curate.noise import NoisyRates
from genloss.domains.lab import Labelled


@dataclass
class Verifier(NoisyRates, PointCurator):
    """Keep right points with probability phi and wrong ones with psi, whatever else they are."""

    needs = (Labelled,)

    def decide_points(self, points: np.ndarray, left: np.ndarray, context: Context) -> np.ndarray:
        chance = np.where(able(context.domain, Labelled).right(points), self.phi, self.psi)
        return generator(context.seed, "verifier").random(left.shape) < chance


@dataclass
class LinearVerifier(PointCurator):
    """Keep a point where a linear classifier through the origin gives the same label. Its direction is `angle` radians
    from the true one, on the same side as a fixed generator's (domain.angle) if it is positive."""

    angle: float = math.pi / 12
    needs = (Labelled,)

    def __post_init__(self) -> None:
        require(abs(self.angle) <= math.pi, "angle", self.angle, "in radians, in [-3.14159, 3.14159]")

    def decide_points(self, points: np.ndarray, left: np.ndarray, context: Context) -> np.ndarray:
        return able(context.domain, Labelled).agrees(points, self.angle)
