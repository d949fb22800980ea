"""The curator in CONTRIBUTING.md works as it is printed: its files, written to a project, compose, judge and pass their
test."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from genloss.core.errors import UserError
from genloss.experiment import Experiment
from genloss.workflow.compose import compose

REPOSITORY = Path(__file__).resolve().parents[1]


def blocks() -> dict[str, str]:
    """Code blocks whose first line is a comment with their path: {path: text}."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(?:python|yaml)\n(# (\S+)\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return {path: block for block, path in found}


@pytest.fixture
def example(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project with the example's files in it, importable as with PYTHONPATH=."""
    for path, block in blocks().items():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(project)
    importlib.invalidate_caches()
    yield project
    for name in [m for m in sys.modules if m.split(".")[0] == "mylab"]:
        del sys.modules[name]


def test_the_example_is_complete() -> None:
    assert set(blocks()) == {"mylab/curators.py", "conf/curation/ending.yaml", "tests/test_ending.py"}


def test_the_curator_passes_its_printed_test(example: Path, tmp_path: Path) -> None:
    runpy.run_path(str(example / "tests/test_ending.py"))["test_ending"](tmp_path)


def test_the_curator_chains_and_refuses(example: Path) -> None:
    assert list(Experiment(compose(["curation=[dedup,ending]"])).curators) == ["dedup", "ending"]
    with pytest.raises(UserError, match=r"curation\.ending\.marks=: must be at least one character"):
        Experiment(compose(["curation=ending", "curation.ending.marks=''"]))
    with pytest.raises(UserError, match=r"curation\.ending\.mark=x: unknown option; did you mean marks"):
        Experiment(compose(["curation=ending", "+curation.ending.mark=x"]))
