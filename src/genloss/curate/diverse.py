"""Diversity: keep the records that lie farthest from each other, or that have the highest entropy together.

    genloss run curation=diverse                        # half of the records; documents, problems or images
    genloss run curation=diverse control=random         # as many, at random
    genloss run domain=images recipe.n=2048 curation=diverse curation.diverse.by=entropy

Records are compared by the vectors that their domain has for them (`Embeds`). What is chosen is chosen greedily, one
record after the other, and neither rule looks at quality: an outlier is what they like best. Each step goes over all
records once, so that n of which k are kept cost n · k · d."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core.capabilities import Embeds, able
from genloss.core.errors import one_of, require
from genloss.core.plugin import without_effect
from genloss.curate import Context, Decision, RecordCurator, decision
from genloss.curate.choose import kept_of

RULES = ("farthest", "entropy")


def farthest(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of `count` of n vectors [n, d] in the order in which they are chosen, and float [n]: of each vector the
    distance to the nearest of those that were chosen before it, of one that is not chosen to the nearest of all. The
    first is the nearest to the mean, each further one the farthest from what is chosen (Gonzalez 1985). No other choice
    has members that lie more than twice as far from each other, or half as far from what it leaves out."""
    squares = ((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1)
    chosen = np.empty(count, dtype=int)
    left = np.full(len(vectors), np.inf)
    free = np.ones(len(vectors), dtype=bool)
    number = int(squares.argmin())
    for i in range(count):
        chosen[i], free[number] = number, False
        new = ((vectors - vectors[number]) ** 2).sum(axis=1)
        np.minimum(left, new, out=left, where=free)
        number = int(np.where(free, left, -1.0).argmax())
    found = np.sqrt(left)
    found[chosen[0]] = np.nan  # nothing was chosen before it
    return chosen, found


def entropy(vectors: np.ndarray, count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """The same by maximum-entropy sampling (Shewry & Wynn 1987): each further one adds most to ½ log det(1 + V Vᵀ /
    noise) of the chosen V [k, d], centred on the mean of all, the entropy of a Gaussian process with these inner
    products over that of its noise. What each adds, in nats, is the score: of one that is not chosen, what it would
    add at the end. The sum is submodular, so that greedy choice has at least 1 - 1/e of the best (Nemhauser et al.
    1978). Vectors are scaled so that a coordinate has variance 1 on average."""
    centred = vectors - vectors.mean(axis=0)
    centred = centred / max(float(np.sqrt(centred.var(axis=0).mean())), 1e-12)
    chosen, score = np.empty(count, dtype=int), np.empty(len(vectors))
    free = np.ones(len(vectors), dtype=bool)
    solved = centred / noise  # (noise + Vᵀ V)⁻¹ of each vector, kept up by Sherman & Morrison
    within = np.einsum("nd,nd->n", centred, solved)
    for i in range(count):
        number = int(np.where(free, within, -1.0).argmax())
        chosen[i], free[number], score[number] = number, False, within[number]
        across = centred @ solved[number] / np.sqrt(1 + within[number])
        solved -= across[:, None] * (solved[number] / np.sqrt(1 + within[number]))
        within = within - across**2
    score[free] = within[free]
    return chosen, 0.5 * np.log1p(np.maximum(score, 0))


@dataclass
class Diverse(RecordCurator):
    """Keep the `fraction` of the records that is most diverse: `by` farthest, each the farthest from those that are
    kept already, as the greedy selection of Shi et al. (2025, arXiv 2509.16499), which raises an entropy that is
    estimated by nearest neighbours; or `by` entropy, that of a Gaussian. The score is the distance to the nearest
    record that was kept before, or what a record adds to the entropy."""

    fraction: float = 0.5
    by: str = "farthest"
    noise: float = 1.0  # of entropy: variance, where a coordinate of the records has 1
    needs = (Embeds,)

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, "fraction", self.fraction, "in (0, 1]")
        one_of("by", self.by, RULES)
        require(self.noise > 0, "noise", self.noise, "above 0")
        if self.by != "entropy":
            without_effect(self, ["noise"], f"with by={self.by}")

    def decide(self, table: pa.Table, context: Context) -> Decision:
        vectors = able(context.domain, Embeds).embed(table, context.data, context.store)
        count = kept_of(self.fraction, len(table))
        chosen, score = farthest(vectors, count) if self.by == "farthest" else entropy(vectors, count, self.noise)
        keep = np.zeros(len(table), dtype=bool)
        keep[chosen] = True
        return decision(keep, score, "like others")
