"""What metrics of answers share: their options, the answers of a model, and what curation kept of those that were
generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Responds, Verifies, able
from genloss.core.contracts import KEPT, Decoding, Prompt
from genloss.core.errors import require
from genloss.core.hashes import sha256_json
from genloss.evaluate import Evidence, Metric


@dataclass
class OfAnswers(Metric):
    """A metric of what a model answers to the first `max_records` of the frozen real test split, and of what curation
    kept of the generated records. chunk: prompts that are answered together."""

    max_records: int = 1000
    chunk: int = 512

    def __post_init__(self) -> None:
        require(self.max_records >= 1, "max_records", self.max_records, "at least 1")
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")

    def reads(self) -> tuple[str, ...]:
        return (KEPT,)

    def test(self, evidence: Evidence) -> pa.Table:
        return records.read(evidence.data / "test.parquet").slice(0, self.max_records)


def answers(
    evidence: Evidence, prompts: Sequence[Prompt], chunk: int, bias: float = 1.0, model: Path | None = None
) -> list[str]:
    """Responses [n] of model n, or of another, to prompts; bias 0: greedy, 1: sampled. Metrics of one round that ask
    the same get the same list."""
    domain, model = able(evidence.domain, Responds), model or evidence.model
    key = sha256_json([str(model), chunk, bias, list(prompts)])
    if key not in evidence.said:
        decoding = Decoding(domain.context, bias=bias, chunk=chunk)
        backend = domain.backend(model, evidence.data, evidence.runtime)
        evidence.said[key] = backend.respond(prompts, decoding, seed=evidence.seed, report=evidence.report).texts
    return evidence.said[key]


def selection(evidence: Evidence, domain: Verifies) -> dict[str, Any]:
    """label_accuracy, label_unparseable, kept_accuracy, kept_accuracy_se, phi, psi and p_star of the generated records
    and those of them that curation kept, whose file the metric `reads`; what is undefined is left out."""
    assert evidence.generated is not None
    table = records.read(evidence.generated)
    if len(table) == 0:  # the recipe had nothing to ask for
        return {}
    right, parsed = domain.verify(table)
    kept = chosen(evidence, table.column("id").to_pylist())
    found = {"label_accuracy": right.mean(), "label_unparseable": 1 - parsed.mean()}
    found["kept_accuracy"] = right[kept].mean()
    found["kept_accuracy_se"] = np.sqrt(found["kept_accuracy"] * (1 - found["kept_accuracy"]) / kept.sum())
    if right.any():
        found["phi"] = kept[right].mean()
    if not right.all():
        found["psi"] = kept[~right].mean()
    if "phi" in found and "psi" in found:
        found["p_star"] = found["phi"] / (found["phi"] + found["psi"])  # something is kept, so not both are 0
    return found


def chosen(evidence: Evidence, ids: Sequence[str]) -> np.ndarray:
    """bool [n]: which generated records curation kept."""
    kept = set(records.read(evidence.inputs[KEPT], columns=["id"]).column("id").to_pylist())
    return np.array([i in kept for i in ids], dtype=bool)
