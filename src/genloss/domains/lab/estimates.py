"""What the lab measures of a model: mean over chains, with its standard error (`_se`).

The names depend on the domain; where theory has an exact expectation, `theory/NAME` stands beside them
(genloss.theory)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genloss.core.capabilities import Points, able
from genloss.domains.lab import Lab, load
from genloss.evaluate import Evidence, Metric


@dataclass
class Estimates(Metric):
    """All that `Lab.measure` gives. Every chain is one independent repetition, so the standard error is that of a
    mean."""

    needs = (Points,)

    def measure(self, evidence: Evidence) -> dict[str, float]:
        lab = able(evidence.domain, Lab)
        truth = load(evidence.data / "truth.safetensors")
        found: dict[str, float] = {}
        for name, values in lab.measure(load(evidence.model / "model.safetensors"), truth).items():
            found[name] = float(values.mean())
            found[f"{name}_se"] = float(values.std(ddof=1) / np.sqrt(len(values)))
        return found
