"""Verifiers of labelled points (Feng et al. 2024, arXiv 2406.07515): a record is a point with a label, right or wrong.

genloss run domain=classification curation=verifier curation.verifier.psi=0.5 domain.generator=fixed domain.error=0.3
genloss run domain=classification domain.geometry=halfspace curation=linear_verifier
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from genloss.curate import Context, Curator
from genloss.errors import UserError, require
from genloss.seeds import generator


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

    def judge_points(self, points: np.ndarray, left: np.ndarray, context: Context) -> np.ndarray:
        chance = np.where(_asked(context, "right", "verifier")(points), self.phi, self.psi)
        return generator(context.seed, "verifier").random(left.shape) < chance


@dataclass
class LinearVerifier(Curator):
    """Keep a point where a linear classifier through the origin gives the same label. Its direction is `angle` radians from the
    true one, on the same side as a fixed generator's (domain.angle) if it is positive."""

    angle: float = math.pi / 12

    def __post_init__(self) -> None:
        require(abs(self.angle) <= math.pi, "angle", self.angle, "in radians, in [-3.14159, 3.14159]")

    def judge_points(self, points: np.ndarray, left: np.ndarray, context: Context) -> np.ndarray:
        return _asked(context, "agrees", "linear_verifier")(points, self.angle)


def _asked(context: Context, question: str, name: str) -> Any:
    method = getattr(context.domain, question, None)
    if method is None:
        raise UserError("curation", name, f"needs labelled points, and {context.domain.name} has none; "
                        "use it with domain=classification")  # fmt: skip
    return method
