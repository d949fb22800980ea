"""The theory lab: domains in which collapse has a closed form, thousands of chains at once, through the same loop.

    genloss run -m domain=gaussian mixing=replace,accumulate rounds=50

A lab domain is a `Lab`: how real points are drawn, how a model is fitted to weighted points, how it is sampled, what is
measured of it. All of them act on every chain in one array operation. `theory` says what must come out, where that is
known."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Points, able
from genloss.core.contracts import Curated, Domain, Experiment, Fit, Model, Trainer
from genloss.core.errors import UserError, require
from genloss.core.machine import cores
from genloss.core.seeds import seed_of
from genloss.curate import Context, Curator
from genloss.domains.lab.chains import COLUMN, table_of
from genloss.domains.lab.curate import curate_chains
from genloss.domains.lab.mix import mix_chains, read_shards

if TYPE_CHECKING:
    from genloss.domains.lab.draw import Draw
    from genloss.generate import Request
    from genloss.mix import Regime

Parameters = dict[str, np.ndarray]  # of a model; every array begins with the axis of chains
MOST = 10**10  # points of all chains in a round: 80 GB and more
BLOCK = 25  # slots that are drawn together, from one random stream
WIDE = 2000  # chains that are worked on together


class LabModel(Model):
    """What is fitted: a closed form, which warm starts as it does cold. A model that does not overrides `check`."""

    def check(self, experiment: Experiment) -> None:
        start, what = experiment.trainer.start, "base: what a formula fits does not depend on where it starts"
        require(start == "base", "trainer.start", start, f"{what}; domain=gmm continues from the last model")


@dataclass
class ClosedForm(Trainer):
    """No budget and no schedule: the estimator is a formula (or, for a mixture, EM with a fixed number of steps)."""

    uses_domain = True

    def train(self, fit: Fit) -> dict[str, Any]:
        points, weights = read_shards(fit.shards, fit.weights)
        fitted = able(fit.domain, Lab).estimate(points, weights, fit, load(fit.data / "truth.safetensors"))
        save(fitted, fit.out / "model" / "model.safetensors")
        curve = "step,loss,lr,validation_loss\n"  # a formula has none
        (fit.out / "training.csv").write_text(curve, encoding="utf-8")
        fit.report(1, 1, "fits")
        return {"points": float((weights > 0).sum() / weights.shape[1])}


def stream(seed: int, *path: str | int) -> np.random.Generator:
    """A generator of its own for the purpose that `path` names; SFC64, the fastest of NumPy's for normal numbers."""
    return np.random.Generator(np.random.SFC64(seed_of(seed, *path)))


def pool(workers: int = 0) -> ThreadPoolExecutor:
    return _pool(workers or cores(), os.getpid())


@cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers)  # a fork has none of its parent's threads


def in_blocks(
    n: int, seed: int, draw: Callable[..., np.ndarray], workers: int = 0, fill: Callable[..., None] | None = None
) -> np.ndarray:
    """[n, ...] from draw(generator, count), block by block of slots, each from its own stream: the same on any number
    of cores. A block of a few thousand chains fits the cache of a core. `fill(generator, block)` writes the same
    numbers in place."""
    if n <= BLOCK:
        return draw(stream(seed, "block", 0), n)
    out = np.empty((n, *draw(stream(seed, "shape"), 0).shape[1:]))

    def block(at: int) -> None:
        rng = stream(seed, "block", at)
        if fill:
            fill(rng, out[at : at + BLOCK])
        else:
            out[at : at + BLOCK] = draw(rng, min(BLOCK, n - at))

    list(pool(workers).map(block, range(0, n, BLOCK)))
    return out


def by_chains(chains: int, work: Callable[[slice], None], workers: int = 0) -> None:
    """Call `work` for slices of the chains, on all cores: what it reads fits the cache."""
    list(pool(workers).map(lambda at: work(slice(at, at + WIDE)), range(0, chains, WIDE)))


def is_even(weights: np.ndarray) -> bool:
    """Whether all weights [n, chains] are one number; cheap where they are stored as one."""
    return weights.strides == (0, 0) or bool(weights.min() == weights.max())


class Tokens(ABC):
    """points that are tokens"""

    @property
    @abstractmethod
    def tokens(self) -> int: ...


class Moments:
    """models with one mean and covariance"""


class Labelled(ABC):
    """points with labels, right or wrong"""

    @abstractmethod
    def right(self, points: np.ndarray) -> np.ndarray:
        """bool [slots, chains]: whether the label is the true one."""

    @abstractmethod
    def agrees(self, points: np.ndarray, angle: float) -> np.ndarray:
        """bool [slots, chains]: whether a linear classifier at `angle` from the truth gives the same label."""


