"""Selection by a trained critic (Shepherd; Wang et al. 2023, arXiv 2308.04592).

genloss run experiment=critic                                              # first: the critic, a run of its own
genloss run experiment=shepherd curation=critic                            # keep the solutions that it accepts
genloss run experiment=shepherd curation=critic curation.critic.select=best    # one of the samples of each problem
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core.contracts import Experiment
from genloss.core.errors import one_of, require
from genloss.curate import Context, Decision, RecordCurator, decision
from genloss.curate.choose import best_of_each, needs_several
from genloss.domains.reasoning import Reasoning
from genloss.systems.shepherd.critic import find, worked

SELECT = ("accepted", "best")


@dataclass
class Critic(RecordCurator):
    """Keep the solutions that a critic accepts, the reason of a rejection being the type of error it names; or, of the
    samples of each problem, the one that is right with the highest probability (score: log P(ok))."""

    path: str = (
        "???"  # run directory of a critic, relative to the project; * may stand for what is not known of its name
    )
    select: str = "accepted"  # accepted, best
    chunk: int = 512
    needs = (Reasoning,)

    def __post_init__(self) -> None:
        one_of("select", self.select, SELECT)
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")

    def check(self, experiment: Experiment) -> None:
        if self.select == "best":
            needs_several(experiment, "select", self.select)
        worked(experiment)
        find(self.path)

    def fingerprint(self) -> str:
        return find(self.path, self.chunk).fingerprint()

    def decide(self, table: pa.Table, context: Context) -> Decision:
        critic = find(self.path, self.chunk)
        problems, solutions = (table.column(name).to_pylist() for name in ("prompt", "response"))
        asked = critic.asked(problems, solutions, context.runtime, context.report)
        score = critic.log_ok(problems, solutions, context.runtime, context.report, asked)
        if self.select == "best":
            return decision(best_of_each(table.column("prompt").to_pylist(), score), score, "not the best")
        said = critic.critiques(problems, solutions, context.runtime, context.report, asked)
        reason = np.array(["unparseable" if s is None else s.kind for s in said], dtype=object)
        return decision(np.array([s is not None and s.ok for s in said]), score, reason)
