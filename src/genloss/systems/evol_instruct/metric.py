"""Evolution: how hard and how well formed the evolved problems are, and how often model n is right when it samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genloss.core import records
from genloss.core.capabilities import Verifies, able
from genloss.core.contracts import KEPT, Experiment
from genloss.domains.reasoning import Reasoning
from genloss.domains.reasoning.arithmetic import expression, needs_expressions, operations
from genloss.evaluate import Evidence
from genloss.evaluate.selected import OfAnswers, answers


@dataclass
class Evolution(OfAnswers):
    """sampled_accuracy (share of right responses of model n to test problems at temperature 1: what reinforcement
    raises), difficulty (mean number of operations of what curation kept; of the real training problems in round 0).
    From round 1 on, of the problems that curation kept: well_formed (share that are expressions), lineage (mean number
    of operators), lineage_max; and well_formed_generated, of the problems that it chose from."""

    panels = ("sampled_accuracy",)
    max_records: int = 500
    chunk: int = 500
    needs = (Reasoning,)

    def check(self, experiment: Experiment) -> None:
        needs_expressions(experiment, "_target_", "measures expressions")

    def measure(self, evidence: Evidence) -> dict[str, float]:
        found = {"sampled_accuracy": self._sampled(evidence)}
        kept = evidence.real if evidence.generated is None else records.read(evidence.inputs[KEPT])
        trees = [expression(text) for text in kept.column("prompt").to_pylist()]
        counts = [operations(tree) for tree in trees if tree is not None]
        if counts:
            found["difficulty"] = float(np.mean(counts))
        if evidence.generated is not None:
            generated = records.read(evidence.generated, columns=["prompt"]).column(0).to_pylist()
            found["well_formed"] = len(counts) / len(trees)
            found["well_formed_generated"] = float(np.mean([expression(text) is not None for text in generated]))
            if "lineage" in kept.column_names:
                lengths = [text.count(">") for text in kept.column("lineage").to_pylist()]
                found |= {"lineage": float(np.mean(lengths)), "lineage_max": float(max(lengths))}
        return found

    def _sampled(self, evidence: Evidence) -> float:
        test = self.test(evidence)
        said = answers(evidence, test.column("prompt").to_pylist(), self.chunk)
        answered = test.set_column(test.column_names.index("response"), "response", [said])
        return float(able(evidence.domain, Verifies).verify(answered).right.mean())
