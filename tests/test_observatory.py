"""What is read out of finished rounds: warnings of a report, and what a sweep proposes next."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from genloss.core import records
from genloss.core.errors import first_line, one_line
from genloss.core.files import write_atomic
from genloss.experiment import Experiment
from genloss.language.curve import write_curve
from genloss.observatory.report import next_commands, report
from genloss.observatory.results import arms_of, measured, rounds_of, turned
from genloss.workflow.compose import compose, to_yaml
from genloss.workflow.dvc_cache import committed
from support import REPOSITORY, Project, arms


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = Project.make(tmp_path_factory.mktemp("observatory") / "project")
    return home.ok("run", "rounds=0", "size=64", "trainer.steps=4", "tracking=none").folder


def curve(arm: Path, losses: dict[int, float]) -> None:
    rows = [(step, 1.0, 0.1, losses.get(step, "")) for step in range(1, 1 + max(losses))]
    write_curve(arm / "rounds/00", ("step", "loss", "lr", "validation_loss"), rows)


def test_a_loss_that_turns_is_told(arm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained on real data alone, further than that data goes: real_only is no floor of such arms."""
    mine = tmp_path / "arm"
    shutil.copytree(arm, mine)
    assert turned(mine, rounds_of(mine)) == ""
    curve(mine, {2: 3.0, 4: 3.02})
    assert turned(mine, rounds_of(mine)) == ""  # noise
    curve(mine, {2: 3.0, 4: 3.5})
    said = turned(mine, rounds_of(mine))
    assert "3.000 at step 2, 3.500 at the last" in said and "64 real records" in said and "size" in said
    report([mine], arms_of(mine), None, None)
    assert said in capsys.readouterr().out and said in (mine / "report/report.md").read_text()

    metrics = mine / "rounds/00/metrics.json"
    (mine / "rounds/00/manifest.json").unlink()  # which has its hash
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"train_real_fraction": 0.9}))
    assert turned(mine, rounds_of(mine)) == ""  # what a model wrote turns for other reasons


def test_a_run_without_its_headline_metric_is_reported_and_committed(tmp_path: Path, tiny: list[str]) -> None:
    home = Project.make(tmp_path / "project")
    folder = home.ok("run", *tiny, "rounds=0", "metrics=[diversity]").folder
    assert committed_in(home, folder)
    assert "heldout" not in (folder / "report/report.md").read_text()
    again = home.call("report", str(folder), "--metric", "heldout_bits_per_byte")
    assert again.code == 2 and "unknown; " in again.err
    assert measured(folder / "params.yaml", [("a", {0: {"train_records": 1.0, "distinct_2": 0.5}})])[0] == "distinct_2"


def test_a_runs_report_is_the_same_wherever_it_is_made(arm: Path, tmp_path: Path) -> None:
    """`dvc exp run --temp` runs in a folder of any name, and its outputs are compared with the workspace's."""
    for name in ("a", "b"):
        shutil.copytree(arm, tmp_path / name)
        report([tmp_path / name], arms_of(tmp_path / name), None, tmp_path / name / "report")
    for path in ("report/rounds.csv", "report/report.md", "summary.json"):
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    summary = json.loads((arm / "summary.json").read_text())
    assert list(summary) == ["round", "heldout_bits_per_byte"] and summary["round"] == 0


def test_errors_of_libraries_obey_nothing_in_a_terminal() -> None:
    said = RuntimeError("\x1b[31mred\x1b[0m\n\u202eturned")
    assert one_line(said) == r"\x1b[31mred\x1b[0m \u202eturned" and first_line(said) == r"\x1b[31mred\x1b[0m"


def committed_in(home: Project, folder: Path) -> bool:
    with home.here():
        return committed(folder)


@pytest.mark.parametrize("domain", sorted(path.stem for path in (REPOSITORY / "conf/domain").glob("*.yaml")))
def test_a_sweep_proposes_what_its_domain_can_run(tmp_path: Path, domain: str) -> None:
    """Also where an experiment gives the domain another name, as that of Humpback does."""
    write_atomic(tmp_path / "arm/params.yaml", to_yaml(compose([f"domain={domain}", "++domain.name=another"])))
    write_atomic(tmp_path / "sweep.json", '{"arms": ["a"]}')
    write_atomic(tmp_path / "arms/a.json", json.dumps({"name": "a", "dir": "arm", "state": "finished"}))
    (own,) = re.findall(r"genloss run -m (.*?) +# an ablation of your own", next_commands(tmp_path))
    proposed = arms(own.split())
    assert len(proposed) == 4 and {cfg.domain.name for cfg in proposed} == {domain}
    for cfg in proposed:
        Experiment(cfg)


def test_samples_are_read_as_text(tmp_path: Path) -> None:
    """Both kept and rejected ones; what a terminal would obey is not printed."""
    home, run = Project.make(tmp_path / "project"), tmp_path / "run"
    for name, texts in {"kept": ["one", "\x1b[31mtwo\u202e\nlines"], "rejected": ["three"]}.items():
        table = records.make_table({"text": texts}, origin=records.SYNTHETIC, generation=1, recipe="sample")
        if name == "rejected":
            table = table.append_column("reason", pa.array(["too short"])).append_column("score", pa.array([0.5]))
        records.write(table, run / f"rounds/01/{name}.parquet")
    write_atomic(run / "rounds/01/manifest.json", "{}")
    said = home.ok("samples", str(run), "--round", "1", "--count", "2").out
    assert re.sub(r"[0-9a-f]{8}", "ID", said) == (
        "-- ID, kept\none\n\n-- ID, kept\n�[31mtwo�\nlines\n\n-- ID, rejected, reason too short, score 0.5\nthree\n"
    )
    assert home.ok("samples", str(run)).out == said
    table = pa.table({"id": ["a" * 32], "prompt": ["2+2?"], "response": [""], "answer": ["4"], "finish": ["length"]})
    records.write(table.append_column("document", pa.array(["x.txt"])), run / "rounds/02/kept.parquet")
    write_atomic(run / "rounds/02/manifest.json", "{}")
    assert home.ok("samples", str(run)).out == "-- aaaaaaaa, kept, finish length\nprompt: 2+2?\nanswer: 4\n"
    for arguments, words in {("--round", "3"): "--round=3: is not there", ("--count", "0"): "--count=0"}.items():
        refused = home.call("samples", str(run), *arguments)
        assert refused.code == 2 and words in refused.err
    assert "is no run directory" in home.call("samples", str(tmp_path)).err
