"""The training of diffusion models: genloss.language.training has what every training has, this its loss and its data.

    image, label -> a timestep and noise of its own -> the noisy image -> UNet -> squared error

What is drawn for a batch follows from the run's seed and the batch's number alone: a training that goes on after a kill
draws the same. The pixels of the training set lie in a file that is mapped, in the scratch folder: a set may be larger
than memory, and each epoch has an order of its own all the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, IterableDataset

from genloss.core import records
from genloss.core.contracts import Fit
from genloss.core.seeds import generator
from genloss.domains.images.model import DiffusionModel, classes, features
from genloss.domains.images.pictures import decode
from genloss.language.training import Examples, Learner, options_of

if TYPE_CHECKING:
    from genloss.domains.images.trainer import Diffusion


class Batch(NamedTuple):
    """Images that are in memory at once, those of this process."""

    images: torch.Tensor  # float [rows, channels, side, side] in [-1, 1]
    labels: torch.Tensor  # int [rows]; K where none is told
    noise: torch.Tensor  # like images
    timesteps: torch.Tensor  # int [rows]
    weights: torch.Tensor  # float [rows]
    whole: torch.Tensor  # images of the whole step, over all processes and accumulated batches


class Denoiser(Learner):
    """Mean squared error of what `fit.model` predicts of noisy images, each weighted by its shard's weight."""

    options: Diffusion

    def __init__(self, fit: Fit):
        super().__init__(fit)
        assert isinstance(fit.model, DiffusionModel)
        self.model, self.scheduler = fit.model.initial(fit)
        self.average = AveragedModel(self.model, multi_avg_fn=self._mixed).requires_grad_(False)

    @torch.no_grad()
    def _mixed(self, average: Any, now: Any, steps: Any) -> None:
        n = int(steps)
        torch._foreach_lerp_(average, now, 1 - min(self.options.ema, (1 + n) / (10 + n)))

    def errors(self, model: Any, batch: Batch) -> torch.Tensor:
        """[rows]: mean squared error of each image."""
        return errors(model, self.scheduler, batch.images, batch.noise, batch.timesteps, batch.labels)

    def loss(self, batch: Batch) -> torch.Tensor:
        each = self.errors(self.model, batch) * batch.weights
        return each.sum() / batch.whole * (self.trainer.world_size * self.options.accumulate)

    def held_out(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.errors(self.average.module, batch) * batch.weights).sum(), batch.weights.sum()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.average.update_parameters(self.model)

    def write_model(self, state: dict[str, Any]) -> None:
        prefix = "average.module."
        assert isinstance(self.fit.model, DiffusionModel)
        weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        self.fit.model.save(self.model, self.scheduler, self.fit.out / "model", weights)

    def seen(self, steps: int) -> dict[str, int]:
        return {"images": steps * self.options.batch}

    def learned(self) -> Iterator[torch.nn.Parameter]:
        return self.model.parameters()

    def left_out(self) -> set[str]:
        return set()

    def memory(self, rows: int) -> tuple[int, str]:
        """What the residual blocks keep for their gradients alone, each the input of two normalisations, two
        activations and two convolutions."""
        blocks = 2 * self.model.config.layers_per_block + 1
        return 4 * rows * 6 * blocks * features(self.model), f"the residual blocks of {rows} images"


