"""What is shown while a training runs: its curve so far, and the machine, every few seconds from a thread.

    with Follower(run, show):        # show(round, scratch folder, rows): each row (step, name, number)
        ...                          # whatever trains in this process sets `run.training`

The training writes its curve to live.json of its scratch folder (genloss.language.curve), since it may be another
process, and knows of no view. The thread does nothing between trainings: a process may fork then."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from genloss.core.rundir import RunDir
from genloss.language.curve import LIVE

EVERY = 5.0  # seconds between two looks

Rows = Iterable[tuple[int, str, float]]


class Follower:
    def __init__(self, run: RunDir, show: Callable[[int, Path, Rows], None]):
        self.run, self.show = run, show
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()  # it is not waited for: it may be asking a server that is gone

    def _follow(self) -> None:
        while not self._over.wait(EVERY):
            if training := self.run.training:
                self.show(*training, written(training[1]))


def written(folder: Path) -> Rows:
    """What a training has written of its curve."""
    try:
        found = json.loads((folder / LIVE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [(int(step), str(name), float(x)) for step, name, x in found]


class Machine:
    """MLflow's own system metrics, `system/NAME`: cores, memory, disk, network, and GPUs where nvidia-ml-py is. Their
    SystemMetricsMonitor is not used: it opens the default database, asks the server every few seconds how the run is,
    and knows nothing of our lock."""

    @cached_property
    def _monitors(self) -> list[Any]:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(ImportError, RuntimeError):  # its library, or a GPU, is not there
            found.append(GPUMonitor())
        return found

    def metrics(self) -> dict[str, float]:
        """Now; of cores and network since the last call."""
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= {f"system/{name}": float(x) for name, x in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return found
