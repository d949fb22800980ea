"""Selectors that need no look at the content, or any score: random, and the top fraction by a score.

genloss run -m curation=none,random,top              # the random half is the control of every selector
genloss run curation=top control=random               # equal size: as many as `top` keeps, at random
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core.errors import one_of, require
from genloss.core.seeds import generator
from genloss.curate import Context, Curator, Verdict, top, verdict


def kept_of(fraction: float, n: int) -> int:
    """How many of n records a fraction keeps: at least one."""
    return max(1, round(fraction * n))


def highest(score: np.ndarray, left: np.ndarray, fraction: float) -> np.ndarray:
    """Mask [slots, chains] of every chain's top fraction by score among the points that are left: at least one."""
    rank = np.where(left, -score, np.inf).argsort(axis=0, kind="stable").argsort(axis=0)
    return left & (rank < np.maximum(1, np.round(fraction * left.sum(axis=0))))


@dataclass
class Random(Curator):
    """Keep a random fraction: the equal-size control of every selector."""

    fraction: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, "fraction", self.fraction, "in (0, 1]")

    def rates(self) -> tuple[float, float]:
        return self.fraction, self.fraction

    def judge(self, table: pa.Table, context: Context) -> Verdict:
        score = generator(context.seed, "random").random(len(table))
        return verdict(top(score, kept_of(self.fraction, len(table))), reason="not drawn")

    def judge_points(self, points: np.ndarray, left: np.ndarray, context: Context) -> np.ndarray:
        keys = np.where(left, generator(context.seed, "random").random(left.shape), np.inf)
        return highest(-keys, left, self.fraction)


SCORES = ("length", "distinct")


@dataclass
class TopFraction(Curator):
    """Keep the top fraction by a score of the text: its length in bytes, or its share of distinct words."""

    fraction: float = 0.5
    score: str = "distinct"

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, "fraction", self.fraction, "in (0, 1]")
        one_of("score", self.score, SCORES)

    def judge(self, table: pa.Table, context: Context) -> Verdict:
        texts = self.payload(table, context)
        if self.score == "length":
            score = np.array([len(t.encode()) for t in texts], dtype=float)
        else:
            score = np.array([len(set(t.split())) / max(1, len(t.split())) for t in texts])
        return verdict(top(score, kept_of(self.fraction, len(table))), score, f"low {self.score}")
