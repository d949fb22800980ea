"""The recipe of images: draw them from the last model.

    genloss run domain=images                                    # recipe=diffusion
    genloss run domain=images recipe.bias=0.5                    # λ of Alemohammad et al. 2024; w = 1 / λ - 1 = 1
    genloss run domain=images recipe.guidance=2 recipe.scheduler=euler recipe.steps=20

The classes of the records are those of the real training data in their proportion there, drawn with a stream of their
own: a model is asked for what there is, and what its images are of is its own affair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Images
from genloss.core.contracts import Experiment
from genloss.core.errors import one_of, require
from genloss.core.seeds import generator
from genloss.domains.images.model import DiffusionModel
from genloss.domains.images.pictures import encode
from genloss.generate import Recipe, Request

SCHEDULERS = ("ddim", "euler")


def drawn_labels(request: Request, n: int) -> np.ndarray:
    """int32 [n]: classes of the real training data, in their proportion there."""
    tables = records.scan(request.data / "train.parquet", ["label"])
    real = np.concatenate([table.column("label").to_numpy() for table in tables])
    return real[generator(request.seed, "labels").integers(0, len(real), n)]


class Sampled(Recipe):
    """A recipe that samples by diffusers' schedulers: what it refuses of the options of that."""

    n: int
    scheduler: str
    steps: int
    eta: float
    guidance: float
    needs = (Images,)

    def __post_init__(self) -> None:
        for key in ("n", "steps"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        one_of("scheduler", self.scheduler, SCHEDULERS)
        require(self.steps <= 1000, "steps", self.steps, "at most 1000")
        require(self.guidance >= 0, "guidance", self.guidance, "at least 0 (0: faithful)")
        require(0 <= self.eta <= 1, "eta", self.eta, "in [0, 1]")
        require(
            self.eta == 0 or self.scheduler == "ddim", "eta", self.eta, "0 with scheduler=euler, which has no noise"
        )

    def check(self, experiment: Experiment) -> None:
        if isinstance(experiment.model, DiffusionModel):
            most = experiment.model.most_steps()
            require(self.steps <= most, "steps", self.steps, f"at most {most}, the timesteps of the model's noise")


@dataclass
class DrawImages(Sampled):
    """Sampling by diffusers' schedulers, DDIM (Song et al. 2021) or Euler's method (Karras et al. 2022)."""

    name: str = "diffusion"
    n: int = 1024  # records a round
    scheduler: str = "ddim"
    steps: int = 20
    eta: float = 0.0  # noise of the steps of DDIM: 0: none, 1: as much as DDPM
    guidance: float = 0.0  # w of guidance without a classifier (Ho & Salimans 2022); 0: faithful, one pass a step
    bias: float = 1.0  # the same as λ = 1 / (1 + w), the sampling bias of Alemohammad et al. (2024)
    chunk: int = 64  # records computed together; part of the identity, since kernels differ between batch sizes

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.chunk <= 4096, "chunk", self.chunk, "from 1 to 4096: a chunk is computed whole")
        require(0 < self.bias <= 1, "bias", self.bias, "in (0, 1] (1: faithful; guidance is 1 / bias - 1)")
        one = self.guidance == 0 or self.bias == 1
        require(
            one, "bias", self.bias, f"1 beside guidance={self.guidance}: they say the same, bias = 1 / (1 + guidance)"
        )

    def at_most(self) -> int:
        return self.n

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        from genloss.domains.images.sampling import sample

        labels = drawn_labels(request, self.n)
        drawn = sample(
            request.model,
            self.n,
            labels,
            seed=request.seed,
            steps=self.steps,
            guidance=self.guidance,
            bias=self.bias,
            eta=self.eta,
            chunk=self.chunk,
            scheduler=self.scheduler,
            scratch=request.scratch,
            runtime=request.runtime,
            report=request.report,
        )

        def tables() -> Iterator[pa.Table]:
            first = 0
            for images in drawn:
                told = pa.array(labels[first : first + len(images)], pa.int32())
                yield records.make_table(
                    {"image": pa.array(encode(images), pa.binary()), "label": told},
                    origin=records.SYNTHETIC,
                    generation=request.round,
                    recipe=self.name,
                    first=first,
                )
                first += len(images)

        return records.spilled(tables(), request.scratch), {}
