"""The curve of a training: training.csv at its end, and live.json for who watches while it runs."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

LIVE = "live.json"
EVERY = 2.0  # seconds between two writes of it
POINTS = 50  # of a training that views show


def write_curve(out: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write `training.csv`: numbers to six digits, '' where there is none. `step` counts from 1."""
    with (out / "training.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows([f"{x:.6g}" if isinstance(x, float) else x for x in row] for row in rows)


def stride(steps: int) -> int:
    """Steps from one point that views show to the next."""
    return max(1, steps // POINTS)


class Live:
    """What there is of a curve, as far as views show it: a list of (step, name, number). A file, since the process that
    trains may be another one than that which shows it; it stands in the way of nothing."""

    def __init__(self, folder: Path | None, steps: int):
        self.folder, self.steps = folder, steps
        self._written = time.monotonic()

    def write(self, rows: Callable[[int], Iterable[tuple[int, str, float]]]) -> None:
        """Write it if that was long ago: rows(stride) gives (step, name, number)."""
        if self.folder is None or time.monotonic() - self._written < EVERY:
            return
        found = [[step, name, float(f"{x:.6g}")] for step, name, x in rows(stride(self.steps)) if math.isfinite(x)]
        with contextlib.suppress(OSError):  # a full disk, say
            aside = self.folder / f".{LIVE}"
            aside.write_text(json.dumps(found), encoding="utf-8")
            os.replace(aside, self.folder / LIVE)
        self._written = time.monotonic()
