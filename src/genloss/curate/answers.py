"""Selection of answers to problems: by the truth, by a noisy verifier, the best of k.

    genloss run -m domain=reasoning curation=none,exact,noisy,likelihood
    genloss run domain=reasoning curation=[best_of,exact] recipe.samples=8

What a selection is worth is measured on what it kept: its φ, ψ and p* are in the metrics (evaluate.accuracy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from genloss.curate import Context, Curator, Verdict, verdict
from genloss.curate.verify import Verifier
from genloss.domains import Domain
from genloss.errors import UserError, one_of
from genloss.seeds import generator

if TYPE_CHECKING:
    from genloss.config import Experiment


def verifier(domain: Domain) -> Any:
    """The domain's `verify(table) -> (right, parsed)`."""
    method = getattr(domain, "verify", None)
    if method is None:
        raise UserError("_target_", None, f"needs exact answers, and {domain.name} has none; use domain=reasoning")
    return method


def failures(right: np.ndarray, parsed: np.ndarray) -> np.ndarray:
    """What each response is, in a word."""
    return np.where(right, "right", np.where(parsed, "wrong", "unparseable")).astype(object)


class AnswerCurator(Curator):
    """Needs a domain that knows the answers."""

    def check(self, experiment: Experiment) -> None:
        verifier(experiment.domain)


@dataclass
class Exact(AnswerCurator):
    """Keep right answers alone: φ = 1, ψ = 0."""

    def judge(self, table: pa.Table, context: Context) -> Verdict:
        right, parsed = verifier(context.domain)(table)
        return verdict(right, right.astype(float), failures(right, parsed))


@dataclass
class Noisy(Verifier):
    """Keep right answers with probability phi and wrong ones with psi, each on its own draw. Feng et al. (2024, section 5) have
    phi = 1 and psi = p_noise, for which p* = 1 / (1 + p_noise)."""

    phi: float = 1.0

    def check(self, experiment: Experiment) -> None:
        verifier(experiment.domain)

    def judge(self, table: pa.Table, context: Context) -> Verdict:
        right, parsed = verifier(context.domain)(table)
        chance = np.where(right, self.phi, self.psi)
        return verdict(generator(context.seed, "noisy").random(len(table)) < chance, chance, failures(right, parsed))


SELECTORS = ("exact", "likelihood", "random")


@dataclass
class BestOf(AnswerCurator):
    """Of the responses to one problem keep one: a right one (the first; if none is, the first of all), the one that the generator
    finds likeliest, or any. Feng et al. (2024, section 5) choose among beams: with the truth a generator is far better than
    its own choice. `curation=[best_of,exact]` drops the problems that no response solves."""

    selector: str = "exact"

    def __post_init__(self) -> None:
        one_of("selector", self.selector, SELECTORS)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("data", "last") if self.selector == "likelihood" else ()

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        samples = getattr(experiment.recipe, "samples", 1)
        if samples < 2:
            raise UserError(
                "selector",
                self.selector,
                f"has nothing to choose from with recipe.samples={samples}; set it to 2 or more",
            )

    def judge(self, table: pa.Table, context: Context) -> Verdict:
        if self.selector == "exact":
            score = verifier(context.domain)(table)[0].astype(float)
        elif self.selector == "likelihood":
            nats, tokens = context.domain.losses(context.last, context.data, table, context.runtime, context.report)
            score = -nats / np.maximum(tokens, 1)
        else:
            score = generator(context.seed, "best of").random(len(table))
        problem = np.asarray(table.column("prompt").combine_chunks().dictionary_encode().indices)
        order = np.lexsort((-score, problem))  # stable: of equal scores the first
        keep = np.zeros(len(table), dtype=bool)
        keep[order[np.flatnonzero(np.diff(problem[order], prepend=-1))]] = True
        return verdict(keep, score, "not the best")
