"""Selection by perplexity under a judge: the model of round 0, the generator itself, or any saved model.

    genloss run -m curation=perplexity_low,perplexity_high,perplexity_middle control=none,random

Low perplexity is self-selection (Feng et al. 2025, own likelihood); high is surplexity (Gambetta et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from genloss.core.errors import UserError, one_of, require
from genloss.core.hashes import folder_hash
from genloss.curate import Context, Curator, Verdict, top, verdict
from genloss.curate.choose import kept_of


@dataclass
class Perplexity(Curator):
    """Keep the fraction with the lowest, highest or most central mean loss under the judge; the score is that loss
    (nats per token)."""

    keep: str = "low"
    fraction: float = 0.5
    judge_model: str = "round0"  # round0, last (the generator), or a folder with a saved model

    def __post_init__(self) -> None:
        one_of("keep", self.keep, ("low", "high", "middle"))
        require(0 < self.fraction <= 1, "fraction", self.fraction, "in (0, 1]")
        if self.judge_model not in ("round0", "last") and not Path(self.judge_model).is_dir():
            raise UserError("judge_model", self.judge_model, "must be round0, last, or a folder with a saved model")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("data", self.judge_model) if self.judge_model in ("round0", "last") else ("data",)

    def fingerprint(self) -> str:
        if self.judge_model in ("round0", "last"):
            return ""
        return folder_hash(Path(self.judge_model))

    def judge(self, table: pa.Table, context: Context) -> Verdict:
        model = {"round0": context.round0, "last": context.last}.get(self.judge_model, Path(self.judge_model))
        nats, tokens = context.domain.losses(model, context.data, table, context.runtime, context.report)
        loss = nats / np.maximum(tokens, 1)
        rank = {"low": -loss, "high": loss, "middle": -np.abs(loss - np.median(loss))}[self.keep]
        return verdict(top(rank, kept_of(self.fraction, len(table))), loss, f"perplexity not {self.keep}")
