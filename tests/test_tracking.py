"""MLflow tells the truth: of states, shared arms and what changed, whatever the names and wherever the project is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from mlflow import MlflowClient
from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

from genloss.core.errors import UserError
from genloss.core.hashes import sha256_text
from genloss.core.places import load_params, project_root
from genloss.evaluate import Evidence, Metric
from genloss.language import curve
from genloss.observatory.groups import band
from genloss.observatory.results import arms_of, rounds_of
from genloss.workflow import live, mlflow_run, tracking, ui
from genloss.workflow.bands import COLOUR, GROUP, KINDS
from genloss.workflow.identity import title
from genloss.workflow.sweep import true_arms
from support import Project, killed

TINY = ["domain=gaussian", "size=20", "rounds=1"]
JOB = "'hydra.job.name=\"a b\"'"  # as a shell has to be given it
ODD = {"too short (<20), 50 %": 1.0, "p@1": 2.0, "../up": 3.0, "n" * 300: 4.0, "n" * 301: 5.0}


@dataclass
class Odd(Metric):
    """Metrics with names that MLflow does not take."""

    def measure(self, evidence: Evidence) -> dict[str, float]:
        return dict(ODD)


@dataclass
class Fails(Metric):
    """Ends the process where one of its files lies: by an error, or as a kill does."""

    folder: str = ""

    def measure(self, evidence: Evidence) -> dict[str, float]:
        if (Path(self.folder) / "fail").exists():
            raise RuntimeError("it fails")
        if (Path(self.folder) / "interrupt").exists():
            raise KeyboardInterrupt
        if (Path(self.folder) / "kill").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return {}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in ("commit", "committed"):  # takes seconds, and MLflow is not asked
        monkeypatch.setattr(f"genloss.workflow.arm.{name}", lambda folder: True)
    return Project.make(tmp_path / "project")


def known(home: Project) -> MlflowClient:
    with home.here():
        return MlflowClient(tracking_uri=mlflow_run.store_uri(None))


def runs(home: Project) -> list[Any]:
    client = known(home)
    experiment = client.get_experiment_by_name("genloss")
    every = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]) if experiment else []
    return [run for run in every if GROUP not in run.data.tags]  # of sweeps and arms


def states(home: Project) -> dict[str, str]:
    return {run.data.tags.get(mlflow_run.SWEEP) or run.info.run_name: run.info.status for run in runs(home)}


def points(home: Project, run: Any) -> dict[str, list[tuple[int, float]]]:
    history = {key: known(home).get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {key: [(p.step, p.value) for p in found] for key, found in history.items()}


# -- states ------------------------------------------------------------------------------------------------------------


def test_states_are_true_at_every_moment(home: Project, tmp_path: Path) -> None:
    fails = f"+metrics.fails={{_target_: test_tracking.Fails, folder: '{tmp_path}'}}"
    command = ["run", "-m", *TINY, "mixing=replace,accumulate", fails]
    (tmp_path / "kill").touch()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            home.call(*command)
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    (tmp_path / "kill").unlink()
    sweep = next((home.root / "runs").glob("sweep-*"))
    assert states(home) == {sweep.name: "RUNNING", "replace": "RUNNING"}  # nobody was left to say more
    home.ok("run", *TINY, "tracking.experiment=other")  # shown elsewhere, and touches none of it
    home.ok("run", *TINY, "seed=7")  # the next command sees that nobody runs them
    assert states(home) == {
        sweep.name: "KILLED",
        "replace": "KILLED",
        "gaussian-replace-none-s7 rounds=1 size=20": "FINISHED",
    }

    (tmp_path / "interrupt").touch()
    assert home.call(*command).code == 130
    assert states(home)[sweep.name] == states(home)["replace"] == "KILLED"
    (tmp_path / "interrupt").rename(tmp_path / "fail")
    assert home.call(*command).code == 1
    assert states(home)[sweep.name] == states(home)["replace"] == states(home)["accumulate"] == "FAILED"
    home.call("report", str(sweep))
    arm = next((home.root / "runs").glob("gaussian-accumulate-*"))
    home.call("report", str(arm))  # which notes nothing of how it ended
    assert states(home)[sweep.name] == states(home)["accumulate"] == "FAILED"
    other = f"sqlite:///{tmp_path / 'other.db'}"  # where nothing is known yet
    with home.here():
        tracking.rebuild_all([(sweep, true_arms(sweep))], other)
    for client in (known(home), MlflowClient(tracking_uri=other)):
        found = client.search_runs(["1"], "attributes.status = 'FAILED'")
        why = {run.info.run_name: run.data.tags[mlflow_run.ERROR] for run in found}
        assert why.pop("replace") == why.pop("accumulate") == "it fails"
        assert list(why.values()) == ["replace: it fails; accumulate: it fails"]
    (tmp_path / "fail").unlink()
    home.ok(*command)
    assert set(states(home).values()) == {"FINISHED"} and len(runs(home)) == 4
    assert not [run for run in runs(home) if mlflow_run.ERROR in run.data.tags]


def test_who_runs_is_running(home: Project) -> None:
    """A sweep is not finished because its first arm is."""
    seen: list[dict[str, str]] = []

    class Watching(tracking.Tracker):
        def __enter__(self) -> tracking.Tracker:
            made = super().__enter__()
            seen.append(states(home))
            home.call("report", str(self.sweep))  # beside a run
            seen.append(states(home))
            return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "Tracker", Watching)
        sweep = home.ok("run", "-m", *TINY, "mixing=replace,accumulate").folder
    assert seen[0] == {sweep.name: "RUNNING", "replace": "RUNNING"}  # before its round 0
    assert seen[2] == seen[3] == {sweep.name: "RUNNING", "replace": "FINISHED", "accumulate": "RUNNING"}
    assert set(states(home).values()) == {"FINISHED"}
    for run in runs(home):
        assert all(len(found) == len(set(found)) for found in points(home, run).values())


def test_a_view_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    """Not even the lock of who runs; a read-only disk says the same."""
    home = Project.make(tmp_path / "project")
    (home.root / "mlruns").write_text("a file where a folder should be")
    result = home.ok("run", *TINY, "tracking=mlflow")
    assert "genloss: warning: MLflow does not take arm" in result.err and result.err.count("warning") == 1
    result = home.ok("run", "-m", *TINY, "tracking=mlflow", "seed=0,1")
    assert "genloss: warning: MLflow does not take sweep" in result.err


def test_each_sweep_shows_all_of_its_arms(home: Project) -> None:
    alone = home.ok("run", *TINY, "seed=1").folder
    first = home.ok("run", "-m", *TINY, "seed=0,1").folder
    second = home.ok("run", "-m", *TINY, "seed=1,2").folder
    parents = {
        run.data.tags[mlflow_run.SWEEP]: run.info.run_id for run in runs(home) if mlflow_run.SWEEP in run.data.tags
    }
    arms = [(run.data.tags.get("mlflow.parentRunId"), run.info.run_name) for run in runs(home)]
    assert sorted(arm for arm in arms if arm[0]) == sorted(
        [(parents[first.name], f"seed {s}") for s in (0, 1)] + [(parents[second.name], f"seed {s}") for s in (1, 2)]
    )
    shared = [run for run in runs(home) if run.data.tags.get(mlflow_run.DIR) == f"runs/{alone.name}"]
    assert len(shared) == 2 and points(home, shared[0]) == points(home, shared[1]) != {}
    before = [(run.info.run_id, run.info.status) for run in runs(home)]
    for folder in (first, second, alone):
        home.ok("report", str(folder))
    assert [(run.info.run_id, run.info.status) for run in runs(home)] == before


def test_a_finished_sweep_called_again_needs_no_client(home: Project) -> None:
    """And what MLflow has lost since, it gets again."""
    command = ("run", "-m", *TINY, "mixing=replace,accumulate")
    sweep = home.ok(*command).folder
    home.ok(*command)
    before = [(run.info.run_id, run.info.end_time) for run in runs(home)]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "held", "Tracker"):
            patch.setattr(tracking, name, None)
        assert home.ok(*command).folder == sweep
        patch.undo()
    assert [(run.info.run_id, run.info.end_time) for run in runs(home)] == before

    lost = next(run for run in runs(home) if run.info.run_name == "accumulate")
    known(home).delete_run(lost.info.run_id)
    assert "accumulate" not in states(home)
    home.ok(*command)
    assert states(home) == {sweep.name: "FINISHED", "replace": "FINISHED", "accumulate": "FINISHED"}
    for run in runs(home):  # as a kill leaves them
        known(home).update_run(run.info.run_id, status="RUNNING")
    home.ok(*command)
    assert states(home) == {sweep.name: "FINISHED", "replace": "FINISHED", "accumulate": "FINISHED"}


def test_a_what_if_is_a_run_of_its_own(home: Project) -> None:
    """It says what it came from, and stands in no sweep."""
    sweep = home.ok("run", "-m", *TINY, "mixing=replace,accumulate").folder
    arm = next(sweep.parent.glob("gaussian-replace-*"))
    before = {run.info.run_id: run.info.run_name for run in runs(home)}
    new = Path(home.ok("compose", "--dir", str(arm), "recipe.n=30").out.strip())
    for n in ("0", "1"):
        home.ok("round", n, "--dir", str(new))
    home.ok("report", str(new))
    home.ok("report", str(sweep))
    [run] = [run for run in runs(home) if run.info.run_id not in before]
    assert run.info.run_name == "gaussian-replace-none-s0 n=30 rounds=1 size=20"
    assert run.info.status == "FINISHED"
    assert run.data.tags["genloss.what_if"] == f"runs/{arm.name} recipe.n=30"
    assert run.data.tags[mlflow_run.DIR] == f"runs/{new.name}"
    assert not {"mlflow.parentRunId", mlflow_run.IN_SWEEP} & set(run.data.tags)
    assert {r.info.run_id: r.info.run_name for r in runs(home) if r.info.run_id != run.info.run_id} == before


def test_results_that_changed_replace_the_old_ones(home: Project) -> None:
    folder = home.ok("run", *TINY).folder
    [before] = runs(home)
    metrics, manifest = folder / "rounds/01/metrics.json", folder / "rounds/01/manifest.json"
    text = json.dumps(json.loads(metrics.read_text()) | {"diversity": 0.5})
    metrics.write_text(text)  # as after an edit of the code: another key, another number
    changed = json.loads(re.sub(r'"key": "\w', '"key": "x', manifest.read_text()))
    del changed["sha256"]  # as manifests of before were, which nothing seals
    for entry in changed["stages"].values():
        del entry["sha256"]
    manifest.write_text(json.dumps(changed | {"metrics": sha256_text(text)}))
    home.ok("report", str(folder))
    [after] = runs(home)
    assert after.info.run_id != before.info.run_id and after.info.run_name == before.info.run_name
    found = points(home, after)["round/diversity"]
    assert [step for step, _ in found] == [0, 1] and found[1] == (1, 0.5)
    models = known(home).search_logged_models([after.info.experiment_id])
    assert {model.source_run_id for model in models} == {after.info.run_id}
    known(home).set_tag(after.info.run_id, tracking.WRITING, "1")  # a kill in the middle of writing
    home.ok("report", str(folder))
    [again] = runs(home)
    assert again.info.run_id != after.info.run_id and points(home, again) == points(home, after)


# -- names -------------------------------------------------------------------------------------------------------------


@given(st.text(min_size=1, max_size=400))
def test_every_name_becomes_one_that_mlflow_takes(name: str) -> None:
    made = mlflow_run.safe(name)
    for kind in (_validate_metric_name, _validate_param_name, _validate_tag_name):
        kind(made)
    _validate_tag_name(mlflow_run.ORIGINAL + made)
    assert mlflow_run.safe(made) == made
    assert mlflow_run.safe(name + "(") != made


def test_odd_names_do_not_stop_a_view(home: Project) -> None:
    odd = "+metrics.odd={_target_: test_tracking.Odd}"
    place = home.root / "it's mine/a, 50 %"
    result = home.ok("run", "-m", *TINY, odd, "seed=0,1", f'hydra.sweep.dir="{place}"')
    assert "warning" not in result.err
    arms = [run for run in runs(home) if mlflow_run.ARM in run.data.tags]
    assert len(arms) == 2 and len(runs(home)) == 3 and {run.info.status for run in runs(home)} == {"FINISHED"}
    for run in arms:
        shown = {run.data.tags.get(mlflow_run.ORIGINAL + key, key): run.data.metrics[key] for key in run.data.metrics}
        assert {f"round/{name}": number for name, number in ODD.items()}.items() <= shown.items()


def test_a_deleted_experiment_is_named(home: Project) -> None:
    folder = home.ok("run", *TINY).folder
    client = known(home)
    [run] = runs(home)
    client.delete_experiment(run.info.experiment_id)
    said = home.call("report", str(folder)).err
    assert "tracking.experiment=genloss" in said and "was deleted" in said and "writes what it lacks" not in said
    client.restore_experiment(run.info.experiment_id)
    assert "warning" not in home.ok("report", str(folder)).err


# -- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my%20lab", "50 %?", "a#b"])
def test_a_project_in_an_odd_folder_that_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from genloss.observatory.report import write_report

    made = lambda f: write_report([(f.name, f)], f / "report")  # noqa: E731
    monkeypatch.setattr("genloss.workflow.arm.commit", made)
    old = Project.make(tmp_path / name)
    result = old.ok("run", *TINY)
    assert "warning" not in result.err and states(old) == {"gaussian-replace-none-s0 rounds=1 size=20": "FINISHED"}
    root = tmp_path / f"{name} moved"
    old.root.rename(root)
    home = Project(root, {"GENLOSS_PROJECT": str(root), "GENLOSS_STORE": str(root / ".genloss" / "store")})
    home.ok("run", *TINY, "seed=1")
    assert not old.root.exists() and set(states(home).values()) == {"FINISHED"}
    figures = home.root.glob("mlruns/artifacts/*/artifacts/rounds.png")
    assert {run.info.run_id for run in runs(home)} == {path.parent.parent.name for path in figures}


def test_a_view_is_rebuilt_where_one_says(home: Project, tmp_path: Path) -> None:
    folder = home.ok("run", *TINY, "tracking=none").folder
    assert not (home.root / "mlruns/mlflow.db").exists()
    other = f"sqlite:///{tmp_path / 'other.db'}"
    home.ok("report", str(folder), "--tracking-uri", other)
    client = MlflowClient(tracking_uri=other)
    experiment = client.get_experiment_by_name("genloss")
    assert experiment is not None and len(client.search_runs([experiment.experiment_id])) == 1
    home.ok("run", *TINY, f"tracking.uri={tmp_path / 'more.db'}".replace("uri=", "uri=sqlite:///"))
    assert load_params(folder / "params.yaml").tracking.enabled  # how it ran last is what `report` does
    assert (tmp_path / "more.db").is_file() and not (home.root / "mlruns/mlflow.db").exists()


def bands(home: Project) -> list[Any]:
    client = known(home)
    experiment = client.get_experiment_by_name("genloss")
    assert experiment is not None
    every = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    return [run for run in every if GROUP in run.data.tags]


def test_arms_that_differ_in_their_seed_have_a_run_of_means_and_bands(home: Project) -> None:
    """Under the names of the seeds' metrics, below their sweep; it is written once, and anew when a result changes."""
    sweep = home.ok("run", "-m", *TINY, "mixing=replace,accumulate", "seed=0,1,2").folder
    [parent] = [run for run in runs(home) if mlflow_run.SWEEP in run.data.tags]
    made = {run.info.run_name: run for run in bands(home)}
    assert set(made) == {"replace (mean of seeds)", "accumulate (mean of seeds)"}
    run = made["replace (mean of seeds)"]
    assert run.info.status == "FINISHED" and run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.params == {"mixing": "replace"} and "seeds 0 to 2." in run.data.tags[mlflow_run.NOTE]
    shown = points(home, run)
    seeds = [rounds_of(folder) for name, folder in arms_of(sweep) if name.startswith("replace ")]
    for n in (0, 1):
        expected = band([rounds[n]["diversity"] for rounds in seeds])
        assert [dict(shown[f"{kind}/diversity"])[n] for kind in KINDS] == pytest.approx(expected)
    assert len({run.data.tags[COLOUR] for run in made.values()}) == 2
    assert not [key for key in shown if key.endswith(("_floor", "_se")) or key.startswith("round/n_")]

    before = {run.info.run_id for run in bands(home)}
    home.ok("report", str(sweep))
    assert {run.info.run_id for run in bands(home)} == before
    entry = next(path for path in sweep.glob("arms/*.json") if "replace seed 2" in path.read_text())
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"state": "failed", "error": "it broke"}))
    shutil.rmtree((sweep / json.loads(entry.read_text())["dir"]).resolve() / "rounds/01")
    home.ok("report", str(sweep))
    changed = {run.info.run_name: run for run in bands(home)}
    assert len(changed) == 2 and len({run.info.run_id for run in changed.values()} & before) == 1
    failed = changed["replace (mean of seeds)"]
    assert failed.info.status == "FAILED" and "seed 2: failed after round 0 of 1: it broke" in str(failed.data.tags)
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"error": "\x1b[31mit broke\u202e twice"}))
    said = home.ok("report", str(sweep)).out  # no number has changed
    failed = {run.info.run_name: run for run in bands(home)}["replace (mean of seeds)"]
    assert "it broke\ufffd twice" in failed.data.tags[mlflow_run.NOTE] and "\x1b" not in said and "\u202e" not in said

    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"state": "finished", "error": None}))
    (sweep / "verdicts.json").write_text("{")
    with home.here(), pytest.raises(UserError, match=r"verdicts\.json: is damaged"):
        tracking.SweepView.of(sweep, load_params(arms_of(sweep)[0][1] / "params.yaml")).end()
    assert known(home).get_run(parent.info.run_id).info.status == "FINISHED"


