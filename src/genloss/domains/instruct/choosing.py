"""The best of several answers to a request, by a judge that sees the truth through noise.

    genloss run domain=instruct recipe.samples=4 curation=noisy_judge
    genloss run -m domain=instruct curation=noisy_judge recipe.samples=1,2,4,8 curation.noisy_judge.sigma=0,1

The world's checker stands for the judge of Xu et al. (2023, arXiv 2304.01196), ChatGPT: how much its choice is worth
is then known. Of n answers whose scores are independent and normal, with a judge whose scores correlate with them by r,
the chosen one is r E[max of n] standard deviations above their mean (E[max of 4] = 1.0294)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core.capabilities import Verifies
from genloss.core.contracts import Experiment
from genloss.core.errors import UserError, one_of, require
from genloss.core.seeds import generator
from genloss.curate import Context, Decision, RecordCurator, decision
from genloss.curate.choose import best_of_each
from genloss.domains.instruct import Instruct
from genloss.domains.instruct.chats import Checks
from genloss.domains.instruct.world import World

SCALES = ("right", "grade")


def requests(table: pa.Table) -> list[str]:
    """What each record answers, by the record that it was asked in; one that was asked in none answers for itself."""
    both = zip(table.column("parents").to_pylist(), table.column("id").to_pylist(), strict=True)
    return ["/".join(parents) or own for parents, own in both]


def truth(domain: Instruct, table: pa.Table, scale: str) -> np.ndarray:
    """float [n]: how good the last answers are, on a scale of `SCALES`."""
    if scale == "right":
        return domain.verify(table).right.astype(float)
    assert isinstance(domain.source, World)  # `check_scale` has seen to it
    return domain.source.grades(table.column("messages").to_pylist()).astype(float)


def check_scale(experiment: Experiment, key: str, scale: str, instead: str) -> None:
    """Refuse a scale on which nobody can say how good an answer to these requests is."""
    source = experiment.domain.source if isinstance(experiment.domain, Instruct) else None
    if scale == "grade" and not isinstance(source, World):
        raise UserError(key, scale, f"is of domain/corpus=world; set it to {instead}")
    if scale == "right" and not isinstance(source, Checks):
        raise UserError(key, scale, f"is known of conversations that can be checked; set it to {instead}")


@dataclass
class NoisyJudge(RecordCurator):
    """Of the recipe.samples answers to a request keep the one with the highest score: the truth plus N(0, sigma). With
    one answer all are kept: the control, which trains a model on what it says (n = 1)."""

    scale: str = "right"  # right: 1, wrong: 0; grade: 1 to 5, of domain/corpus=world
    sigma: float = 0.0  # standard deviation of the noise, in units of the scale
    needs = (Instruct, Verifies)

    def __post_init__(self) -> None:
        one_of("scale", self.scale, SCALES)
        require(math.isfinite(self.sigma) and self.sigma >= 0, "sigma", self.sigma, "a number, at least 0")

    def check(self, experiment: Experiment) -> None:
        check_scale(experiment, "scale", self.scale, "right")

    def decide(self, table: pa.Table, context: Context) -> Decision:
        domain = context.domain
        assert isinstance(domain, Instruct)
        noise = generator(context.seed, "noisy judge").standard_normal(len(table))
        score = truth(domain, table, self.scale) + self.sigma * noise
        return decision(best_of_each(requests(table), score), score, "not the best")
