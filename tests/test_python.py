"""genloss from Python: docs/python.md runs as it is printed, and what its calls promise."""

from __future__ import annotations

import re
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
        assert len(both) == 5 * 5 and {"mixing", "seed"} <= set(both.columns)
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
        genloss.run(["-m", f"seed={seed},2", "domain=gaussian", "tracking=none", "rounds=500", "domain.chains=20000"])
    except BaseException as error:
        print(type(error).__name__, flush=True)
    assert signal.getsignal(signal.SIGINT) is before
time.sleep(1.5)
print("alive")
"""
    done = home.spawn("python", "-c", code)
    assert done.code == 0 and done.out.splitlines()[-3:] == ["Stopped", "Stopped", "alive"], done.err + done.out
