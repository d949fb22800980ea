"""MLflow is a view: complete after parallel jobs, rebuilt from files, written once, and never in the way."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from genloss.observatory.results import arms_of
from genloss.observatory.samples import samples
from support import Project

ROUNDS = 1


def view(home: Project) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(the sweep's run, {arm: everything that MLflow knows of it}), without ids and times."""
    # a copy: MLflow keeps a database open that this process has opened, also when another file takes its place
    copy = shutil.copyfile(home.root / "mlruns/mlflow.db", home.root / f"seen-{time.monotonic_ns()}.db")
    client = MlflowClient(tracking_uri=f"sqlite:///{copy}")
    known = client.get_experiment_by_name("genloss")
    assert known is not None
    experiment = known.experiment_id
    runs = client.search_runs([experiment])
    [parent] = [r for r in runs if "genloss.sweep" in r.data.tags]
    arms = {}
    for run in runs:
        if run is parent:
            continue
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
        points = {
            key: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        models = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run.info.run_id}'")
        arms[run.data.tags["genloss.arm"]] = {
            "name": run.info.run_name,
            "status": run.info.status,
            "tags": tags,
            "params": run.data.params,
            "points": {k: sorted(v) for k, v in points.items()},
            "datasets": sorted(
                (d.dataset.name, d.dataset.digest) for d in (run.inputs.dataset_inputs if run.inputs else [])
            ),
            "models": sorted((m.name, m.tags["genloss.sha256"]) for m in models),
        }
    return {"name": parent.data.tags["genloss.sweep"], "status": parent.info.status, "runs": len(runs)}, arms


def without_tracking(tiny: list[str]) -> list[str]:
    return [override for override in tiny if not override.startswith("tracking")]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> tuple[Project, Path, list[str]]:
    """Four arms by four parallel jobs on a fresh database."""
    home = Project.make(tmp_path_factory.mktemp("mlflow") / "project")
    command = [
        "run",
        "-m",
        *without_tracking(tiny),
        f"rounds={ROUNDS}",
        "mixing=replace,accumulate",
        "curation=none,random",
    ]
    home.ok(*command, "tracking=none")  # the jobs then do little else than to write to the database, all at once
    result = home.spawn("genloss", *command, "hydra/launcher=joblib", "hydra.launcher.n_jobs=4")
    assert result.code == 0, result.err
    assert "warning: MLflow" not in result.err
    return home, result.folder, command


def metrics_of(folder: Path) -> Mapping[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for n in range(ROUNDS + 1):
        for key, value in json.loads((folder / f"rounds/{n:02d}/metrics.json").read_text()).items():
            found.setdefault(f"round/{key}", []).append((n, value))
    return found


def test_parallel_jobs_lose_nothing(swept: tuple[Project, Path, list[str]]) -> None:
    home, sweep, _ = swept
    parent, arms = view(home)
    assert parent == {"name": sweep.name, "status": "FINISHED", "runs": 5}
    assert len(arms) == 4
    regimes = set()
    for arm in arms.values():
        folder = home.root / arm["tags"]["genloss.dir"]
        expected = metrics_of(folder)
        assert {k: v for k, v in arm["points"].items() if k.startswith("round/")} == expected
        assert arm["points"]["train/loss"]
        assert arm["status"] == "FINISHED"
        assert arm["params"]["mixing"] == arm["tags"]["regime"]
        assert arm["params"]["seed"] == "0" and arm["params"]["trainer.steps"] == "6"
        regimes.add((arm["tags"]["regime"], arm["tags"]["curation"]))
        assert [name for name, _ in arm["datasets"]] == [f"round {n} training set" for n in range(ROUNDS + 1)]
        assert all(len(digest) >= 32 for _, digest in arm["datasets"])
        assert [name for name, _ in arm["models"]] == [f"round-{n}" for n in range(ROUNDS + 1)]
    assert regimes == {(m, c) for m in ("replace", "accumulate") for c in ("none", "random")}
    assert len({arm["datasets"][0] for arm in arms.values()}) == 1  # round 0 is one data set, and one model
    assert len({arm["models"][0] for arm in arms.values()}) == 1


def test_an_arm_shows_samples_of_its_texts(swept: tuple[Project, Path, list[str]]) -> None:
    home, sweep, _ = swept
    kept = home.root.glob("mlruns/artifacts/*/artifacts/samples")
    bare = lambda text: "".join(text.split())  # noqa: E731  the page wraps no line, so lines are wrapped there
    found = sorted([{path.name: bare(path.read_text()) for path in folder.iterdir()} for folder in kept], key=repr)
    rounds = range(ROUNDS + 1)
    said = [{f"round {n}.txt": bare(samples(folder, n, 8)) for n in rounds} for _, folder in arms_of(sweep)]
    assert found == sorted(said, key=repr) and len(found) == 4
    assert all("kept" in arm["round 1.txt"] and "real" in arm["round 0.txt"] for arm in found)
    tables = [json.loads(path.read_text()) for path in home.root.glob("mlruns/artifacts/*/artifacts/samples.json")]
    assert len(tables) == 4
    for table in tables:  # runs are compared by the first column
        assert table["columns"][:2] == ["record", "text"] and "prompt" not in table["columns"]
        named = [row[0] for row in table["data"]]
        assert named[0] == "round 1, record 1" and len(set(named)) == len(named)
        assert any(row[1] for row in table["data"])


def test_again_adds_nothing_and_a_lost_database_comes_back(swept: tuple[Project, Path, list[str]]) -> None:
    home, sweep, command = swept
    before = view(home)
    home.ok(*command)
    home.ok("report", str(sweep))
    assert view(home) == before
    shutil.rmtree(home.root / "mlruns")
    assert home.spawn("genloss", "report", str(sweep)).code == 0
    assert view(home) == before


def test_a_server_that_is_down_costs_a_warning(tmp_path: Path, tiny: list[str]) -> None:
    home = Project.make(tmp_path / "project")
    home.ok("run", *tiny, "rounds=1", "tracking=none")
    shutil.rmtree(home.root / "runs")  # the rest takes no time: what is measured is the wait for the server
    began = time.monotonic()
    result = home.call("run", *tiny, "rounds=1", "tracking=mlflow", "tracking.uri=http://127.0.0.1:9")
    assert result.code == 0
    assert "warning: MLflow is not reached" in result.err
    assert time.monotonic() - began < 20
    assert (result.folder / "rounds/01/metrics.json").is_file()
    print(result.err, time.monotonic() - began)
