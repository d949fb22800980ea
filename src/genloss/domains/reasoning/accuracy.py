"""Accuracy: how often model n is right on real test problems, and how right its predecessor's answers were before and
after selection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Responds, able
from genloss.domains.reasoning import Reasoning
from genloss.evaluate import Evidence
from genloss.evaluate.selected import OfAnswers, answers, selection


@dataclass
class Accuracy(OfAnswers):
    """accuracy (share of test problems that model n answers rightly, decoding greedily), accuracy/TASK, accuracy_se
    (binomial), unparseable (share without any answer). With domain.probes, families that nothing is trained on:
    probe_accuracy/NAME, and probe_accuracy, their mean; it falls as a model forgets. From round 1 on, of the generated
    records: label_accuracy (1 - p), label_unparseable, and of what curation kept: kept_accuracy, kept_accuracy_se, phi
    = P(kept | right), psi = P(kept | wrong), p_star = phi / (phi + psi): labels wrong with a probability above p_star
    teach the wrong thing (Feng et al. 2024, arXiv 2406.07515, theorem 1). What is undefined, such as psi where no
    answer is wrong, is left out."""

    needs = (Reasoning,)

    def measure(self, evidence: Evidence) -> dict[str, float]:
        domain = able(evidence.domain, Reasoning)
        test = self.test(evidence)
        right, parsed = domain.verify(self._answered(test, evidence))
        found = {"accuracy": right.mean(), "unparseable": 1 - parsed.mean()}
        found["accuracy_se"] = np.sqrt(found["accuracy"] * (1 - found["accuracy"]) / len(right))
        task = np.asarray(test.column("task").to_pylist(), dtype=object)
        found |= {f"accuracy/{name}": right[task == name].mean() for name in sorted(set(task))}
        if domain.probes:
            probe = records.read(evidence.data / "probe.parquet")
            right = domain.verify(self._answered(probe, evidence)).right
            task = np.asarray(probe.column("task").to_pylist(), dtype=object)
            each = {f"probe_accuracy/{name}": right[task == name].mean() for name in domain.probing}
            found |= each | {"probe_accuracy": np.mean(list(each.values()))}
        if evidence.generated is not None:
            found |= selection(evidence, domain)
        return {name: float(value) for name, value in found.items()}

    def _answered(self, problems: pa.Table, evidence: Evidence) -> pa.Table:
        """Problems with model n's greedy responses."""
        domain = able(evidence.domain, Responds)
        return domain.answered(problems, answers(evidence, domain.prompts(problems), self.chunk, bias=0.0))