def errors(
    model: Any,
    scheduler: Any,
    images: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """[rows]: mean squared error of what a model predicts, the noise or v, of images [rows, channels, side, side]."""
    noisy = scheduler.add_noise(images, noise, timesteps)
    v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(images, noise, timesteps) if v else noise
    return (model(noisy, timesteps, class_labels=labels).sample - target).square().flatten(1).mean(1)


def scaled(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [rows, channels, side, side] as float in [-1, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) * (2 / 255) - 1)


# -- what it is trained on ---------------------------------------------------------------------------------------------


class Pixels:
    """The images of some shards as one array that is mapped from a file: `images` uint8 [n, channels, side, side],
    `labels` int32 [n] and `weights` float32 [n], those of the shards."""

    def __init__(self, shards: list[Path], weights: list[float], shape: tuple[int, int, int], file: Path | None):
        counts = [records.count(path) for path in shards]
        self.weights = np.repeat(np.asarray(weights, dtype=np.float32), counts)
        whole = (sum(counts), *shape)
        if file is None:
            with tempfile.TemporaryFile() as made:
                self.labels = _write(shards, made)
                self.images = np.memmap(made, np.uint8, "r", shape=whole)
            return
        if not file.is_file():  # of a training that was killed it is there, and whole
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_name(f".{file.name}.{os.getpid()}")
            with aside.open("wb") as made:
                _write(shards, made)
            os.replace(aside, file)
        self.labels = np.concatenate([_labels(part) for path in shards for part in records.scan(path, ["label"])])
        self.images = np.memmap(file, np.uint8, "r", shape=whole)

    def __len__(self) -> int:
        return len(self.weights)


def _labels(table: pa.Table) -> np.ndarray:
    return table.column("label").to_numpy().astype(np.int32)


def _write(shards: list[Path], file: Any) -> np.ndarray:
    """Write the pixels of shards, channels first; returns their labels."""
    labels = []
    for path in shards:
        for part in records.batches(path, ["image", "label"]):
            file.write(np.ascontiguousarray(decode(part.column("image")).transpose(0, 3, 1, 2)))
            labels.append(_labels(part))
    file.flush()
    return np.concatenate(labels)


class Pictures(Examples):
    """The shards of a training, without end, and the first pictures of the real validation split, always the same with
    the same noise."""

    def __init__(self, fit: Fit):
        super().__init__()
        self.fit, self.options = fit, options_of(fit)
        self.rows = self.options.batch // self.options.accumulate

    def _pixels(self, shards: list[Path], weights: list[float], name: str) -> Pixels:
        side = self.fit.options["side"]
        file = self.fit.scratch and self.fit.scratch / "pixels" / name
        return Pixels(shards, weights, (self.fit.options["channels"], side, side), file)

    def _train(self) -> Pixels:
        return self._pixels(self.fit.shards, self.fit.weights, "train")

    def _validation(self) -> Pixels:
        return self._pixels([self.fit.data / "validation.parquet"], [1.0], "validation")

    def prepare_data(self) -> None:
        """Lightning calls it in one process of a machine, before the others look for these files."""
        if self.fit.scratch:
            self._train(), self._validation()

    def rows_in(self, epochs: int) -> int:
        return epochs * sum(map(records.count, self.fit.shards))

    def train_dataloader(self) -> DataLoader[Batch]:
        first = self.trainer.fit_loop.total_batch_idx + 1 if self.trainer else 0  # before a kill
        return DataLoader(Endless(self._train(), self.fit, self.rows, first), batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(
            HeldOut(self._validation(), self.fit, self.rows, self.options.validation_rows), batch_size=None
        )


class Endless(IterableDataset[Batch]):
    """Batches of `size` images from batch `first` on. Of every batch, each process of a distributed run takes its own
    images, and one without weight where there are not enough."""

    def __init__(self, pixels: Pixels, fit: Fit, size: int, first: int):
        self.pixels, self.fit, self.size, self.first = pixels, fit, size, first
        self.options, self.none = options_of(fit), classes(fit.data)
        self.timesteps = timesteps(fit)

    def __iter__(self) -> Iterator[Batch]:
        number, n = self.first, len(self.pixels)
        epoch, order = -1, np.empty(0, dtype=np.int64)
        while True:
            places = np.arange(number * self.size, (number + 1) * self.size)
            rows = np.empty(self.size, dtype=np.int64)
            for each in np.unique(places // n).tolist():
                if each != epoch:
                    epoch, order = each, generator(self.fit.seed, "epoch", each).permutation(n)
                rows[places // n == each] = order[places[places // n == each] % n]
            rng = generator(self.fit.seed, "batch", number)
            labels = self.pixels.labels[rows].astype(np.int64)
            labels[(labels < 0) | (rng.random(self.size) < self.options.unlabelled)] = self.none
            drawn = rng.integers(0, self.timesteps, self.size)
            yield batch(self.pixels, rows, labels, rng, drawn, self.options.batch)
            number += 1


class HeldOut(IterableDataset[Batch]):
    """The first `most` images, each with noise of its own and the timesteps spread evenly: the same in all rounds."""

    def __init__(self, pixels: Pixels, fit: Fit, size: int, most: int):
        self.pixels, self.size, self.most = pixels, size, min(most, len(pixels))
        self.none, self.timesteps = classes(fit.data), timesteps(fit)

    def __iter__(self) -> Iterator[Batch]:
        spread = (np.arange(self.most) * self.timesteps) // self.most
        for first in range(0, self.most, self.size):
            rows = np.arange(first, min(first + self.size, self.most))
            labels = self.pixels.labels[rows].astype(np.int64)
            labels[labels < 0] = self.none
            yield batch(self.pixels, rows, labels, generator(0, "validation", first), spread[rows], self.most)


def timesteps(fit: Fit) -> int:
    """How many the noise of a training has."""
    assert isinstance(fit.model, DiffusionModel)
    return fit.model.steps_of_noise(fit)


def batch(
    pixels: Pixels, rows: np.ndarray, labels: np.ndarray, rng: np.random.Generator, drawn: np.ndarray, whole: int
) -> Batch:
    """Those images with noise of `rng`; of several processes the part of this one."""
    images = pixels.images[np.asarray(rows)]
    noise = rng.standard_normal(images.shape, dtype=np.float32)
    weights = pixels.weights[rows]
    rank, world = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = np.arange(rank, len(rows) + -len(rows) % world, world)
    there = mine < len(rows)
    mine = np.where(there, mine, 0)
    return Batch(
        scaled(images[mine]),
        torch.from_numpy(labels[mine]),
        torch.from_numpy(noise[mine]),
        torch.from_numpy(drawn[mine]),
        torch.from_numpy(np.where(there, weights[mine], np.float32(0))),
        torch.tensor(float(whole)),
    )
