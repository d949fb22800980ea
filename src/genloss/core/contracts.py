"""A domain says what the data and the models are: it prepares real data, trains, samples and scores.

The loop never asks which domain it runs. A new domain is one package with a `Domain`, a `Model` and a `Trainer`
(dataclasses, so that their fields are the schema of their YAML) plus `conf/domain/NAME.yaml`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from genloss.core.errors import UserError, one_of, require

if TYPE_CHECKING:
    from genloss.experiment import Experiment

Report = Callable[..., None]  # report(done, total, unit): progress inside a stage


# of Lightning, which is not imported to check a name
STRATEGIES = (
    "auto",
    "ddp",
    "ddp_spawn",
    "ddp_find_unused_parameters_true",
    "fsdp",
    "fsdp_cpu_offload",
    "deepspeed",
    "deepspeed_stage_1",
    "deepspeed_stage_2",
    "deepspeed_stage_2_offload",
    "deepspeed_stage_3",
    "deepspeed_stage_3_offload",
)


def silent(done: float, total: float, unit: str) -> None:
    """A `Report` that says nothing."""


@dataclass(frozen=True)
class Runtime:
    """How work is carried out. Nothing here may change a result, so nothing here is part of an arm's identity."""

    workers: int = 0  # sampling chunks at a time; 0: one per core
    accelerator: str = "cpu"
    devices: int = 1
    strategy: str = "auto"
    num_nodes: int = 1

    def __post_init__(self) -> None:
        require(self.workers >= 0, "workers", self.workers, "at least 0 (0: one per core)")
        one_of("accelerator", self.accelerator, ("cpu", "gpu", "cuda", "auto"))
        one_of("strategy", self.strategy, STRATEGIES)
        for key in ("devices", "num_nodes"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")


class Model:
    """What is trained: an architecture or a model to continue from. A plug-in of its domain."""

    def fingerprint(self) -> str:
        """Hash of files outside the run that training starts from; '' if there are none."""
        return ""


class Trainer:
    """How it is trained: budget, optimiser, schedule. A plug-in of its domain."""

    def check(self, experiment: Experiment) -> None:
        """Refuse, before any work, what cannot run with the rest of the config (UserError)."""

    def fingerprint(self) -> str:
        """Hash of what training depends on outside the trainer's own module; '' if there is nothing."""
        return ""


@dataclass(frozen=True)
class Fit:
    """One training: everything that `Domain.train` may read."""

    model: Model
    trainer: Trainer
    data: Path  # folder of `prepare`
    shards: list[Path]  # Parquet files of records, in a fixed order
    weights: list[float]  # loss weight of each shard
    start: Path | None  # model to continue from (warm start); None: a fresh one
    seed: int
    out: Path  # folder to write the model to
    options: dict[str, Any] = field(default_factory=dict)  # Domain.config("train")
    runtime: Runtime = field(default_factory=Runtime)
    report: Report = silent


@dataclass(frozen=True)
class Sampling:
    """One request for samples: `n` records from `model`, each with its own random stream."""

    model: Path
    data: Path
    n: int
    seed: int
    options: Any  # the recipe's decoding options
    prompts: Sequence[str] | None  # one per record, or None: unconditional
    scratch: Path  # finished chunks are kept here and found again after a kill
    runtime: Runtime = field(default_factory=Runtime)
    report: Report = silent


class Domain(ABC):
    """Data, model, training, sampling and scoring of one world. `name` labels folders and tags."""

    name: str
    payload: tuple[str, ...]  # the columns that a record of this domain adds

    headline: str  # the metric that tables and figures show unless told otherwise
    panels: tuple[str, ...] = ()  # the metrics that figures and `dvc plots` show beside it

    def check(self, experiment: Experiment) -> None:
        """Refuse, cheaply and before any work, a config that cannot run (UserError)."""

    def config(self, stage: str) -> dict[str, Any]:
        """The part of the domain's own config that `stage` depends on (data, generate, train, evaluate)."""
        return {}

    def code(self, stage: str) -> tuple[str, ...]:
        """Names of the modules whose source `stage` depends on."""
        return ()

    def libraries(self, stage: str) -> tuple[str, ...]:
        """Names of the distributions whose version `stage` depends on."""
        return ()

    def theory(self, experiment: Experiment) -> list[dict[str, float]]:
        """What theory predicts of rounds 0, 1, ... of this arm, under the names of the metrics that it predicts; [] where there
        is no exact expectation."""
        return []

    def expected(self, experiment: Experiment, measured: Mapping[str, float]) -> dict[str, float]:
        """What theory predicts of a round from other numbers that were `measured` in it; names as in `theory`."""
        return {}

    def fingerprint(self) -> str:
        """Hash of whatever real data lies outside the config (a user's files); '' if there is none."""
        return ""

    @abstractmethod
    def prepare(self, out: Path) -> dict[str, Any]:
        """Write the real data to `out`: records in `train.parquet`, `validation.parquet`, `test.parquet` and
        `prompts.parquet` (disjoint), and whatever else sampling and training need. Returns small results."""

    @abstractmethod
    def train(self, fit: Fit) -> dict[str, Any]:
        """Train a model and write it to `fit.out`. Returns small results, `tokens` (or points) seen among them."""

    @abstractmethod
    def sample(self, request: Sampling) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield (payload columns, tokens made) chunk by chunk, `request.n` records in all, in order."""

    def losses(
        self, model: Path, data: Path, table: pa.Table, runtime: Runtime, report: Report = silent
    ) -> tuple[np.ndarray, np.ndarray]:
        """Total loss in nats [n] and number of predicted tokens [n] of each record under `model`."""
        raise UserError("domain", self.name, "has no loss of a single record; choose other metrics and curators")