@dataclass
class Lab(Domain, Points):
    """Base of the lab's domains. Fields shared by all of them; a subclass adds its own."""

    name: str = "lab"
    chains: int = 1000  # independent repetitions
    slots: int = 0  # real points that every chain has; 0: as many as the regime needs
    seed: int = 0  # of the real points
    payload = (COLUMN,)
    headline = "diversity"
    trainers = (ClosedForm,)
    options: ClassVar[tuple[str, ...]] = ()  # of `Draw`, those that change how its points are drawn

    def __post_init__(self) -> None:
        require(self.chains >= 2, "chains", self.chains, "at least 2, or there is no standard error")
        require(self.slots >= 0, "slots", self.slots, "at least 0 (0: as many as the regime needs)")

    # -- what a lab domain says ------------------------------------------------------------------------------------

    def record_bytes(self) -> int:
        return 8 * self.chains * getattr(self, "dimension", 1)

    @abstractmethod
    def real(self, rng: np.random.Generator, n: int, truth: Parameters) -> np.ndarray:
        """n real points of every chain, [n, chains, width]."""

    def truth(self) -> Parameters:
        """What is fixed about the real world, and shared by all chains or drawn for each."""
        return {}

    @abstractmethod
    def estimate(self, points: np.ndarray, weights: np.ndarray, fit: Fit, truth: Parameters) -> Parameters:
        """Fit every chain's model to points [n, chains, width] with weights [n, chains] >= 0 (0: absent)."""

    @abstractmethod
    def draw(self, model: Parameters, rng: np.random.Generator, n: int, options: Draw, truth: Parameters) -> np.ndarray:
        """n points from every chain's model, [n, chains, width]; exchangeable over slots."""

    def fill(self, model: Parameters, options: Draw, truth: Parameters) -> Callable[..., None] | None:
        """A function (generator, out) that writes into `out` what `draw` returns, where that is faster; None: it is
        not."""
        return None

    @abstractmethod
    def measure(self, model: Parameters, truth: Parameters) -> dict[str, np.ndarray]:
        """Numbers [chains] of a fitted model. Names are those of `theory`."""

    # -- the interface of the loop, the same for all -------------------------------------------------------------------

    def config(self, stage: str) -> dict[str, Any]:
        return dict(vars(self))

    def check(self, experiment: Experiment) -> None:
        needed = experiment.regime.used(experiment.rounds + 1, experiment.size)
        if 0 < self.slots < needed:
            why = f"fewer than the {needed} real points a chain that all rounds take; 0 makes as many as they need"
            raise UserError("slots", self.slots, why)
        self.slots = self.slots or needed
        allowed = f"at most {MOST:.0e} / {self.slots}, the real points of each"
        require(self.chains * self.slots <= MOST, "chains", self.chains, allowed)

    def curate(self, table: pa.Table, curators: Mapping[str, Curator], control: str, context: Context) -> Curated:
        return curate_chains(table, curators, control, context)

    def shards(
        self, regime: Regime, n: int, sources: Mapping[str, Path], out: Path, rng: np.random.Generator
    ) -> dict[str, Any]:
        return mix_chains(regime, n, sources, out, rng)

    def prepare(self, out: Path) -> dict[str, Any]:
        truth = self.truth()
        points = in_blocks(self.slots, seed_of(self.seed, "real"), lambda rng, n: self.real(rng, n, truth))
        records.write(table_of(points, origin=records.REAL, generation=0, recipe="truth"), out / "train.parquet")
        save(truth, out / "truth.safetensors")
        return {"train": self.slots}

    def points(
        self, model: Parameters, n: int, seed: int, options: Draw, truth: Parameters, workers: int = 0
    ) -> np.ndarray:
        """n points from every chain's model, [n, chains, width]."""

        def draw(rng: np.random.Generator, count: int) -> np.ndarray:
            return self.draw(model, rng, count, options, truth)

        return in_blocks(n, seed, draw, workers, self.fill(model, options, truth))

    def made(self, request: Request, recipe: Draw) -> np.ndarray:
        """The points of a round, [n, chains, width]."""
        model, truth = load(request.model / "model.safetensors"), load(request.data / "truth.safetensors")
        return self.points(model, recipe.n, request.seed, recipe, truth, request.runtime.workers)


def save(arrays: Parameters, path: Path) -> None:
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()} or {"none": np.zeros(0)}, path)


def load(path: Path) -> Parameters:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            str(path), None, f"cannot be read ({str(error).splitlines()[0]}); delete it and run again"
        ) from None
