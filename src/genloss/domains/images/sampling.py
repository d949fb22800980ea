"""Sampling images: many at once, each from its own random stream, the same on any number of workers.

    sample(model, 1000, labels, seed=0, steps=25)       # DDIM (Song et al. 2021)

Record i draws the noise that it begins with, and that of its steps if `eta` asks for some, from a stream of its own.
Records are computed in chunks, one thread a chunk and chunks in parallel; since kernels differ between batch sizes, the
last one is computed whole and cut, and the size of a chunk is part of a run's identity. Finished chunks are kept in
`scratch`.

Guidance without a classifier (Ho & Salimans 2022): (1 + w) times what the model predicts of the class less w times what
it predicts without one. The sampling bias of Alemohammad et al. (2024) is λ = 1 / (1 + w): 1 is faithful."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from genloss.core import records
from genloss.core.contracts import Report, Runtime, silent
from genloss.core.errors import UserError, require
from genloss.core.machine import cores, memory
from genloss.core.seeds import generator
from genloss.domains.images.model import features, load
from genloss.domains.images.pictures import decode, encode
from genloss.language.model import device_of, one_thread


@dataclass(frozen=True)
class Step:
    """One step of a chunk, as a `Hook` sees it. rows: images of the chunk, of which `first` is the number of the
    first."""

    unet: Any
    scheduler: Any
    x: torch.Tensor  # float [rows, channels, side, side], as the model takes it
    t: torch.Tensor  # the timestep
    labels: torch.Tensor  # int [rows]; `none` where there is none
    none: int  # K
    guidance: float  # w
    number: int  # of this step, from 0
    steps: int
    first: int

    def predict(self, labels: torch.Tensor) -> torch.Tensor:
        """What the model says of x: the noise, or v."""
        return self.unet(self.x, self.t, class_labels=labels).sample


Hook = Callable[[Step], torch.Tensor]  # what the model predicts, with guidance, float [rows, channels, side, side]


def guided(step: Step) -> torch.Tensor:
    """Without guidance one pass, with it two."""
    told = step.predict(step.labels)
    if step.guidance == 0:
        return told
    return told + step.guidance * (told - step.predict(torch.full_like(step.labels, step.none)))


def weight(guidance: float, bias: float) -> float:
    """w of both ways to say it; one of them says nothing."""
    return guidance if bias == 1 else 1 / bias - 1


def check_memory(unet: Any, rows: int, key: str, value: int) -> None:
    """Refuse more images together than memory holds (UserError of `key`): the way up through a UNet needs what each
    layer on the way down has made."""
    needed = 4 * rows * (unet.config.layers_per_block + 1) * features(unet)
    there = memory(unet.device.type)
    if needed > there:
        why = f"{rows} images at once take {needed / 1e9:.0f} GB, and there are {there / 1e9:.0f}; lower it"
        raise UserError(key, value, why)


def stepper(kind: str, trained: Any, steps: int) -> Any:
    """A scheduler of diffusers for the noise that a model was trained with. UserError: that has fewer timesteps."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    most = int(trained.config.num_train_timesteps)
    require(steps <= most, "recipe.steps", steps, f"at most {most}, the timesteps of the model's noise")
    config = {k: v for k, v in trained.config.items() if not k.startswith("_")}
    made = (
        DDIMScheduler.from_config(config)
        if kind == "ddim"
        else EulerDiscreteScheduler.from_config(config, final_sigmas_type="zero")
    )
    made.set_timesteps(steps)
    return made


def sample(
    model_dir: Path,
    n: int,
    labels: Sequence[int] | np.ndarray | None = None,
    *,
    seed: int,
    first: int = 0,
    steps: int = 25,
    guidance: float = 0.0,
    bias: float = 1.0,
    eta: float = 0.0,
    chunk: int = 64,
    scheduler: str = "ddim",
    scratch: Path | None = None,
    hook: Hook | None = None,
    runtime: Runtime | None = None,
    report: Report = silent,
) -> Iterator[np.ndarray]:
    """Yield n images of the model in a folder, uint8 [rows, side, side, channels], chunk by chunk: records `first` to
    `first + n - 1` of the seed. labels: n classes, -1 or None for none. eta: noise of the steps of DDIM, 1 being that
    of DDPM. scratch: finished chunks are kept there, and found again after a kill; None: nothing is kept. hook: takes
    the place of `guided`.

    UserError: guidance of a model that knows no classes; labels that it does not know; chunks larger than memory."""
    runtime = runtime or Runtime()
    device = device_of(runtime)
    one_thread()
    torch.use_deterministic_algorithms(device == "cpu")
    unet, trained = load(model_dir)
    unet = unet.to(device)
    w, none = weight(guidance, bias), int(unet.config.num_class_embeds or 1) - 1
    if w and not none:
        raise UserError("recipe.guidance", w, "needs classes, and this model knows none; leave it at 0, and bias at 1")
    told = np.full(n, -1) if labels is None else np.asarray(labels)
    if len(told) != n or (n and not -1 <= int(told.min()) <= int(told.max()) < max(none, 1)):
        raise UserError("labels", f"{len(told)} of {n} images", f"are to be -1 to {none - 1}, one an image")
    told = np.where((told < 0) | (none == 0), none, told)

    def made(number: int) -> np.ndarray:
        rows = np.arange(number * chunk, (number + 1) * chunk)
        mine = int((rows < n).sum())
        kept = scratch and scratch / f"chunk-{number:06d}.parquet"
        if kept and kept.is_file():
            return decode(records.read(kept).column("image"))
        images = sample_chunk(
            unet,
            stepper(scheduler, trained, steps),
            torch.from_numpy(told[np.minimum(rows, n - 1)]).to(device),
            seed=seed,
            first=first + number * chunk,
            none=none,
            guidance=w,
            eta=eta,
            hook=hook or guided,
        )[:mine]
        if kept:
            records.write(pa.table({"image": pa.array(encode(images), pa.binary())}), kept)
        return images

    chunks, done = -(-n // chunk), 0
    workers = 1 if device == "cuda" else min(runtime.workers or cores(), max(1, chunks))
    check_memory(unet, workers * chunk, "recipe.chunk", chunk)
    with ThreadPoolExecutor(workers, initializer=one_thread) as pool:
        # a few at a time: what is not asked for yet would wait in memory
        for at in range(0, chunks, 4 * workers):
            for images in pool.map(made, range(at, min(chunks, at + 4 * workers))):
                done += len(images)
                report(done, n, "records")
                yield images


@torch.inference_mode()
def sample_chunk(
    unet: Any,
    scheduler: Any,
    labels: torch.Tensor,
    *,
    seed: int,
    first: int,
    none: int,
    guidance: float,
    eta: float,
    hook: Hook = guided,
) -> np.ndarray:
    """uint8 [rows, side, side, channels]: records `first` to `first + rows - 1`, computed at once."""
    side, channels = unet.config.sample_size, unet.config.in_channels
    streams = [generator(seed, "image", first + i) for i in range(len(labels))]

    def noise() -> torch.Tensor:
        drawn = np.stack([rng.standard_normal((channels, side, side), dtype=np.float32) for rng in streams])
        return torch.from_numpy(drawn).to(labels.device)

    x = noise() * scheduler.init_noise_sigma
    times = scheduler.timesteps
    for number, t in enumerate(times):
        seen = scheduler.scale_model_input(x, t)
        step = Step(unet, scheduler, seen, t.to(x.device), labels, none, guidance, number, len(times), first)
        more: dict[str, Any] = {"eta": eta, "variance_noise": noise()} if eta else {}
        x = scheduler.step(hook(step), t, x, **more).prev_sample
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
