"""Faults, at every point of a command: nothing is lost, the hashes are equal, nothing is left behind, and MLflow's
states are true.

`make faults` runs them all; `make test` kills at random moments (tests/test_crash.py). What is killed is forked from
this process, which imports what it needs and computes nothing, and so is what it starts: `dvc commit`, the rounds of
`dvc repro`, the workers of joblib. tests/shim.py says where the fault comes.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import shim
from genloss.workflow.dvc_cache import md5
from support import Project, Result, forked, frozen, hashes
from test_crash import preload, records

pytestmark = pytest.mark.faults

LIBRARIES = (
    "joblib",
    "pyarrow.parquet",
    "matplotlib.pyplot",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
    "dvc.cli",
    "dvc.commands.commit",
    "dvc.commands.repro",
    "dvc.repo",
    "dvc.stage.run",
    "hydra_plugins.hydra_joblib_launcher._core",
    "genloss.cli",
    "genloss.domains.lab.gaussian",
    "genloss.workflow.hydra_app",
    "genloss.workflow.sweep",
    "genloss.workflow.dvc_cache",
    "genloss.workflow.dvc_config",
    "genloss.workflow.tracking",
    "genloss.workflow.verify",
    "genloss.observatory.report",
)
ARM = ["domain=gaussian", "domain.chains=3", "size=20", "rounds=1", "tracking=mlflow"]
ALL = 10_000
RUN = ("genloss", "run", *ARM)
KILLED = -9


@pytest.fixture(scope="module", autouse=True)
def preloaded() -> None:
    preload(LIBRARIES)


# -- commands whose processes are forked -------------------------------------------------------------------------------


def fork_what_it_starts() -> None:
    """Seconds of imports for each `dvc commit`, `genloss round` and worker are what kills by the hundred cannot pay."""
    import dvc.stage.run
    import joblib
    from dvc.cli import main as dvc_main
    from dvc.exceptions import DvcException
    from hydra_plugins.hydra_joblib_launcher import _core

    from genloss import cli
    from genloss.workflow import dvc_cache

    def commit(words: list[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess:
        done = ended(Project(cwd), lambda: sys.exit(dvc_main(words[3:])))
        return subprocess.CompletedProcess(words, done.code, "", done.err)

    def stage(_: Any, line: str, **options: Any) -> None:
        done = ended(Project(Path.cwd()), lambda: cli.main(line.split()[1:]))
        print(done.err, file=sys.stderr)
        if done.code:
            raise DvcException(f"{line} ended with {done.code}")

    dvc_cache.subprocess = type("", (), {"run": staticmethod(commit)})  # type: ignore[assignment]
    dvc.stage.run._run = stage
    _core.Parallel = lambda **options: joblib.Parallel(**options | {"backend": "multiprocessing"})


def ended(home: Project, action: Callable[[], object]) -> Result:
    """What became of a forked process; all that it said is in `err`."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        status = os.waitpid(forked(home, action, log), 0)[1]
        return Result(os.waitstatus_to_exitcode(status), "", log.read_text() if log.exists() else "")


