"""How far images lie from real ones: in a small frozen network (genloss.domains.images.features), and by pixels from
those that a model was trained on.

    genloss run domain=images metrics=[denoising,image_distance,image_manifold,memorisation]

Of sprites exact numbers are known too: genloss.domains.images.counted."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Images, able
from genloss.core.errors import require
from genloss.evaluate import Evidence, SampleMetric
from genloss.evaluate.fidelity import frechet, manifold


def pixels(table: pa.Table, evidence: Evidence) -> np.ndarray:
    """uint8 [n, h, w, c]."""
    return able(evidence.domain, Images).pixels(table)


@dataclass
class InFeatures(SampleMetric):
    """A metric of vectors by the frozen network, which is trained on the first `fit` real training records, those of
    round 0 or not, so that arms of all sizes share it: implement `numbers`."""

    fit: int = 4096
    n: int = 2048  # records of each side, at most
    needs = (Images,)
    least = 32

    def __post_init__(self) -> None:
        require(self.fit >= 64, "fit", self.fit, "at least 64 records")
        require(self.n >= self.least, "n", self.n, f"at least {self.least} records")

    def vectors(self, table: pa.Table, evidence: Evidence) -> np.ndarray:
        """float64 [n, d] of a table's first n."""
        from genloss.domains.images.features import network_of

        network = network_of(able(evidence.domain, Images), evidence.data, evidence.store, self.fit)
        return network.vectors(pixels(table.slice(0, self.n), evidence))

    @abstractmethod
    def numbers(self, real: np.ndarray, made: np.ndarray) -> dict[str, float]:
        """What is said of vectors [m, d] against real ones [n, d]."""

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        return self.numbers(self.vectors(evidence.reference, evidence), self.vectors(table, evidence))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared maximum mean discrepancy of vectors [n, d] and [m, d] with the kernel (x·y / d + 1)³, its unbiased
    estimate (Gretton et al. 2012, eq. 3; Bińkowski et al. 2018), which may be below 0: every pair counts, and none of
    one vector with itself."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)

    def within(x: np.ndarray) -> float:
        k = kernel(x, x)
        return float((k.sum() - np.trace(k)) / (len(x) * (len(x) - 1)))

    return within(a) + within(b) - 2 * float(kernel(a, b).mean())


@dataclass
class Distance(InFeatures):
    """feature_frechet: squared Fréchet distance from real training records over the number of coordinates, so that 1 is
    the mean variance of a real one; it falls with the number of records, read it against its floor alone.
    kernel_distance: squared maximum mean discrepancy, unbiased: 0 on average for real records of any number.
    feature_spread: total variance over that of the real ones. By the frozen network, and so no FID and no KID."""

    def numbers(self, real: np.ndarray, made: np.ndarray) -> dict[str, float]:
        return {
            "feature_frechet": max(0.0, frechet(real, made)) / real.shape[1],
            "kernel_distance": kernel_distance(real, made),
            "feature_spread": float(made.var(axis=0, ddof=1).sum() / real.var(axis=0, ddof=1).sum()),
        }


@dataclass
class ImageManifold(InFeatures):
    """manifold_precision, _recall, _density, _coverage: as of texts (genloss.evaluate.fidelity.Manifold), by the frozen
    network."""

    n: int = 1000
    k: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.k <= 15, "k", self.k, "from 1 to 15")

    def numbers(self, real: np.ndarray, made: np.ndarray) -> dict[str, float]:
        found = manifold(real, made, min(self.k, len(real) - 1, len(made) - 1))
        return {f"manifold_{name}": value for name, value in found.items()}


def flat(images: np.ndarray) -> np.ndarray:
    """float32 [n, d] of images, in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def nearest(images: np.ndarray, others: Iterator[np.ndarray], itself: bool = False) -> np.ndarray:
    """float64 [n]: of each image [n, d] the distance to the nearest of the others, which come in parts [m, d]: the root
    of the mean squared difference of pixels. itself: the others are the same ones in their order, and none counts
    as its own neighbour."""
    norms = np.einsum("nd,nd->n", images, images, dtype=np.float64)
    best = np.full(len(images), np.inf)
    first = 0
    for part in others:
        squares = norms[:, None] - 2.0 * (images @ part.T) + np.einsum("md,md->m", part, part, dtype=np.float64)
        if itself:
            at = np.arange(len(part))
            squares[first + at, at] = np.inf
        best = np.minimum(best, squares.min(axis=1))
        first += len(part)
    return np.sqrt(np.maximum(best, 0) / images.shape[1])


@dataclass
class Memorisation(SampleMetric):
    """near_copies: share of the sample that is nearer to a real record of round 0's training set than all but `closest`
    of as many held-out real records are, whose share is the floor: what stands in the training set by chance.
    memorisation: median distance to the nearest real training record over that to the nearest held-out one, of equally
    many: 1 for what is no nearer to what was trained on, less for copies. Distances are between pixels. `n` records, at
    most; of training records all are looked at."""

    n: int = 1000
    closest: float = 0.01  # share
    needs = (Images,)
    least = 32

    def __post_init__(self) -> None:
        require(self.n >= self.least, "n", self.n, f"at least {self.least} records")
        require(0 < self.closest < 0.5, "closest", self.closest, "a share in (0, 0.5)")

    def each(self, tables: Sequence[pa.Table], evidence: Evidence) -> list[dict[str, float]]:
        images = [flat(pixels(table.slice(0, self.n), evidence)) for table in tables]
        few = flat(pixels(evidence.reference.slice(0, self.n), evidence))
        to_all = [nearest(some, self._trained_on(evidence)) for some in images]
        limit = np.quantile(to_all[0], self.closest)
        found = []
        for i, (some, distance) in enumerate(zip(images, to_all, strict=True)):
            held_out = nearest(some, iter([images[0]]), itself=i == 0)
            ratio = np.median(nearest(some, iter([few]))) / max(float(np.median(held_out)), 1e-9)
            found.append({"near_copies": float((distance <= limit).mean()), "memorisation": float(ratio)})
        return found

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        return self.each([evidence.floor, table], evidence)[1]

    def _trained_on(self, evidence: Evidence) -> Iterator[np.ndarray]:
        path = evidence.data / "train.parquet"
        left = min(evidence.n_real, records.count(path))
        for part in records.batches(path, ["image"]):
            yield flat(pixels(part.slice(0, left), evidence))
            left -= len(part)
            if left <= 0:
                return