# -- pages -------------------------------------------------------------------------------------------------------------


def test_what_pages_show(home: Project) -> None:
    home.root.joinpath("note").write_text("a")
    home.git("init", "-q")
    home.git("add", "note")
    home.git("commit", "-qm", "project")
    command = ["run", "-m", *TINY, "mixing=replace,accumulate", "seed=0,1", *shlex.split(JOB)]
    sweep = home.ok(*command).folder
    [parent] = [run for run in runs(home) if mlflow_run.SWEEP in run.data.tags]
    swept = "domain=gaussian size=20 rounds=1 mixing=replace,accumulate seed=0,1"
    said = f"genloss run -m {swept} {JOB}"
    assert parent.data.tags["genloss.command"] == said  # to be pasted into a shell
    assert parent.info.run_name == f"{swept} ({sweep.name})"
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith(f"`` {said} ``\n") and "| replace | 2 |" in note
    row = "| replace |" + 60 * " 1 |"
    whole = (sweep / "report.md").read_text()
    (sweep / "report.md").write_text("\n".join([row] * 100))
    with home.here():
        long = tracking.description(sweep)["mlflow.note.content"]
    assert 5700 < len(long) <= 6000 and long.endswith(tracking.CUT)
    assert long.removesuffix(tracking.CUT).endswith(f"\n{row}")
    (sweep / "report.md").write_text(whole)
    kept = home.root / "mlruns/artifacts" / parent.info.run_id / "artifacts"
    names = {"report.html", "report.md", "rounds.csv", "rounds.png", "rounds.svg", "verdicts.json"}
    assert {path.name for path in kept.iterdir()} == names
    head = home.spawn("git", "rev-parse", "HEAD").out.strip()
    for run in runs(home):
        assert run.data.tags["mlflow.source.git.commit"] == head
    arms = {run.info.run_name: run for run in runs(home) if run is not parent and mlflow_run.ARM in run.data.tags}
    arm = arms["accumulate seed 1"]
    options = {key: arm.data.params[key] for key in ("mixing", "curation", "domain", "seed")}
    assert options == {"mixing": "accumulate", "curation": "none", "domain": "gaussian", "seed": "1"}
    assert arm.data.tags["mlflow.source.name"] == arm.data.tags[mlflow_run.DIR]  # without one, no commit is shown
    assert not {"{}", "[]"} & set(arm.data.params.values())
    assert "domain._target_" in arm.data.params and "domain.name" not in arm.data.params  # `domain` says that one
    shown = [key for run in runs(home) for key in run.data.tags if not key.startswith("mlflow.")]
    assert not [key for key in shown if "writing" in key or "round" in key]  # notes of ours, not for readers
    [first, second] = sorted(
        known(home).search_logged_models(
            [arm.info.experiment_id], filter_string=f"source_run_id = '{arm.info.run_id}'"
        ),
        key=lambda model: model.name,
    )
    sets = {d.dataset.name: {t.key: t.value for t in d.tags} for d in arm.inputs.dataset_inputs}
    assert sets["round 1 training set"]["genloss.model"] == second.name == "round-1"
    assert second.tags["genloss.dataset"].startswith("round 1 training set ")
    inputs = known(home).get_run(arm.info.run_id).inputs
    assert inputs and first.model_id in {model.model_id for model in inputs.model_inputs}  # made what round 1 read
    with home.here():
        cfg = load_params(next(sweep.parent.glob("gaussian-accumulate-none-s1-*")) / "params.yaml")
        assert title(cfg) == "gaussian-accumulate-none-s1 rounds=1 size=20"


