"""Evaluate: metrics of one round, computed from saved artifacts only.

A metric is one dataclass and one file in conf/metrics/. A metric of a *sample* (`SampleMetric`) is computed twice: on
the generated records, and as its real-vs-real floor on equally many held-out real records; the floor carries the suffix
`_floor`. Names in metrics.json are the names in MLflow, there below `round/`."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Documents, Texts, able
from genloss.core.contracts import Domain, Experiment, Inputs, Plugin, Report, Runtime, silent
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
    scratch: Path | None = None  # survives a kill; None: nothing is kept
    store: Path | None = None  # holds what is made of real data once for all; None: it is made here
    account: Path | None = None  # of `Sampling`
    said: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)  # of selected.answers

    @property
    def _held_out(self) -> list[Path]:
        return [self.data / "test.parquet", self.data / "validation.parquet"]

    @cached_property
    def n_samples(self) -> int:
        """Records in a sample and in its floor: equally many, since most diversity measures depend on it."""
        sizes = [self.size, sum(map(records.count, self._held_out))]
        return min(sizes + ([records.count(self.generated)] if self.generated else []))

    def _draw(self, files: list[Path], purpose: str) -> pa.Table:
        count = sum(map(records.count, files))
        return records.take(
            files, np.sort(generator(self.seed, "sample", purpose).permutation(count)[: self.n_samples])
        )

    @cached_property
    def sample(self) -> pa.Table | None:
        """`n_samples` generated records; None in round 0."""
        return self._draw([self.generated], "generated") if self.generated else None

    @cached_property
    def floor(self) -> pa.Table:
        """`n_samples` held-out real records."""
        return self._draw(self._held_out, "floor")

    @cached_property
    def reference(self) -> pa.Table:
        """`n_samples` of the real records that round 0 was trained on (fewer if there are fewer): what a sample is
        compared with, and its floor too."""
        return self.some_real(self.n_samples)

    def some_real(self, n: int) -> pa.Table:
        """n of these records, at most."""
        chosen = generator(self.seed, "sample", "reference").permutation(self._n_real)[:n]
        return records.take([self.data / "train.parquet"], np.sort(chosen))

    @cached_property
    def real(self) -> pa.Table:
        """The real records that round 0 was trained on."""
        return records.read(self.data / "train.parquet", rows=(0, self._n_real))

    @property
    def _n_real(self) -> int:
        return min(self.n_real, records.count(self.data / "train.parquet"))

    def texts(self, table: pa.Table) -> list[str]:
        return able(self.domain, Texts).texts(table)

    def real_texts(self) -> Iterator[str]:
        """Of the records that round 0 was trained on, one after the other: there may be millions."""
        left = self._n_real
        for part in records.batches(self.data / "train.parquet", self.domain.payload):
            yield from self.texts(part.slice(0, left))
            left -= len(part)
            if left <= 0:
                return


class Metric(Plugin, ABC):
    """Returns named numbers of one round; the docstring says what they are."""

    # the numbers that a report shows among the first where it is asked for; None: the one with the plug-in's name
    panels: ClassVar[tuple[str, ...] | None] = None
    reads_models: ClassVar[bool] = True  # whether it looks at a model; if so it cannot be added once that is gone

    @abstractmethod
    def measure(self, evidence: Evidence) -> dict[str, float]: ...


class SampleMetric(Metric):
    """A metric of a set of documents: implement `of`; the floor comes for free. A sample of fewer than `least` records
    says nothing of it: a config that asks for one is refused, and so are held-out data that have no more; a later round
    that has made too few is left out, with a warning. `lacks` may know more that a sample can have too little of."""

    needs: ClassVar[tuple[type, ...]] = (Documents,)
    reads_models = False
    least: ClassVar[int] = 1  # records

    @abstractmethod
    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]: ...

    def each(self, tables: Sequence[pa.Table], evidence: Evidence) -> list[dict[str, float]]:
        """Of the floor and, from round 1 on, of the sample."""
        return [self.of(table, evidence) for table in tables]

    def lacks(self, evidence: Evidence) -> str | None:
        """What there is too little of, and how much it needs; None where there is enough."""
        if evidence.n_samples >= self.least:
            return None
        return f"{evidence.n_samples} records, and {type(self).__name__} needs {self.least}"

    def check(self, experiment: Experiment) -> None:
        if experiment.size < self.least:
            raise UserError("size", experiment.size, f"{type(self).__name__} needs a sample of {self.least} records")

    def measure(self, evidence: Evidence) -> dict[str, float]:
        what = self.lacks(evidence)
        if what:
            if evidence.sample is None:
                raise UserError("domain", None, f"its real data have {what}; give it more, or leave that out")
            print(f"genloss: warning: round {evidence.round} has a sample of {what}; it is left out", file=sys.stderr)
            return {}
        tables = [evidence.floor, *([] if evidence.sample is None else [evidence.sample])]
        floor, *sample = self.each(tables, evidence)
        return {f"{k}_floor": v for k, v in floor.items()} | (sample[0] if sample else {})


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
