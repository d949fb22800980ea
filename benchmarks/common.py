"""What the benchmarks share: a trained demo model, and a table."""

from __future__ import annotations

import tempfile
from pathlib import Path

from genloss.core.contracts import Fit
from genloss.core.records import read, write
from genloss.experiment import Experiment
from genloss.workflow.compose import compose


def demo_model(folder: Path, steps: int | None = None) -> tuple[Experiment, Path, Path]:
    """(experiment, data folder, model folder): the demo's data and its round-0 model."""
    x = Experiment(compose([] if steps is None else [f"trainer.steps={steps}"]))
    data, out = folder / "data", folder / "fit"
    x.domain.prepare(data)
    write(read(data / "train.parquet").slice(0, x.size), folder / "real.parquet")
    fit = Fit(x.model, x.trainer, data, [folder / "real.parquet"], [1.0], None, 1, out, x.domain.config("train"))
    x.trainer.train(fit)
    return x, data, out / "model"


def scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="genloss-bench-")


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n## {title}\n")
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * w for w in widths], *rows]:
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")