@dataclass
class Victim:
    """A project, and the one command whose way through faults is the test."""

    home: Project
    words: tuple[str, ...]
    folder: str = "."  # where the command runs

    @classmethod
    def make(cls, root: Path, *words: str, **env: str) -> Victim:
        home = Project.make(root / "project", DVC_NO_ANALYTICS="1", COLUMNS="120", **env)
        home.env["DVC_SITE_CACHE_DIR"] = str(root / "site")
        return cls(home, words)

    @property
    def points(self) -> list[str]:
        """Where faults came, in their order."""
        path = self.home.root.parent / "points"
        return path.read_text().splitlines() if path.exists() else []

    def go(self, *words: str, **env: str) -> Result:
        """Run the command, or another one, in a forked process."""
        words = words or self.words

        def act() -> None:
            os.setpgid(0, 0)  # what it starts dies with it
            os.chdir(self.folder)
            os.environ.update(env)
            sys.argv = list(words)
            fork_what_it_starts()
            shim.install()
            from dvc.cli import main as dvc_main

            from genloss import cli

            sys.exit(dvc_main(list(words[1:])) if words[0] == "dvc" else cli.main(list(words[1:])))

        return ended(self.home, act)

    def ok(self, *words: str, **env: str) -> Result:
        result = self.go(*words, **env)
        assert result.code == 0, (result, self.points[-1:])
        return result

    def fault(self, kind: str, **env: str) -> Result | None:
        """Run the command until it meets a fault at a point that is new; None if it came to its end without one."""
        armed = self.home.root.parent / "armed"
        armed.touch()
        more = {"GENLOSS_POINTS": str(self.home.root.parent / "points"), "GENLOSS_ARMED": str(armed)}
        result = self.go(GENLOSS_FAULT=kind, **more, **env)
        if not armed.exists():
            return result
        assert result.code == 0, (result, self.points[-1:])
        return None


# -- what must hold after all of it ------------------------------------------------------------------------------------


def arms(home: Project) -> dict[str, dict[str, str]]:
    return {path.parent.name: hashes(path.parent) for path in home.root.glob("runs/*/params.yaml")}


def files(home: Project) -> set[str]:
    """Every file of a project, but for those with which DVC, SQLite and locks are at work."""
    names = {shim.named(str(p.relative_to(home.root))) for p in home.root.rglob("*") if p.is_file()}
    return {name for name in names if not re.search(r"/\.dvc/tmp/|/locks/|/\.running/|\.dvc/cache/runs/", name)}


def shown(home: Project) -> Counter[tuple[str, str]]:
    """The runs that MLflow shows, by name and state; no point of them is there twice."""
    with contextlib.closing(sqlite3.connect(home.root / "mlruns" / "mlflow.db")) as database:
        active = "FROM runs WHERE lifecycle_stage = 'active'"
        twice = f"""SELECT key, step, count(*) FROM metrics WHERE run_uuid IN (SELECT run_uuid {active})
                    GROUP BY run_uuid, key, step HAVING count(*) > 1"""
        assert database.execute(twice).fetchall() == []
        return Counter(database.execute(f"SELECT name, status {active}").fetchall())


def same(wild: Victim, calm: Victim) -> None:
    """Nothing is lost, nothing is left, and MLflow says so."""
    assert arms(wild.home) == arms(calm.home) and any(arms(calm.home).values())
    assert records(wild.home) == records(calm.home)
    assert shown(wild.home) == shown(calm.home) and {state for _, state in shown(calm.home)} <= {"FINISHED"}
    assert files(wild.home) == files(calm.home)
    for name, path in ((p.parent.name + p.name, p) for p in wild.home.root.glob(".dvc/cache/files/md5/*/*")):
        assert md5(path) == name.removesuffix(".dir")


def killed_everywhere(wild: Victim, calm: Victim, most: int, **env: str) -> None:
    """Kill the command at every point, and go on; at most so many times."""
    began, before = time.monotonic(), frozen(wild.home.store)
    while len(wild.points) < most and (result := wild.fault("kill", **env)):
        assert result.code == KILLED, (result, wild.points[-1:])
        after = frozen(wild.home.store)
        assert {path: after.get(path) for path in before} == before, wild.points[-1]  # no record is written again
        before = after
    wild.ok()
    print(f"{len(wild.points)} kills in {time.monotonic() - began:.0f} s")
    same(wild, calm)


# -- kills -------------------------------------------------------------------------------------------------------------


def test_a_run_is_killed_at_every_point(tmp_path: Path) -> None:
    """`dvc commit` and MLflow's statements among them."""
    calm, wild = (Victim.make(tmp_path / name, *RUN) for name in ("calm", "wild"))
    calm.ok()
    killed_everywhere(wild, calm, ALL)
