"""Losses: of held-out real data under model n, and of generated records under the frozen model of round 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Documents, Scores, able
from genloss.core.errors import require
from genloss.evaluate import Evidence, Metric, SampleMetric


@dataclass
class HeldOut(Metric):
    """Mean loss of model n on the frozen real test split, every record from document start, its end included.

    heldout_loss (nats/token), heldout_perplexity (exp of it, bound to the tokenizer), heldout_bits_per_byte (total bits
    over total UTF-8 bytes: comparable between tokenizers), heldout_tokens. The floor of these is their value in round
    0."""

    max_records: int = 1024
    needs = (Documents, Scores)

    def __post_init__(self) -> None:
        require(self.max_records >= 1, "max_records", self.max_records, "at least 1")

    def measure(self, evidence: Evidence) -> dict[str, float]:
        path = evidence.data / "test.parquet"
        test = records.read(path, rows=(0, min(self.max_records, records.count(path))))
        nats, tokens = able(evidence.domain, Scores).losses(
            evidence.model, evidence.data, test, evidence.runtime, evidence.report
        )
        size = sum(len(t.encode()) for t in evidence.texts(test))
        loss = float(nats.sum() / tokens.sum())
        return {
            "heldout_loss": loss,
            "heldout_perplexity": math.exp(min(loss, 700.0)),
            "heldout_bits_per_byte": float(nats.sum() / math.log(2) / size),
            "heldout_tokens": float(tokens.sum()),
        }


@dataclass
class Tails(SampleMetric):
    """Loss of the records (nats/token) under the model of round 0, the frozen reference model: mean and percentiles 1,
    50, 99.

    Read the distance from the floor, in either direction: a model that forgets rare text lowers the upper percentile, a
    model that drifts raises it, and both happen (Shumailov et al. 2024, Fig. 1, histograms of generation perplexity).
    """

    needs = (Documents, Scores)
    reads_models = True

    def __post_init__(self) -> None:
        self._floor: tuple[Any, np.ndarray] = (None, np.empty(0))  # what it is of, and the losses of its records

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        if table is evidence.floor:  # the same records and the same model in every round: scored once by a process
            what = evidence.data, evidence.round0, evidence.seed, evidence.n_samples
            if self._floor[0] != what:
                self._floor = what, self._losses(table, evidence)
            loss = self._floor[1]
        else:
            loss = self._losses(table, evidence)
        return self.numbers(loss)

    def numbers(self, loss: np.ndarray) -> dict[str, float]:
        """What is said of the losses of some records."""
        found = {"loss_under_round0": float(loss.mean())}
        for p in (1, 50, 99):
            found[f"loss_under_round0_p{p}"] = float(np.percentile(loss, p))
        return found

    def _losses(self, table: pa.Table, evidence: Evidence) -> np.ndarray:
        """Nats a token of each record."""
        nats, tokens = able(evidence.domain, Scores).losses(
            evidence.round0, evidence.data, table, evidence.runtime, evidence.report
        )
        return nats / np.maximum(tokens, 1)


@dataclass
class LossHistogram(Tails):
    """loss_bin_00 .. : share of the records whose loss under the model of round 0 lies in a bin of `bin_width` nats a
    token from 0 on; the last bin has all that is above. The whole of what `Tails` has three percentiles of: two modes,
    or a tail that moves while the median stays."""

    panels = ()
    bin_width: float = 0.5
    bins: int = 20

    def __post_init__(self) -> None:
        require(self.bin_width > 0, "bin_width", self.bin_width, "more than 0")
        require(2 <= self.bins <= 100, "bins", self.bins, "from 2 to 100")
        super().__post_init__()

    def numbers(self, loss: np.ndarray) -> dict[str, float]:
        at = np.minimum((loss / self.bin_width).astype(int), self.bins - 1)
        shares = np.bincount(at, minlength=self.bins) / len(loss)
        return {f"loss_bin_{i:02d}": float(share) for i, share in enumerate(shares)}
