"""genloss from Python: docs/python.md runs as it is printed, and what its calls promise."""

from __future__ import annotations

import re
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
