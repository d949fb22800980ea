"""What MLflow shows already, read from its SQLite tables: a finished sweep that is called again finds in a moment that
there is nothing to write.

MLflow's client takes two seconds to import and asks for each run by itself. Of a server, and of tables that are not as
expected, nothing is known here, and `genloss.workflow.tracking` looks with the client."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict
from pathlib import Path
from urllib.parse import quote

from omegaconf import DictConfig

from genloss.workflow.identity import arm_id
from genloss.workflow.mlflow_run import ARM, DIR, IN_SWEEP, SWEEP, database, place, store_uri, sweep_id
from genloss.workflow.tracking import ROUND, WRITING, description, manifest_of

RUNS = """
select r.run_uuid, r.name, r.status, t.key, t.value from runs r
join experiments e using (experiment_id) join tags t using (run_uuid)
where e.name = ? and e.lifecycle_stage = 'active' and r.lifecycle_stage = 'active'
"""


class Shown:
    """What is in the experiment of a config."""

    def __init__(self, cfg: DictConfig):
        self.enabled = bool(cfg.tracking.enabled)
        self.finished: list[tuple[str, dict[str, str]]] = []  # runs: name, tags
        self.running = False  # whether a run seems to be
        file = database(store_uri(cfg.tracking.uri))
        if not (self.enabled and file and file.is_file()):
            return
        tags: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as tables,
        ):
            for run, name, state, key, text in tables.execute(RUNS, (cfg.tracking.experiment,)):
                tags[run, name, state][key] = text
        self.finished = [(name, found) for (_, name, state), found in tags.items() if state == "FINISHED"]
        self.running = any(state == "RUNNING" for _, _, state in tags)

    def arm(self, folder: Path, cfg: DictConfig, sweep: Path, name: str) -> bool:
        """Whether all rounds of an arm are shown in a sweep under this name, or nothing is to be."""
        if not self.enabled:
            return True
        there = {ARM: arm_id(cfg), DIR: place(folder), IN_SWEEP: sweep_id(sweep), WRITING: ""}
        there |= {f"{ROUND}{n}": manifest_of(folder, n)[0] for n in range(cfg.rounds + 1)}
        return any(name == called and there.items() <= tags.items() for called, tags in self.finished)

    def sweep(self, folder: Path) -> bool:
        """Whether a sweep is shown as it is now, and no run waits to be marked as killed."""
        there = {SWEEP: sweep_id(folder), DIR: place(folder), **description(folder)}
        shown = any(there.items() <= tags.items() for _, tags in self.finished)
        return not self.enabled or (shown and not self.running)
