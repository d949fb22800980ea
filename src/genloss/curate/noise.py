"""The noise of a verifier: with which probability it keeps what is right and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from genloss.core.errors import require
from genloss.curate import Rated


@dataclass
class NoisyRates(Rated):
    """phi = P(kept | right) and psi = P(kept | wrong), each record on its own draw (Feng et al. 2024, arXiv 2406.07515,
    section 4)."""

    phi: float = 0.9
    psi: float = 0.3

    def __post_init__(self) -> None:
        for key in ("phi", "psi"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        require(self.phi + self.psi > 0, "phi", self.phi, "greater than 0 where psi=0, or nothing is kept")

    def rates(self) -> tuple[float, float]:
        return self.phi, self.psi
