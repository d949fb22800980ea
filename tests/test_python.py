"""genloss from Python: docs/python.md runs as it is printed, and what its calls promise."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest

import genloss
from genloss.core.errors import UserError
from support import REPOSITORY, Project


def test_the_page_runs_as_it_is_printed(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.use("agg")
    home = Project.make(tmp_path / "project")
    names: dict[str, Any] = {}
    page = (REPOSITORY / "docs/python.md").read_text()
    with home.here():
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(block, names)
        frame, sweep = names["frame"], names["sweep"]
        assert sweep.parent == home.root / "runs" and sweep.name.startswith("sweep-")
        assert list(frame.columns[:4]) == ["arm", "mixing", "seed", "round"] and len(frame) == 4 * 5
        assert set(frame["arm"]) == {f"{m} seed {s}" for m in ("replace", "accumulate") for s in (0, 1)}
        assert frame["diversity"].notna().all() and "accumulate 4" in capsys.readouterr().out
        one = genloss.run([*names["small"], "seed=0"])  # an arm of the sweep: nothing is left to do
        assert list(genloss.load(one).columns[:2]) == ["arm", "round"]
        both = genloss.load(str(one), sweep)
        assert len(both) == 4 * 5 and {"mixing", "seed"} <= set(both.columns)
        with pytest.raises(UserError, match="mixing=acumulate"):
            genloss.compose(["mixing=acumulate"])
        with pytest.raises(UserError, match="seed=-1"):
            genloss.run(["-m", *names["small"], "seed=0,-1"])
        with pytest.raises(UserError, match="neither a run directory"):
            genloss.load(home.root)


def test_a_call_that_is_interrupted_leaves_the_notebook_as_it_was(tmp_path: Path) -> None:
    """Called in a process of its own: the first signal must not end it, however long it goes on, nor spoil the next."""
    home = Project.make(tmp_path / "project")
    code = """
import genloss, os, signal, threading, time
from pathlib import Path
from genloss.core import signals

signals.GRACE = 0.5
before = signal.getsignal(signal.SIGINT)

def interrupt(seed):
    while not list(Path("runs").glob(f"*-s{seed}-*/rounds/01")):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

for seed in (0, 1):
    threading.Thread(target=interrupt, args=[seed]).start()
    try:
        genloss.run(["-m", f"seed={seed},2", "domain=gaussian", "tracking=none", "rounds=100", "domain.chains=20000"])
    except BaseException as error:
        print(type(error).__name__, flush=True)
    assert signal.getsignal(signal.SIGINT) is before
time.sleep(1.5)
print("alive")
"""
    done = home.spawn("python", "-c", code)
    assert done.code == 0 and done.out.splitlines()[-3:] == ["Stopped", "Stopped", "alive"], done.err + done.out


MINE = """
from dataclasses import dataclass
from genloss.curate import PointCurator

@dataclass
class All(PointCurator):
    def decide_points(self, points, left, context):
        return left
"""


def test_each_call_finds_its_project_and_leaves_nothing(tmp_path: Any) -> None:
    """Code that genloss.yaml names, and a store that is relative to the project."""
    small = ["domain=gaussian", "size=20", "rounds=1", "domain.chains=10", "tracking=none"]
    homes = [Project.make(tmp_path / name, GENLOSS_PROJECT="", GENLOSS_STORE="shelf") for name in ("a", "b")]
    for home in homes:
        name = f"lab_of_{home.root.name}"
        (home.root / "code").mkdir()
        (home.root / "code" / f"{name}.py").write_text(MINE)
        (home.root / "genloss.yaml").write_text("python: [code]\n")
        own = [*small, f"+curation.mine={{_target_: {name}.All}}"]
        with home.here():
            before = dict(os.environ), list(sys.path)
            assert genloss.compose(own).curation.mine._target_ == f"{name}.All"
            assert (dict(os.environ), sys.path) == before
            assert genloss.run(own).parent == home.root / "runs"
            assert (dict(os.environ), sys.path) == before and (home.root / "shelf" / "stages").is_dir()
            with pytest.raises(UserError, match="has run nothing"):  # though it prints `run: /nowhere`
                genloss.run([*small, "+recipe.run=/nowhere", "--cfg", "job", "-p", "recipe"])
            assert (dict(os.environ), sys.path) == before
