"""Evolution: how hard and how well formed the evolved problems are, and how often model n is right when it samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from genloss.core import records
from genloss.core.errors import require
from genloss.domains.reasoning.arithmetic import expression, operations
from genloss.evaluate import Evidence, Metric
from genloss.systems.evol_instruct.reward import needs_expressions

if TYPE_CHECKING:
    from genloss.experiment import Experiment


@dataclass
class Evolution(Metric):
    """sampled_accuracy (share of right responses of model n to test problems at temperature 1: what reinforcement raises), difficulty
    (mean number of operations of what curation kept; of the real training problems in round 0). From round 1 on, of the problems
    that curation kept: well_formed (share that are expressions), lineage (mean number of operators), lineage_max; and
    well_formed_generated, of the problems that it chose from."""

    reads = ("kept",)
    max_records: int = 500
    chunk: int = 500

    def __post_init__(self) -> None:
        require(self.max_records >= 1, "max_records", self.max_records, "at least 1")
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")

    def check(self, experiment: Experiment) -> None:
        needs_expressions(experiment, "_target_")

    def measure(self, evidence: Evidence) -> dict[str, float]:
        found = {"sampled_accuracy": self._sampled(evidence)}
        kept = evidence.real if evidence.kept is None else records.read(evidence.kept)
        trees = [expression(text) for text in kept.column("prompt").to_pylist()]
        counts = [operations(tree) for tree in trees if tree is not None]
        if counts:
            found["difficulty"] = float(np.mean(counts))
        if evidence.kept is not None and evidence.generated is not None:
            generated = records.read(evidence.generated, columns=["prompt"]).column(0).to_pylist()
            found["well_formed"] = len(counts) / len(trees)
            found["well_formed_generated"] = float(np.mean([expression(text) is not None for text in generated]))
            if "lineage" in kept.column_names:
                lengths = [text.count(">") for text in kept.column("lineage").to_pylist()]
                found |= {"lineage": float(np.mean(lengths)), "lineage_max": float(max(lengths))}
        return found

    def _sampled(self, evidence: Evidence) -> float:
        domain: Any = evidence.domain
        test = records.read(evidence.data / "test.parquet").slice(0, self.max_records)
        said = evidence.respond(test.column("prompt").to_pylist(), self.chunk)
        answered = test.set_column(test.column_names.index("response"), "response", [said])
        return float(domain.verify(answered).right.mean())
