"""Selectors that need no look at the content, or any score: random, the top fraction, the best response to each
problem.

genloss run -m curation=none,random,top              # the random half is the control of every selector
genloss run curation=top control=random               # equal size: as many as `top` keeps, at random
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core.capabilities import Repeats, Texts
from genloss.core.contracts import Experiment
from genloss.core.errors import UserError, one_of, require
from genloss.core.seeds import generator
from genloss.core.words import words
from genloss.curate import Context, Decision, PointCurator, Rated, RecordCurator, decision, texts


def kept_of(fraction: float, n: int) -> int:
    """How many of n records a fraction keeps: at least one."""
    return max(1, round(fraction * n))


def top(score: np.ndarray, count: int) -> np.ndarray:
    """Mask of the `count` highest scores; equal scores go by position, so the choice is reproducible."""
    keep = np.zeros(len(score), dtype=bool)
    keep[np.argsort(-score, kind="stable")[:count]] = True
    return keep


def highest(score: np.ndarray, left: np.ndarray, fraction: float) -> np.ndarray:
    """Mask [slots, chains] of every chain's top fraction by score among the points that are left: at least one."""
    rank = np.where(left, -score, np.inf).argsort(axis=0, kind="stable").argsort(axis=0)
    return left & (rank < np.maximum(1, np.round(fraction * left.sum(axis=0))))


def best_of_each(prompts: Sequence[str], score: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """Mask [n] of the record with the highest score among those of one prompt; of equal ones the first in `order`."""
    order = np.arange(len(score)) if order is None else order
    problem = np.asarray(pa.array(prompts, pa.string()).dictionary_encode().indices)
    ranked = order[np.lexsort((-score[order], problem[order]))]  # stable
    keep = np.zeros(len(score), dtype=bool)
    keep[ranked[np.flatnonzero(np.diff(problem[ranked], prepend=-1))]] = True
    return keep


def needs_several(experiment: Experiment, key: str, value: str, instead: str = "") -> None:
    """Refuse a choice among the responses to a problem where the recipe asks for one only."""
    samples = experiment.recipe.samples if isinstance(experiment.recipe, Repeats) else 1
    if samples < 2:
        remedy = f"has nothing to choose from with recipe.samples={samples}; set it to 2 or more{instead}"
        raise UserError(key, value, remedy)


@dataclass
class Random(RecordCurator, PointCurator, Rated):
    """Keep a random fraction: the equal-size control of every selector."""

    fraction: float = 0.5
    needs = ()  # it looks at nothing

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, "fraction", self.fraction, "in (0, 1]")

    def rates(self) -> tuple[float, float]:
        return self.fraction, self.fraction

    def decide(self, table: pa.Table, context: Context) -> Decision:
        score = generator(context.seed, "random").random(len(table))
        return decision(top(score, kept_of(self.fraction, len(table))), reason="not drawn")

    def decide_points(self, points: np.ndarray, left: np.ndarray, context: Context) -> np.ndarray:
        keys = np.where(left, generator(context.seed, "random").random(left.shape), np.inf)
        return highest(-keys, left, self.fraction)


SCORES = ("length", "distinct")


def distinct(text: str) -> float:
    """Share of the words of a text that are not there twice."""
    said = words(text)
    return len(set(said)) / max(1, len(said))


@dataclass
class TopFraction(RecordCurator):
    """Keep the top fraction by a score of the text: its length in bytes, or its share of distinct words."""

    fraction: float = 0.5
    score: str = "distinct"
    needs = (Texts,)

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, "fraction", self.fraction, "in (0, 1]")
        one_of("score", self.score, SCORES)

    def decide(self, table: pa.Table, context: Context) -> Decision:
        of = {"length": lambda text: len(text.encode()), "distinct": distinct}[self.score]
        score = np.fromiter(map(of, texts(table, context.domain)), float, len(table))
        return decision(top(score, kept_of(self.fraction, len(table))), score, f"low {self.score}")
