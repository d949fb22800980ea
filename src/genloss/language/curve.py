"""training.csv, the curve of a training."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def write_curve(out: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write `training.csv`: numbers to six digits, '' where there is none. `step` counts from 1."""
    with (out / "training.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows([f"{x:.6g}" if isinstance(x, float) else x for x in row] for row in rows)
