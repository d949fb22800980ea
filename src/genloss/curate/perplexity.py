"""Selection by perplexity under a judge: the model of round 0, the generator itself, or any saved model.

    genloss run -m curation=perplexity_low,perplexity_high,perplexity_middle control=none,random

Low perplexity is self-selection (Feng et al. 2025, own likelihood); high is surplexity (Gambetta et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from genloss.core.capabilities import Scores, able
from genloss.core.contracts import LAST, ROUND0, Experiment
from genloss.core.errors import UserError, one_of, require
from genloss.core.hashes import folder_hash
from genloss.core.places import in_project
from genloss.core.retention import check_kept
from genloss.curate import Context, Decision, RecordCurator, decision
from genloss.curate.choose import kept_of, top

OWN = (ROUND0, LAST)


@dataclass
class Perplexity(RecordCurator):
    """Keep the fraction with the lowest, highest or most central mean loss under the judge; the score is that loss
    (nats per token)."""

    keep: str = "low"
    fraction: float = 0.5
    judge: str = "round0"  # round0, last (the generator), or a folder with a saved model
    needs = (Scores,)

    def __post_init__(self) -> None:
        one_of("keep", self.keep, ("low", "high", "middle"))
        require(0 < self.fraction <= 1, "fraction", self.fraction, "in (0, 1]")

    def reads(self) -> tuple[str, ...]:
        return (self.judge,) if self.judge in OWN else ()

    def places(self) -> tuple[str, ...]:
        return () if self.judge in OWN else ("judge",)

    def fingerprint(self) -> str:
        return "" if self.judge in OWN else folder_hash(self._folder())

    def check(self, experiment: Experiment) -> None:
        if self.judge not in OWN:
            check_kept(self._folder(), "judge", self.judge)

    def _folder(self) -> Path:
        """Of the judge, a saved model."""
        folder = in_project(self.judge, "judge")
        if not (folder / "config.json").is_file():
            allowed = "must be round0, last, or a folder with a saved model; a relative path starts at the project"
            raise UserError("judge", self.judge, allowed)
        return folder

    def decide(self, table: pa.Table, context: Context) -> Decision:
        model = context.inputs[self.judge] if self.judge in OWN else self._folder()
        scores = able(context.domain, Scores)
        nats, tokens = scores.losses(model, context.data, table, context.runtime, context.report)
        loss = nats / np.maximum(tokens, 1)
        rank = {"low": -loss, "high": loss, "middle": -np.abs(loss - np.median(loss))}[self.keep]
        return decision(top(rank, kept_of(self.fraction, len(table))), loss, f"perplexity not {self.keep}")
