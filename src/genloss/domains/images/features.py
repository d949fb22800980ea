"""Vectors of images by a small network that is trained once on real ones, and never again.

    vectors(images, real)        # float64 [n, 64]; real: uint8 [m, h, w, c], what it is trained on

It is an autoencoder: three convolutions down to 64 numbers, and back. It needs no label and no download, and knows
nothing but the real images, so that its distances are no FID, and distances of two data sets do not compare. The same
real images give the same network, in every round, arm and process of a machine: a process trains it once, in 13
seconds of one core, and keeps it as long as it runs. Vectors are centred on the real mean and scaled by one number, so
that a coordinate of real images has variance 1 on average."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

from genloss.core.seeds import generator, seed_of

SIDE = 32  # pixels to which images are scaled
WIDTH = 64  # numbers of a vector
STEPS, BATCH, RATE = 500, 64, 2e-3
TOGETHER = 512  # images that are computed together


def _prepared(images: np.ndarray) -> Any:
    """float [n, c, 32, 32] in [0, 1]."""
    import torch

    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    if x.shape[-2:] != (SIDE, SIDE):
        x = torch.nn.functional.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
    return x


def _network(channels: int) -> tuple[Any, Any]:
    from torch import nn

    def down(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, 2, 1), nn.SiLU()]

    def up(a: int, b: int) -> list[nn.Module]:
        return [nn.SiLU(), nn.ConvTranspose2d(a, b, 4, 2, 1)]

    side = SIDE // 8
    encoder = nn.Sequential(
        *down(channels, 16), *down(16, 32), *down(32, 64), nn.Flatten(), nn.Linear(64 * side**2, WIDTH)
    )
    decoder = nn.Sequential(
        nn.Linear(WIDTH, 64 * side**2), nn.Unflatten(1, (64, side, side)), *up(64, 32), *up(32, 16), *up(16, channels)
    )
    return encoder, decoder


class _Images:
    """Real images as the key of a cache."""

    def __init__(self, images: np.ndarray):
        self.images = images
        self.digest = hashlib.sha256(str(images.shape).encode() + np.ascontiguousarray(images).tobytes()).digest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Images) and self.digest == other.digest


@lru_cache(maxsize=2)  # the same for all rounds and metrics
def _trained(real: _Images) -> tuple[Any, np.ndarray, float]:
    """The encoder, and the mean and scale of its vectors of the real images."""
    import torch

    from genloss.language.model import one_thread

    one_thread()
    images = _prepared(real.images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(0, "features"))
        encoder, decoder = _network(images.shape[1])
    weights = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    order = generator(0, "features").integers(0, len(images), (STEPS, BATCH))
    for some in order:
        batch = images[torch.from_numpy(some)]
        loss = torch.nn.functional.mse_loss(decoder(encoder(batch)), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    encoder.eval().requires_grad_(False)
    found = _embed(encoder, real.images)
    return encoder, found.mean(axis=0), float(np.sqrt(found.var(axis=0).mean()) or 1.0)


def _embed(encoder: Any, images: np.ndarray) -> np.ndarray:
    parts = [encoder(_prepared(images[at : at + TOGETHER])).numpy() for at in range(0, len(images), TOGETHER)]
    return np.concatenate(parts).astype(np.float64)


def vectors(images: np.ndarray, real: np.ndarray) -> np.ndarray:
    """float64 [n, 64] of images, uint8 [n, h, w, c], by the network that is trained on the real ones."""
    from genloss.language.model import one_thread

    encoder, mean, scale = _trained(_Images(real))
    one_thread()
    return (_embed(encoder, images) - mean) / scale
