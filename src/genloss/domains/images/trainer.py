"""How a diffusion model is trained: the options, without torch (genloss.domains.images.training has the training).

genloss run domain=images trainer.steps=2000 trainer.lr=1e-3
genloss run domain=images trainer.start=previous"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from genloss.core.contracts import Experiment, Fit
from genloss.core.errors import UserError, require
from genloss.language.trainer import Descent

if TYPE_CHECKING:
    from genloss.domains.images.training import Denoiser, Pictures


@dataclass
class Diffusion(Descent):
    """Denoising (Ho et al. 2020): mean squared error of what the model predicts of the noise, at a timestep that is
    drawn for each image. A row is an image. What is saved is an exponential moving average of the weights."""

    ema: float = 0.995  # decay a step; less in the first steps, min(ema, (1 + n) / (10 + n)). 0: the last weights
    unlabelled: float = 0.1  # probability that an image's class is not told, which guidance needs (Ho & Salimans 2022)
    STRATEGIES: ClassVar[tuple[str, ...]] = ("auto", "ddp")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.ema < 1, "ema", self.ema, "in [0, 1)")
        require(0 <= self.unlabelled <= 1, "unlabelled", self.unlabelled, "a probability")

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        if experiment.runtime.strategy not in self.STRATEGIES:
            why = "splits the weights, of which a diffusion model has few; use auto or ddp"
            raise UserError("runtime.strategy", experiment.runtime.strategy, why)

    def module(self, fit: Fit) -> Denoiser:
        from genloss.domains.images.training import Denoiser

        return Denoiser(fit)

    def batches(self, fit: Fit) -> Pictures:
        from genloss.domains.images.training import Pictures

        return Pictures(fit)
