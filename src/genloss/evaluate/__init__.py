"""Evaluate: metrics of one round, computed from saved artifacts only.

A metric is one dataclass and one file in conf/metrics/. A metric of a *sample* (`SampleMetric`) is computed twice: on
the generated records, and as its real-vs-real floor on equally many held-out real records; the floor carries the suffix
`_floor`. Names in metrics.json are the names in MLflow, there below `round/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Documents, Texts, able
from genloss.core.contracts import Domain, Inputs, Plugin, Report, Runtime, silent
from genloss.core.errors import UserError
from genloss.core.seeds import generator


@dataclass(frozen=True)
class Evidence:
    """What a metric may read: the artifacts of one round. `generated` is absent in round 0."""

    domain: Domain
    round: int
    seed: int  # the same in every round and arm, so that samples of real data are shared
    size: int  # records that a sample metric looks at, at most
    n_real: int  # real records that round 0 was trained on
    data: Path
    model: Path
    round0: Path  # the frozen reference model
    generated: Path | None
    inputs: Inputs = field(default_factory=lambda: Inputs({}))  # what else the metrics `read`
    runtime: Runtime = field(default_factory=Runtime)
    report: Report = silent

    @cached_property
    def _pools(self) -> tuple[pa.Table | None, pa.Table]:
        generated = records.read(self.generated) if self.generated else None
        held_out = records.concat(
            [records.read(self.data / "test.parquet"), records.read(self.data / "validation.parquet")]
        )
        return generated, held_out

    @cached_property
    def n_samples(self) -> int:
        """Records in a sample and in its floor: equally many, since most diversity measures depend on it."""
        generated, held_out = self._pools
        sizes = [self.size, len(held_out)] + ([len(generated)] if generated is not None else [])
        return min(sizes)

    def _draw(self, table: pa.Table, purpose: str) -> pa.Table:
        chosen = np.sort(generator(self.seed, "sample", purpose).permutation(len(table))[: self.n_samples])
        return table.take(pa.array(chosen))

    @cached_property
    def sample(self) -> pa.Table | None:
        """`n_samples` generated records; None in round 0."""
        generated, _ = self._pools
        return None if generated is None else self._draw(generated, "generated")

    @cached_property
    def floor(self) -> pa.Table:
        """`n_samples` held-out real records."""
        return self._draw(self._pools[1], "floor")

    @cached_property
    def real(self) -> pa.Table:
        """The real records that round 0 was trained on."""
        return records.read(self.data / "train.parquet").slice(0, self.n_real)

    def texts(self, table: pa.Table) -> list[str]:
        return able(self.domain, Texts).texts(table)

    @cached_property
    def real_texts(self) -> list[str]:
        return self.texts(self.real)


class Metric(Plugin, ABC):
    """Returns named numbers of one round; the docstring says what they are."""

    @abstractmethod
    def measure(self, evidence: Evidence) -> dict[str, float]: ...


class SampleMetric(Metric):
    """A metric of a set of documents: implement `of`; the floor comes for free."""

    needs: ClassVar[tuple[type, ...]] = (Documents,)

    @abstractmethod
    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]: ...

    def measure(self, evidence: Evidence) -> dict[str, float]:
        found = {f"{k}_floor": v for k, v in self.of(evidence.floor, evidence).items()}
        if evidence.sample is not None:
            found |= self.of(evidence.sample, evidence)
        return found


def evaluate(metrics: Mapping[str, Metric], evidence: Evidence) -> dict[str, float]:
    """All metrics of one round, flat; a name that two metrics claim, or a number that is not finite, is refused."""
    sampled = any(isinstance(m, SampleMetric) for m in metrics.values())
    found: dict[str, float] = {"n_samples": float(evidence.n_samples)} if sampled else {}
    for name, metric in metrics.items():
        for key, value in metric.measure(evidence).items():
            if key in found:
                raise UserError(f"metrics.{name}", key, "is the name of another metric's number too; rename one")
            if not np.isfinite(value):
                raise UserError(f"metrics.{name}", f"{key}={value}", f"is not finite in round {evidence.round}")
            found[key] = float(value)
    return found
