"""Whatever stops a command ends it alike in every stage: 128 + n, one line, no process left, and the same command goes
on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from genloss.evaluate import Evidence, Metric
from genloss.workflow import warm
from genloss.workflow.compose import compose, to_yaml
from genloss.workflow.dvc_cache import DVC
from support import Project


def stopped(
    home: Project, number: signal.Signals, ready: Callable[[], bool], *arguments: str, prints: str = ""
) -> None:
    """Start genloss, send the signal to it alone as soon as it is `ready`, and check how it ends; `prints`: what it has
    printed until then."""
    running = subprocess.Popen(
        [sys.executable, "-m", "genloss", *arguments],
        cwd=home.root,
        env=home.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not ready() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)  # into the middle of the stage
    assert running.poll() is None, running.communicate()
    children = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(number)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 128 + number, err
    lines = [
        line
        for line in err.splitlines()
        if not any(said in line for said in (": round ", " arms; ", "warning: ", "genloss: needs at most "))
    ]
    assert lines == [f"genloss: interrupted ({number.name}); the same command goes on from here"] and out == prints
    psutil.wait_procs(children, timeout=30)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not list(home.root.glob("runs/sweep-*/progress")) and not list(home.root.glob(".genloss/progress/*"))


LONG = "trainer.steps=3000"


def started(*words: str) -> list[psutil.Process]:
    """Processes below this one whose command has all of these words."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one that has just ended
            found += [child] if set(words) <= set(child.cmdline()) else []
    return found


@dataclass
class Slow(Metric):
    """Goes on for a minute, once it has made a file."""

    begun: str = ""

    def measure(self, evidence: Evidence) -> dict[str, float]:
        Path(self.begun).touch()
        for _ in range(60):
            time.sleep(1)
        return {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_training(tmp_path: Path, tiny: list[str], number: signal.Signals) -> None:
    """Lightning has handlers of its own there: SIGTERM ended a run early, with 0, and SIGINT with 1 and no word."""
    home = Project.make(tmp_path / "project")
    stopped(home, number, lambda: home.stages()["mix"] == 1, "run", *tiny, LONG)


def test_while_sampling_and_on_again(tmp_path: Path, tiny: list[str]) -> None:
    home = Project.make(tmp_path / "project", TMPDIR=str(tmp_path))
    command = ["run", *tiny, "recipe.n=4000", "rounds=1"]
    stopped(home, signal.SIGHUP, lambda: any(home.store.glob("scratch/*/chunk-*.json")), *command)
    folder = home.ok(*command).folder
    again = "genloss-verify-*/store/scratch/*/chunk-*.json"
    stopped(home, signal.SIGTERM, lambda: any(tmp_path.glob(again)), "verify", str(folder), prints="round 0: same\n")
    assert not list(tmp_path.glob("genloss-verify-*"))


def test_while_evaluating_committing_and_pushing(tmp_path: Path) -> None:
    home = Project.make(tmp_path / "project", PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    command = ["run", "domain=gaussian", "size=20", "rounds=1", "tracking=none"]
    begun = tmp_path / "begun"
    slow = f"+metrics.slow={{_target_: test_signals.Slow, begun: '{begun}'}}"
    stopped(home, signal.SIGINT, begun.exists, *command, slow)
    stopped(home, signal.SIGTERM, lambda: bool(started(DVC[-1], "commit")), *command)
    arm = home.ok(*command).folder
    (home.root / ".dvc").mkdir(exist_ok=True)
    shelf = f"['remote \"shelf\"']\n    url = {tmp_path / 'shelf'}\n"
    (home.root / ".dvc/config").write_text(f"[core]\n    remote = shelf\n{shelf}")
    push = "push", str(arm)
    stopped(home, signal.SIGTERM, lambda: bool(started(DVC[-1], "push")), *push, prints=f"{arm.name}:\n")
    home.ok("push", str(arm))


def test_a_round_by_dvc(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork of a process that outlives the command does the work; it ends with the command."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = Project.make(tmp_path / "project", TMPDIR=str(tmp_path), DVC_STAGE="round")
    with home.here():
        (home.root / "params.yaml").write_text(to_yaml(compose([*tiny, LONG])))
    address = warm.address()
    address.with_suffix(f".{os.getpid()}.hold").touch()
    server = subprocess.Popen([sys.executable, "-m", "genloss", "serve", str(address)], env=home.environment())
    try:
        deadline = time.monotonic() + 300
        while not address.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        forks: list[psutil.Process] = []

        def training() -> bool:
            forks[:] = psutil.Process(server.pid).children()
            return home.stages()["mix"] == 1

        stopped(home, signal.SIGTERM, training, "round", "0")
        psutil.wait_procs(forks, timeout=30)
        assert forks and not [one for one in forks if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        assert server.poll() is None and home.stages()["train"] == 0
    finally:
        server.kill()
        server.wait()


def test_a_sweep(tmp_path: Path, tiny: list[str]) -> None:
    """In this process the arm says so; workers of a launcher end too."""
    home = Project.make(tmp_path / "project")
    command = ["run", "-m", *tiny, LONG, "seed=0,1"]
    stopped(home, signal.SIGTERM, lambda: bool(home.stages()["mix"]), *command)
    states = {json.loads(path.read_text())["state"] for path in home.root.glob("runs/sweep-*/arms/*.json")}
    assert states == {"interrupted", "waiting"}
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    stopped(home, signal.SIGINT, lambda: home.stages()["mix"] == 2, *command, *joblib)
    running = subprocess.Popen(
        [sys.executable, "-m", "genloss", *command, *joblib],
        cwd=home.root,
        env=home.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    workers: list[psutil.Process] = []
    while running.poll() is None and not workers:
        workers = [c for c in psutil.Process(running.pid).children() if "LokyProcess-1" in " ".join(c.cmdline())]
        time.sleep(0.1)
    workers[0].kill()  # as the kernel does where memory ends
    err = running.communicate(timeout=120)[1]
    assert running.returncode == 1 and "Traceback" not in err and "a worker was killed" in err, err


DEVICES = ["runtime.devices=2", "runtime.strategy=ddp", "runtime.accelerator=cpu"]


def test_while_several_devices_train(tmp_path: Path, tiny: list[str]) -> None:
    home = Project.make(tmp_path / "project")
    train = "run", *tiny, *DEVICES, LONG
    stopped(home, signal.SIGTERM, lambda: len(started("genloss.language.training")) == 2, *train)


def test_processes_of_several_devices_end_with_a_killed_parent(tmp_path: Path, tiny: list[str]) -> None:
    home = Project.make(tmp_path / "project")
    running = subprocess.Popen(
        [sys.executable, "-m", "genloss", "run", *tiny, *DEVICES, LONG],
        cwd=home.root,
        env=home.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started: list[psutil.Process] = []
    while running.poll() is None and len(started) < 2:  # one by genloss, the other by Lightning
        children = psutil.Process(running.pid).children(recursive=True)
        started = [c for c in children if "genloss.language.training" in " ".join(c.cmdline())]
        time.sleep(0.1)
    assert running.poll() is None
    running.kill()
    running.wait()
    psutil.wait_procs(started, timeout=30)
    assert not [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
