"""metrics.json of a round: what was measured, what was counted, how long it took, and what theory says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property

from genloss.core import records
from genloss.core.rundir import STAGES, RunDir
from genloss.core.store import Done
from genloss.experiment import Experiment


class Summary:
    """The numbers of an arm's rounds, flat and finite."""

    def __init__(self, experiment: Experiment, run: RunDir):
        self.experiment = experiment
        self.run = run

    def write(self, n: int) -> dict[str, float]:
        """Write and return the metrics of round n from its manifest; a file that says the same stays as it is."""
        with self.run.held():  # else one of two that have added a metric writes what it read before the other had
            metrics = self._numbers(n)
            self.run.write_metrics(n, json.dumps(metrics, indent=1) + "\n")
        return metrics

    def _numbers(self, n: int) -> dict[str, float]:
        done = {stage: found for stage in STAGES if (found := self.run.done(stage, n))}
        measured = done["evaluate"].result if "evaluate" in done else {}
        added = {name: value for each in self.run.added(n).values() for name, value in each.result.items()}
        metrics: dict[str, float] = {**added, **measured, **counted(done), **timed(done, n)}
        metrics |= {f"theory/{name}": value for name, value in self._expected(n, metrics).items()}
        return {k: float(v) for k, v in sorted(metrics.items()) if math.isfinite(v)}

    def _expected(self, n: int, measured: Mapping[str, float]) -> dict[str, float]:
        found = dict(self._theory[n]) if n < len(self._theory) else {}
        return found | self.experiment.domain.expected(self.experiment.at_round(n), measured)

    @cached_property
    def _theory(self) -> list[dict[str, float]]:
        return self.experiment.domain.theory(self.experiment)


def counted(done: Mapping[str, Done]) -> dict[str, float]:
    """Records by what became of them: generated, kept, dropped by reason, trained on by origin and generation."""
    found: dict[str, float] = {}
    if "generate" in done:
        found["n_generated"] = done["generate"].result["records"]
        found |= {f"generate/{name}": v for name, v in done["generate"].result.get("counts", {}).items()}
    if "curate" in done:
        result = done["curate"].result
        found |= {"n_kept": result["kept"], "n_rejected": result["rejected"]}
        if "spread" in result:  # chains: what one keeps another rejects
            found |= {"n_kept_sd": result["spread"], "n_rejected_sd": result["spread"]}
        for reason, count in result["reasons"].items():
            if reason != "kept":
                found["dropped/" + "_".join(reason.replace(":", " ").split())] = count
    if "mix" in done:
        shards, spread = done["mix"].result["shards"], done["mix"].result.get("spread", {})
        names = {"requested": "train_requested_sd", "realised": "train_records_sd"}
        found |= {names[key]: value for key, value in spread.items()}
        found["train_requested"] = done["mix"].result["requested"]
        found["train_records"] = sum(s["realised"] for s in shards)
        found["train_real"] = sum(s["realised"] for s in shards if s["origin"] == records.REAL)
        for s in shards:
            if s["origin"] == records.SYNTHETIC:
                found[f"train_generation_{s['generation']:02d}"] = s["realised"]
        found["train_real_fraction"] = found["train_real"] / max(1, found["train_records"])
    if "train" in done and "diverged" in done["train"].result:
        found["diverged"] = done["train"].result["diverged"]
    return found


def timed(done: Mapping[str, Done], n: int) -> dict[str, float]:
    """Seconds of each stage, and tokens a second where it counted tokens."""
    found: dict[str, float] = {}
    for stage, entry in done.items():
        if stage != "data" or n == 0:
            found[f"seconds/{stage}"] = entry.seconds
            if "tokens" in entry.result and entry.seconds > 0:
                found[f"tokens_per_second/{stage}"] = entry.result["tokens"] / entry.seconds
    return found
