"""Selection by a trained critic (Shepherd; Wang et al. 2023, arXiv 2308.04592).

    genloss run experiment=critic                                              # first: the critic, a run of its own
    genloss run experiment=shepherd curation=critic                            # keep the solutions that it accepts
    genloss run experiment=shepherd curation=critic curation.critic.select=best    # one of the samples of each problem

`Judge` is such a critic as others may use it: critiques, the probability of "ok", and rewards of single steps.

    judge = find("runs/critic-*-s0-*")
    judge.critiques(["3+4*2:"], ["4*2=9;3+9=12"])      # [Said(ok=False, step=1, kind="arithmetic", ...)]
    judge.log_ok(["3+4*2:"], ["4*2=9;3+9=12"])         # log-probabilities [n]
    judge.step_rewards(["3+4*2:"], ["4*2=9;3+9=12"])   # an array for each: a number for each of its steps, and P(ok)

A critic that works with a reference solves each problem greedily before it judges; probabilities are those after its own solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from genloss.core.errors import UserError, one_of, require
from genloss.curate import Context, Curator, Verdict, verdict
from genloss.systems.shepherd.judge import find, worked

if TYPE_CHECKING:
    from genloss.experiment import Experiment

SELECT = ("accepted", "best")


@dataclass
class Critic(Curator):
    """Keep the solutions that a critic accepts, the reason of a rejection being the type of error it names; or, of the samples
    of each problem, the one that is right with the highest probability (score: log P(ok))."""

    path: str = (
        "???"  # run directory of a critic, relative to the project; * may stand for what is not known of its name
    )
    select: str = "accepted"  # accepted, best
    chunk: int = 512

    def __post_init__(self) -> None:
        one_of("select", self.select, SELECT)
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")

    def check(self, experiment: Experiment) -> None:
        samples = getattr(experiment.recipe, "samples", 1)
        if self.select == "best" and samples < 2:
            raise UserError(
                "select", "best", f"has nothing to choose from with recipe.samples={samples}; set it to 2 or more"
            )
        worked(experiment)
        find(self.path)

    def fingerprint(self) -> str:
        return find(self.path, self.chunk).fingerprint()

    def judge(self, table: pa.Table, context: Context) -> Verdict:
        judge = find(self.path, self.chunk)
        problems, solutions = (table.column(name).to_pylist() for name in ("prompt", "response"))
        asked = judge.asked(problems, solutions, context.runtime, context.report)
        score = judge.log_ok(problems, solutions, context.runtime, context.report, asked)
        if self.select == "best":
            problem = np.asarray(table.column("prompt").combine_chunks().dictionary_encode().indices)
            order = np.lexsort((-score, problem))  # stable: of equal scores the first
            keep = np.zeros(len(table), dtype=bool)
            keep[order[np.flatnonzero(np.diff(problem[order], prepend=-1))]] = True
            return verdict(keep, score, "not the best")
        said = judge.critiques(problems, solutions, context.runtime, context.report, asked)
        reason = np.array(["unparseable" if s is None else s.kind for s in said], dtype=object)
        return verdict(np.array([s is not None and s.ok for s in said]), score, reason)
