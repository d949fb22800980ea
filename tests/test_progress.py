"""Progress: a table that fits a terminal of 80 columns, and times that agree with each other."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from genloss.core.progress import Live, Progress, all_left, arm_left, cut, drawn

STATE = {"arm": "accumulate_subsample dedup+perplexity_low seed 7", "rounds": 12, "round": 10, "stage": "generate"}
STATE |= {"pace": 100.0, "loss": 2.345, "done": 500, "total": 1024, "unit": "records", "rate": 1234.5, "left": 7200}


def test_the_table_fits_80_columns(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.json").write_text(json.dumps(STATE | {"began": time.time() - 10}))
    out = io.StringIO()
    Console(file=out, width=80).print(Live(tmp_path, 12).table(80))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("0 of 12 arms have ended, ") and lines[0].rstrip().endswith(" left")
    assert lines[2].split() == ["arm", "round", "stage", "loss", "rate", "left", "arm", "left"]
    row = next(line for line in lines if "generate" in line)
    assert "seed 7" in row and "1234 records/s" in row and "2.345" in row and "2:00:00" in row
    assert max(map(len, lines)) <= 80 and cut("abcdefghij", 5) == "ab…ij"


def test_times_agree() -> None:
    state = STATE | {"began": time.time() - 10}
    assert arm_left(state) == pytest.approx(7200 + 2 * 100)  # never less than its stage needs
    assert arm_left(state | {"left": 5}) == pytest.approx(90 + 2 * 100, abs=1)  # the rest of this round, and two more
    assert arm_left(state | {"pace": None}) is None and arm_left(state | {"stage": "finished"}) is None
    one = arm_left(state) or 0
    assert all_left([state, state], 2) == pytest.approx(one)
    assert all_left([state, state], 4) == pytest.approx(one + 13 * 100)  # two more arms, two at a time


def test_rounds_that_were_there_are_no_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress("a", 3, tmp_path / "a.json", lines=False)
    clock = [0.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    for n, seconds in enumerate([0, 8, 10, 0]):  # round 0 comes from the store
        with progress.stage(n, "train") as report:
            clock[0] += seconds
            if seconds:
                report(1, 1, "steps")
    assert json.loads((tmp_path / "a.json").read_text())["pace"] == 9


def test_a_terminal_that_draws_nothing_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for term, draws in (("xterm", True), ("dumb", False), ("", False)):
        monkeypatch.setenv("TERM", term)
        assert drawn() is draws
