"""Selection by r: the best response to each problem, or rejection sampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core.contracts import Experiment
from genloss.core.errors import one_of, require
from genloss.core.seeds import generator
from genloss.curate import Context, Decision, RecordCurator, decision
from genloss.curate.choose import best_of_each, needs_several
from genloss.systems.evol_instruct.reward import ResponseReward

SELECT = ("best", "sample")


@dataclass
class EvolReward(ResponseReward, RecordCurator):
    """Select by r.

    best     of the responses to one problem the one with the highest r; of these the `keep` highest (null: all)
    sample   rejection sampling: keep with probability r / max r; with `keep` draw that many, with weights r, none twice

    Nothing with r = 0 is kept, and of equal rewards any.
    """

    select: str = "best"
    keep: int | None = None  # records, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("select", self.select, SELECT)
        require(self.keep is None or self.keep >= 1, "keep", self.keep, "at least 1 record (null: all)")

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        if self.select == "best":
            needs_several(experiment, "select", self.select, ", or select=sample")

    def decide(self, table: pa.Table, context: Context) -> Decision:
        prompts, responses = (table.column(key).to_pylist() for key in ("prompt", "response"))
        parents = table.column("evolved_from").to_pylist() if "evolved_from" in table.column_names else None
        r = self.of(prompts, responses, context.seed, parents, context.runtime)
        rng = generator(context.seed, "select")
        why = np.where(r > 0, "not chosen", "no reward").astype(object)
        keep = r > 0
        order = rng.permutation(len(r))  # decides between equals
        if self.select == "best":
            keep &= best_of_each(table.column("prompt").to_pylist(), r, order)
            value = r
        elif self.keep is None:
            keep &= rng.random(len(r)) < r / max(r.max(), 1e-300)
            value = r
        else:  # the k largest of log(u) / r: a weighted draw without replacement (Efraimidis & Spirakis 2006)
            value = np.log(rng.random(len(r))) / np.maximum(r, 1e-300)
        if self.keep is not None and keep.sum() > self.keep:
            ranked = order[np.argsort(-value[order], kind="stable")]
            allowed = np.zeros(len(r), dtype=bool)
            allowed[ranked[keep[ranked]][: self.keep]] = True
            keep &= allowed
        return decision(keep, r, why)
