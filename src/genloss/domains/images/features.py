"""Vectors of images by a small network that is trained once on real ones, and never again.

    network(real, store).vectors(images)        # float64 [n, 64]; real: uint8 [m, h, w, c], what it is trained on

It is an autoencoder: three convolutions down to 64 numbers, and back. It needs no label and no download, and knows
nothing but the real images, so that its distances are no FID, and distances of two data sets do not compare. The same
real images give the same network, in every round, arm and process of a machine. Training takes 13 seconds of one core;
the network is kept in the store, under a key of the images, this code and its libraries, and whoever comes second loads
it. Vectors are centred on the real mean and scaled by one number, so that a coordinate of real images has variance 1 on
average."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from genloss.core import records
from genloss.core.capabilities import Images
from genloss.core.code import reach
from genloss.core.seeds import generator, seed_of
from genloss.core.store import Store, Work

SIDE = 32  # pixels to which images are scaled
WIDTH = 64  # numbers of a vector
STEPS, BATCH, RATE = 500, 64, 2e-3
TOGETHER = 512  # images that are computed together
FIT = 4096  # real images that it is trained on, unless a metric says otherwise
FILE = "features.safetensors"


def _prepared(images: np.ndarray) -> Any:
    """float [n, c, 32, 32] in [0, 1]."""
    import torch

    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    if x.shape[-2:] != (SIDE, SIDE):
        x = torch.nn.functional.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
    return x


def _encoder(channels: int) -> Any:
    from torch import nn

    def down(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, 2, 1), nn.SiLU()]

    halved = (SIDE // 8) ** 2
    return nn.Sequential(*down(channels, 16), *down(16, 32), *down(32, 64), nn.Flatten(), nn.Linear(64 * halved, WIDTH))


def _decoder(channels: int) -> Any:
    from torch import nn

    def up(a: int, b: int) -> list[nn.Module]:
        return [nn.SiLU(), nn.ConvTranspose2d(a, b, 4, 2, 1)]

    side = SIDE // 8
    return nn.Sequential(
        nn.Linear(WIDTH, 64 * side**2), nn.Unflatten(1, (64, side, side)), *up(64, 32), *up(32, 16), *up(16, channels)
    )


@dataclass(frozen=True)
class Network:
    """A trained encoder, and the mean [64] and scale of what it makes of the real images."""

    encoder: Any
    mean: np.ndarray
    scale: float

    @classmethod
    def trained(cls, real: np.ndarray) -> Network:
        import torch

        images = _prepared(real)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(0, "features"))
            encoder, decoder = _encoder(images.shape[1]), _decoder(images.shape[1])
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
        found = _embed(encoder, real)
        return cls(encoder, found.mean(axis=0), float(np.sqrt(found.var(axis=0).mean()) or 1.0))

    def save(self, file: Path) -> None:
        import torch
        from safetensors.torch import save_file

        said = {"mean": torch.from_numpy(self.mean), "scale": torch.tensor(self.scale, dtype=torch.float64)}
        save_file({**{f"encoder.{k}": v for k, v in self.encoder.state_dict().items()}, **said}, file)

    @classmethod
    def load(cls, file: Path, channels: int) -> Network:
        from safetensors.torch import load_file

        held, encoder = load_file(file), _encoder(channels)
        mean, scale = held.pop("mean").numpy(), float(held.pop("scale"))
        encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in held.items()})
        return cls(encoder.eval().requires_grad_(False), mean, scale)

    def vectors(self, images: np.ndarray) -> np.ndarray:
        """float64 [n, 64]."""
        return (_embed(self.encoder, images) - self.mean) / self.scale


def _embed(encoder: Any, images: np.ndarray) -> np.ndarray:
    parts = [encoder(_prepared(images[at : at + TOGETHER])).numpy() for at in range(0, len(images), TOGETHER)]
    return np.concatenate(parts).astype(np.float64)


class _Images:
    """Real images as the key of a cache."""

    def __init__(self, images: np.ndarray):
        self.images = images
        self.digest = hashlib.sha256(str(images.shape).encode() + np.ascontiguousarray(images).tobytes()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Images) and self.digest == other.digest


@lru_cache(maxsize=2)  # the same for all rounds and metrics
def _network(real: _Images, store: Path | None) -> Network:
    if store is None:
        return Network.trained(real.images)
    held, code = Store(store), reach([Network])

    def execute(out: Path, _: Path) -> dict[str, Any]:
        Network.trained(real.images).save(out / FILE)
        return {}

    done = held.get(
        Work(
            stage="features",
            config={"images": real.digest},
            inputs={},
            seed=0,
            code=code.modules(),
            libraries=code.versions(),
            execute=execute,
        )
    )
    return Network.load(held.blob(done.files[FILE]), real.images.shape[3])


def network(real: np.ndarray, store: Path | None = None) -> Network:
    """The one that is trained on real images, uint8 [n, h, w, c]. store: where it is kept, and found
    (genloss.core.store); None: this process alone keeps it."""
    from genloss.language.model import one_thread

    one_thread()
    return _network(_Images(real), store)


def network_of(domain: Images, data: Path, store: Path | None, fit: int = FIT) -> Network:
    """The one of the first `fit` training records in a folder of real data."""
    path = data / "train.parquet"
    return network(domain.pixels(records.read(path, ["image"], rows=(0, min(fit, records.count(path))))), store)