def test_ui_before_the_first_run(tmp_path: Path) -> None:
    """Both make the database; and the page that is named is that of the experiment's runs."""
    home = Project.make(tmp_path / "project")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.listen()
        taken = home.call("ui", "--port", port)
        assert taken.code == 2 and taken.err.startswith(f"genloss: --port={port}: cannot be used on 127.0.0.1")
    with server(home, "ui", "--port", port) as lines:
        result = home.spawn("genloss", "run", "-m", *TINY, "mixing=replace,accumulate", "seed=0,1")
        assert result.code == 0 and "warning" not in result.err, result.err
        page = next(line.split("open: ")[1].strip() for line in lines if "open: " in line)
        assert re.fullmatch(rf"http://127.0.0.1:{port}/#/experiments/\d+/runs\?workflowType=machine_learning", page)
        run = next(run for run in runs(home) if mlflow_run.SWEEP in run.data.tags)
        ask = f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/artifacts/list?run_id={run.info.run_id}"
        with urllib.request.urlopen(ask, timeout=60) as answer:
            assert {"report.md", "rounds.png"} <= {file["path"] for file in json.load(answer)["files"]}
        there = f"http://127.0.0.1:{port}"
        said = home.ok("ui", f"runs/{run.data.tags[mlflow_run.SWEEP]}", "--tracking-uri", there).out.strip()
        assert said == f"open: {page}&viewStateShareKey={run.data.tags[mlflow_run.SWEEP]}&compareRunsMode=CHART"
    assert set(states(home).values()) == {"FINISHED"}
    sweep = next((home.root / "runs").glob("sweep-*"))
    with pytest.MonkeyPatch.context() as patch:
        executed: list[list[str]] = []
        patch.setattr("os.execv", lambda path, command: executed.append(command))
        patch.setattr("os.fork", lambda: 1)
        home.call("ui", str(sweep))
    assert "--artifacts-destination" in executed[0]
    tags = known(home).get_experiment(run.info.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(tags[f"mlflow.sharedViewState.{sweep.name}"])
    assert view["searchFilter"] == f"tags.`genloss.in_sweep` = '{sweep.name}'"
    assert view["selectedColumns"][:2] == ["metrics.`round/diversity`", "params.`mixing`"]
    headline = view["compareRunCharts"][0]
    assert headline["metricKey"] == "round/diversity" and headline["metricSectionId"] == "main"
    assert view["compareRunSections"][0]["uuid"] == "main"
    assert view["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "mixing"}]
    assert len(known(home).search_runs([run.info.experiment_id], view["searchFilter"])) == 4
    with pytest.MonkeyPatch.context() as patch:  # of more arms than a page loads: the means of all seeds
        patch.setattr("os.execv", lambda *_: None)
        patch.setattr("os.fork", lambda: 1)
        patch.setattr(ui, "LOADED", 3)
        home.call("ui", str(sweep))
    view = json.loads(known(home).get_experiment(run.info.experiment_id).tags[f"mlflow.sharedViewState.{sweep.name}"])
    means = known(home).search_runs([run.info.experiment_id], view["searchFilter"])
    assert {r.info.run_name for r in means} == {"replace (mean of seeds)", "accumulate (mean of seeds)"}
    assert view["selectedColumns"][1] == "params.`mixing`" and "groupBy" not in view
    drawn = view["compareRunCharts"][0]["selectedMetricKeys"]
    assert means[0].data.params.keys() == {"mixing"}
    assert drawn == [f"{kind}/diversity" for kind in KINDS] and set(drawn) <= set(means[0].data.metrics)


def test_ui_opens_where_the_view_is(home: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one says; else where the runs are; else where conf/ says."""
    executed: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, command: executed.append(command))
    monkeypatch.setattr("os.fork", lambda: 1)
    arm = home.ok("run", *TINY, "tracking.uri=sqlite:///of runs.db").folder
    conf = home.root / "conf/tracking/mlflow.yaml"
    conf.write_text(conf.read_text().replace("uri: null", "uri: sqlite:///of conf.db"))
    said = f"sqlite:///{tmp_path / 'said.db'}"
    for arguments in ([], [str(arm)], ["--tracking-uri", said], [str(arm), "--tracking-uri", said]):
        home.ok("ui", *arguments)
    opened = [command[command.index("--backend-store-uri") + 1] for command in executed]
    here = f"sqlite:///{home.root}"
    assert opened == [f"{here}/of%20conf.db", f"{here}/of%20runs.db", said, said]
    assert not (home.root / "mlruns/mlflow.db").exists()


@contextlib.contextmanager
def server(home: Project, *arguments: str) -> Iterator[Iterator[str]]:
    """A command that goes on until it is left; yields the lines that it prints."""
    command = [sys.executable, "-m", "genloss", *arguments]
    process = subprocess.Popen(
        command,
        cwd=home.root,
        env=home.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield iter(process.stdout.readline, "")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


# -- while a round trains ----------------------------------------------------------------------------------------------


class Looks(Callback):
    """At a step: waits until MLflow shows what was before it, or `spoils` its database; then perhaps dies."""

    def __init__(self, step: int, folder: str, spoils: bool = False):
        self.step, self.folder, self.spoils = step, Path(folder), spoils

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step != self.step:
            return
        file = project_root() / "mlruns" / "mlflow.db"
        if self.spoils:
            with sqlite3.connect(file) as database:
                database.execute("DROP TABLE IF EXISTS metrics")
            time.sleep(1)  # the follower looks meanwhile
            return
        for _look in range(300):
            with sqlite3.connect(file) as database:
                seen = dict(database.execute("SELECT key, max(step) FROM metrics GROUP BY key").fetchall())
            if seen.get("train/loss", 0) >= self.step - 5:
                break
            time.sleep(0.1)
            module.live.write(module.shown)
        (self.folder / "seen.json").write_text(json.dumps(seen))
        if (self.folder / "kill").exists():
            os.kill(os.getpid(), signal.SIGKILL)


def looking(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[str]:
    monkeypatch.setattr(live, "EVERY", 0.1)
    monkeypatch.setattr(curve, "EVERY", 0.05)
    return ["run", *overrides, "tracking=mlflow", "rounds=1", "trainer.steps=40", "trainer.validate_every=10"]


def test_a_curve_grows_while_a_round_trains(
    home: Project, tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In MLflow, with the machine beside it; after a kill in the middle each point is there once."""
    look = f"+trainer.callbacks={{look: {{_target_: test_tracking.Looks, step: 30, folder: '{tmp_path}'}}}}"
    command = looking(monkeypatch, *tiny, look, "trainer.checkpoint_minutes=1e-9")
    (tmp_path / "kill").touch()
    assert killed(lambda: home.call(*command))
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["train/loss"] >= 25 and seen["train/validation_loss"] == 20
    assert "system/cpu_utilization_percentage" in seen and "round/n_samples" not in seen
    (tmp_path / "kill").unlink()
    arm = home.ok(*command).folder
    (run,) = runs(home)
    found = points(home, run)
    for name in ("loss", "lr", "validation_loss"):
        steps = [step for step, _ in found[f"train/{name}"]]
        assert len(steps) == len(set(steps)) and max(steps) == 80
    assert list(home.root.rglob("*.db")) == [home.root / "mlruns/mlflow.db"]
    wanted: dict[tuple[str, int], float] = {}
    for n in (0, 1):
        manifest = json.loads((arm / f"rounds/{n:02d}/manifest.json").read_text())
        rows = tracking.curve_of(arm / f"rounds/{n:02d}", manifest)
        wanted |= {(f"train/{name}", 40 * n + step): value for step, name, value in rows}
    assert {(k, step): x for k, pairs in found.items() if k.startswith("train/") for step, x in pairs} == wanted


def test_a_database_that_breaks_stops_no_training(
    home: Project, tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = f"+trainer.callbacks={{l: {{_target_: test_tracking.Looks, step: 5, folder: '{tmp_path}', spoils: true}}}}"
    done = home.ok(*looking(monkeypatch, *tiny, look))
    assert done.err.count("genloss: warning: MLflow does not take") == 1
    assert (done.folder / "rounds/01/metrics.json").is_file()
