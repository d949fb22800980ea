"""Metrics that are added to finished rounds: no stage runs again, and manifest, DVC, MLflow and report know of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genloss.core.places import load_params
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.workflow.added import Added, chosen
from genloss.workflow.dvc_cache import committed
from genloss.workflow.tracking import connect, store_uri
from support import Project, frozen

ADDED = "diversity,tails,metrics.diversity.max_n=1"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> tuple[Project, Path]:
    """A project with an arm of two rounds, and its folder."""
    project = Project.make(tmp_path_factory.mktemp("added") / "project")
    more = ["rounds=1", "metrics=[heldout]", "tracking=mlflow", "keep.models=last"]
    return project, project.ok("run", *[word for word in tiny if word != "tracking=none"], *more).folder


def numbers(folder: Path, n: int) -> dict[str, Any]:
    return dict(json.loads((folder / f"rounds/{n:02d}/metrics.json").read_text()))


def test_a_metric_is_added_without_a_rerun(home: tuple[Project, Path]) -> None:
    project, folder = home
    before, stages = numbers(folder, 1), frozen(project.store)
    project.ok("report", "--metrics", ADDED, str(folder))
    after = numbers(folder, 1)
    assert before.items() <= after.items()
    added = {"distinct_1", "distinct_1_floor", "entropy_1", "loss_under_round0", "loss_under_round0_floor"}
    assert added <= after.keys() - before.keys() and "distinct_2" not in after
    assert {name for name in numbers(folder, 0) if name.startswith("distinct")} == {"distinct_1_floor"}
    assert stages.items() <= frozen(project.store).items()  # no stage was computed again
    new = {Path(path).parent.name for path in frozen(project.store).keys() - stages.keys()}
    assert new == {"evaluate"}
    assert json.loads((folder / "summary.json").read_text())["distinct_1"] == after["distinct_1"]
    assert "distinct_1" in (folder / "report" / "rounds.csv").read_text()
    with project.here():
        assert committed(folder)
        cfg = load_params(folder / "params.yaml")
        client, experiment = connect(store_uri(cfg.tracking.uri), cfg.tracking.experiment)
        (run,) = client.search_runs([experiment])
        assert run.data.metrics["round/distinct_1"] == pytest.approx(after["distinct_1"])
    # again: nothing is left to do, also for the command that made the arm
    known = {path: path.stat().st_mtime_ns for path in folder.glob("rounds/*/*.json")}
    stages = frozen(project.store)
    project.ok("report", "--metrics", ADDED, str(folder))
    assert {path: path.stat().st_mtime_ns for path in folder.glob("rounds/*/*.json")} == known
    assert frozen(project.store) == stages
    assert project.spawn("dvc", "status", cwd=folder).out.strip().endswith("up to date.")


def test_what_was_added_is_verified(home: tuple[Project, Path]) -> None:
    project, folder = home
    project.ok("report", "--metrics", ADDED, str(folder))
    assert "all the same" in project.ok("verify", str(folder)).out
    manifest = folder / "rounds/00/manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"distinct_1_floor": 0.', '"distinct_1_floor": 0.1'))
    try:
        found = project.call("verify", str(folder))
        assert found.code == 2 and "manifest.json: is damaged" in found.err
    finally:
        manifest.write_text(text)


def test_a_metric_whose_model_is_gone_says_so_and_the_others_are_added(home: tuple[Project, Path]) -> None:
    project, folder = home
    weights = json.loads((folder / "rounds/00/model/dropped.json").read_text())["files"]
    for digest in weights.values():  # the store keeps that of round 0 for metrics; here it has lost it
        (project.store / "blobs" / digest[:2] / digest[2:]).unlink()
    found = project.call("report", "--metrics", "repetition,tails,metrics.tails._target_=evil.Tails", str(folder))
    assert found.code == 2 and "evil" in found.refusals[0]
    found = project.call("report", "--metrics", "compression,loss_histogram", str(folder))
    assert found.code == 1
    (line,) = found.refusals
    assert "round 0, 1: loss_histogram: the model of round 0: was not kept; `genloss model" in line
    assert "compression_ratio" in numbers(folder, 1)


def test_a_round_whose_schedule_says_null_can_have_more_metrics(home: tuple[Project, Path]) -> None:
    project, folder = home
    cfg = load_params(folder / "params.yaml")
    cfg.schedule = {1: None}
    with project.here():
        added = Added(RunDir(folder, Store(project.store)), cfg, chosen("repetition"))
        assert list(added.work(1, "repetition").config["metrics"]) == ["repetition"]


def test_bad_names_are_refused_in_one_line(home: tuple[Project, Path]) -> None:
    project, folder = home
    for text, said in (
        ("compresion", "--metrics=compresion: unknown; did you mean compression?"),
        ("estimates", "metrics.estimates=Estimates: needs"),
        (",", "--metrics=,: names none"),
    ):
        found = project.call("report", "--metrics", text, str(folder))
        assert found.code == 2 and len(found.refusals) == 1 and said in found.refusals[0], found.err
    found = project.ok("report", "--metrics", "heldout", str(folder))
    assert "heldout is among the metrics of the run itself" in found.err
