"""How far a sample lies from real training records, in an embedding.

genloss run metrics=[heldout,manifold,frechet,frontier]
genloss report --metrics manifold,frontier,metrics.frontier.clusters=50 runs/sweep-*

The sample and its floor are compared with the same real records of round 0's training set (`Evidence.reference`), so
that the floor is what real text has by chance at this size: all of these depend on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from genloss.core.errors import require
from genloss.core.seeds import generator
from genloss.evaluate import Evidence
from genloss.evaluate.embedded import Embedded


def _some(vectors: np.ndarray, n: int, evidence: Evidence) -> np.ndarray:
    """n of the vectors, at most."""
    if len(vectors) <= n:
        return vectors
    return vectors[np.sort(generator(evidence.seed, "neighbours").permutation(len(vectors))[:n])]


def manifold(real: np.ndarray, made: np.ndarray, k: int) -> dict[str, float]:
    """precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of vectors [n, d] and [m,
    d]. A ball around each vector reaches to its k-th neighbour of the same kind."""
    from scipy.spatial.distance import cdist

    def radii(vectors: np.ndarray) -> np.ndarray:
        return np.partition(cdist(vectors, vectors), k, axis=1)[:, k]  # itself is the 0-th

    between = cdist(real, made)
    of_real, of_made = radii(real)[:, None], radii(made)[None, :]
    return {
        "precision": float((between < of_real).any(axis=0).mean()),
        "recall": float((between < of_made).any(axis=1).mean()),
        "density": float((between < of_real).sum(axis=0).mean() / k),
        "coverage": float((between.min(axis=1) < of_real[:, 0]).mean()),
    }


@dataclass
class Manifold(Embedded):
    """manifold_precision, _recall, _density, _coverage: share of the sample near real records, of real records near the
    sample; how many real balls a record of the sample lies in, over k; share of real balls that hold one. `n` records
    of each side, at most."""

    panels = ("manifold_precision", "manifold_recall")
    k: int = 5
    n: int = 1000

    def __post_init__(self) -> None:
        require(1 <= self.k <= 15, "k", self.k, "from 1 to 15")
        require(self.n >= 16, "n", self.n, "at least 16")
        super().__post_init__()

    def numbers(self, vectors: np.ndarray, evidence: Evidence) -> dict[str, float]:
        real = _some(self.vectors(evidence.reference, evidence), self.n, evidence)
        found = manifold(real, _some(vectors, self.n, evidence), min(self.k, len(real) - 1, len(vectors) - 1))
        return {f"manifold_{name}": value for name, value in found.items()}


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance of the Gaussians with the means and covariances of vectors [n, d] and [m, d] (Dowson &
    Landau 1982): |μ - ν|² + tr(A + B - 2 (A B)^½), whose trace is that of (A^½ B A^½)^½."""
    means = a.mean(axis=0) - b.mean(axis=0)
    left, right = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, axes = np.linalg.eigh(left)
    root = (axes * np.sqrt(np.maximum(values, 0))) @ axes.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ right @ root), 0)).sum()
    return float(means @ means + np.trace(left) + np.trace(right) - 2 * cross)


@dataclass
class Frechet(Embedded):
    """frechet: squared Fréchet distance between the sample and real records in the embedding. It falls with the number
    of records, also between two samples of the same text: read it against its floor alone."""

    def numbers(self, vectors: np.ndarray, evidence: Evidence) -> dict[str, float]:
        return {"frechet": max(0.0, frechet(self.vectors(evidence.reference, evidence), vectors))}


def frontier(p: np.ndarray, q: np.ndarray, scale: float, points: int = 100) -> float:
    """Area under the divergence frontier of two distributions over the same cells: of exp(-scale KL(q | r)) against
    exp(-scale KL(p | r)) for the mixtures r = w p + (1 - w) q (Pillutla et al. 2021, eq. 2, 3). 1: they are equal."""

    def kl(a: np.ndarray, b: np.ndarray) -> float:
        there = a > 0
        return float((a[there] * np.log(a[there] / b[there])).sum())

    weights = np.linspace(1e-6, 1 - 1e-6, points)
    mixtures = [w * p + (1 - w) * q for w in weights]
    x = [0.0, *(math.exp(-scale * kl(q, r)) for r in mixtures), 1.0]
    y = [1.0, *(math.exp(-scale * kl(p, r)) for r in mixtures), 0.0]
    order = np.lexsort((-np.array(y), np.array(x)))
    return float(np.trapezoid(np.array(y)[order], np.array(x)[order]))


@dataclass
class Frontier(Embedded):
    """frontier: area under the divergence frontier between the sample and real records, over `clusters` cells that
    k-means finds among the real ones, 0 to 1. It is MAUVE's idea with three differences, and no MAUVE: the embedding is
    what the config says, cells are found on real records alone, so that all rounds share them, and each count has 1/2
    added (Pillutla et al. 2023). frontier_cells: share of the cells that the sample reaches."""

    clusters: int = 32
    scale: float = 5.0
    least = 64

    def __post_init__(self) -> None:
        require(2 <= self.clusters <= 1000, "clusters", self.clusters, "from 2 to 1000")
        require(self.scale > 0, "scale", self.scale, "more than 0")
        super().__post_init__()

    def numbers(self, vectors: np.ndarray, evidence: Evidence) -> dict[str, float]:
        from scipy.cluster.vq import kmeans2, vq

        real = self.vectors(evidence.reference, evidence)
        clusters = min(self.clusters, max(2, len(real) // 4))
        seed = generator(evidence.seed, "clusters")
        centres, _ = kmeans2(real, clusters, minit="++", seed=seed, missing="warn")

        def counts(points: np.ndarray) -> np.ndarray:
            return np.bincount(vq(points, centres)[0], minlength=clusters)

        p, q = counts(real), counts(vectors)
        smooth = [(c + 0.5) / (c + 0.5).sum() for c in (p, q)]
        return {
            "frontier": frontier(smooth[0], smooth[1], self.scale),
            "frontier_cells": float((q[p > 0] > 0).mean()),
        }
