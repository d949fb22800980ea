"""MLflow: a view of the run directories, sweep → arm, with round as the x-axis.

An arm's metrics are `round/NAME` with step = round, so that the compare page is right with no clicks; its training
curves are `train/NAME` over all steps of all rounds. Every round's training set is logged as a data set with its
digest, every model as an external model. Everything is written from files, in batches, and twice is the same as once:
`genloss report DIR` rebuilds what is missing. A server that is down costs a warning, never a run."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from genloss.core.hashes import tree_hash
from genloss.core.places import in_project, is_project, load_params, project_root, without_secrets
from genloss.core.plugin import flatten
from genloss.core.rundir import round_name
from genloss.observatory.results import arms_of, metrics_of, rounds_of
from genloss.workflow.identity import arm_id, arm_identity, label

SQLITE = "sqlite:///"
ARM, SWEEP_TAG = "genloss.arm", "genloss.sweep"
BATCH = 900  # metrics a request; the server's limit is 1000
PAUSE = 2.0  # seconds between requests of an arm


def store_uri(uri: str | None) -> str:
    """The tracking address: the config's, else mlruns/mlflow.db of the project. A file is absolute: DVC runs stages
    elsewhere."""
    if uri and uri.startswith(SQLITE):
        return f"{SQLITE}{in_project(uri.removeprefix(SQLITE), 'tracking.uri')}"
    if uri:
        return uri
    folder = project_root() / "mlruns"
    folder.mkdir(parents=True, exist_ok=True)
    return f"{SQLITE}{folder / 'mlflow.db'}"


@contextlib.contextmanager
def quiet_mlflow() -> Iterator[None]:
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Only one process of the project at a time. MLflow looks whether a thing exists and then makes it: two arms that
    log the data set of their common round 0 together fail on its unique name."""
    lock = project_root() / "mlruns" / ".lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def client(cfg: DictConfig) -> tuple[Any, str]:
    """(MlflowClient, experiment id). Creates the database and the experiment if they are not there, one process at a
    time: two that migrate a fresh SQLite database together leave it broken."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    uri = store_uri(cfg.tracking.uri)
    with quiet_mlflow(), alone():
        from mlflow import MlflowClient

        if uri.startswith(SQLITE):
            _create(Path(uri.removeprefix(SQLITE)))
        made = MlflowClient(tracking_uri=uri)
        name = cfg.tracking.experiment
        experiment = made.get_experiment_by_name(name)
        if experiment is not None:
            return made, experiment.experiment_id
        place = (project_root() / "mlruns" / "artifacts").as_uri() if uri.startswith("sqlite:") else None
        return made, made.create_experiment(name, artifact_location=place)


def _create(database: Path) -> None:
    """Make a SQLite database aside and rename it: one whose creation was killed is broken for good."""
    if database.is_file():
        return
    from mlflow import MlflowClient

    aside = database.with_name(f".{database.name}.new")
    for left in database.parent.glob(f"{aside.name}*"):  # its journal too, which SQLite would play into the new one
        left.unlink()
    MlflowClient(tracking_uri=f"sqlite:///{aside}").search_experiments(max_results=1)
    os.replace(aside, database)


def prepare(cfg: DictConfig) -> None:
    """Create the store before parallel jobs start."""
    if cfg.tracking.enabled:
        attempt(lambda: client(cfg))


def attempt(action: Any) -> Any:
    """Do something with MLflow; what goes wrong there becomes one warning line."""
    try:
        return action()
    except Exception as error:  # a view must not stop the work
        first = without_secrets(" ".join(str(error).split()))[:200]
        print(
            f"genloss: warning: MLflow is not reached ({first}); `genloss report DIR` rebuilds the view",
            file=sys.stderr,
        )
        return None


class Tracker:
    """Logs an arm's rounds as they finish. After the first failure it leaves the rest to the next rebuild."""

    def __init__(self, folder: Path, cfg: DictConfig, sweep: Path | None):
        self.folder, self.cfg, self.sweep = folder, cfg, sweep
        self.enabled = bool(cfg.tracking.enabled)
        self.view: View | None = None
        self.waiting: list[int] = []
        self.last = -PAUSE  # when rounds were logged; the first one is at once

    def round(self, n: int) -> None:
        """Log round n, or put it off: rounds of milliseconds are logged together. What a kill leaves out the next run
        logs."""
        self.waiting.append(n)
        if time.monotonic() - self.last > PAUSE:
            self._flush()

    def _flush(self) -> None:
        if not self.enabled or not self.waiting:
            return
        if self.view is None:
            self.view = attempt(lambda: View(self.folder, self.cfg, self.sweep))
        if self.view is None or attempt(self._log) is None:
            self.enabled = False
        self.waiting, self.last = [], time.monotonic()

    def _log(self) -> bool:
        assert self.view is not None
        with alone():
            self.view.rounds(self.waiting)
        return True

    def finish(self) -> None:
        self._flush()
        if self.enabled and self.view is not None:
            attempt(self.view.finish)


def rebuild(folder: Path, cfg: DictConfig, sweep: Path | None = None) -> None:
    """Write everything that MLflow lacks of a run directory."""
    tracker = Tracker(folder, cfg, sweep)
    for n in rounds_of(folder):
        tracker.round(n)
    tracker.finish()


def rebuild_all(folders: Sequence[Path]) -> None:
    """Write everything that MLflow lacks of run directories and sweeps; outside of any project there is no view."""
    if not is_project(project_root()):
        print("genloss: no project is here or above the run; MLflow's view is not rebuilt", file=sys.stderr)
        return
    for folder in folders:
        sweep = folder.resolve() if (folder / "sweep.json").is_file() else None
        for _, arm in arms_of(folder):
            if not (arm / "params.yaml").is_file():  # of an interrupted sweep, not begun
                continue
            rebuild(arm, load_params(arm / "params.yaml"), sweep)


class View:
    """The MLflow run of one arm: found by its tag, or made, below the run of its sweep."""

    def __init__(self, folder: Path, cfg: DictConfig, sweep: Path | None):
        self.folder, self.cfg = folder, cfg
        self.client, self.experiment = client(cfg)
        tags = {
            "genloss.dir": os.path.relpath(folder, project_root()),
            "regime": cfg.mixing.name,
            "curation": "+".join(str(k) for k in cfg.curation) or "none",
            "control": cfg.control,
            "recipe": cfg.recipe.name,
            "domain": cfg.domain.name,
        }
        if os.environ.get("DVC_EXP_NAME"):
            tags["dvc.experiment"] = os.environ["DVC_EXP_NAME"]
        if sweep is not None:
            tags["mlflow.parentRunId"] = self._run(
                SWEEP_TAG, sweep.name, sweep.name, {"genloss.dir": os.path.relpath(sweep, project_root())}
            )
            tags["genloss.in_sweep"] = sweep.name
        self.run_id = self._run(ARM, arm_id(cfg), label(cfg), tags)
        self._parameters()
        known = self.client.get_run(self.run_id)
        self.logged = {
            int(k.removeprefix("genloss.round.")): v
            for k, v in known.data.tags.items()
            if k.startswith("genloss.round.")
        }
        self.models = {model.name: model.model_id for model in self._models()}
        self.linked = {output.model_id for output in known.outputs.model_outputs} if known.outputs else set()

    def _run(self, tag: str, value: str, name: str, tags: dict[str, str]) -> str:
        where = f"tags.`{tag}` = '{value}'"
        with quiet_mlflow(), alone():  # two arms of one sweep make its run once
            found = self.client.search_runs([self.experiment], where, max_results=1)
            if not found:
                return self.client.create_run(self.experiment, run_name=name, tags={tag: value, **tags}).info.run_id
        run = found[0]
        for key, text in tags.items():
            if run.data.tags.get(key) != text:
                self.client.set_tag(run.info.run_id, key, text)
        return run.info.run_id

    def _models(self) -> list[Any]:
        where, found, token = f"source_run_id = '{self.run_id}'", [], None
        while True:
            page = self.client.search_logged_models([self.experiment], filter_string=where, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _parameters(self) -> None:
        from mlflow.entities import Param

        have = self.client.get_run(self.run_id).data.params
        flat = [(k, v) for k, v in flatten(arm_identity(self.cfg)) if k not in have]
        params = [Param(k, str(v)[:6000]) for k, v in flat]
        for at in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[at : at + 100])

    def rounds(self, numbers: Sequence[int]) -> None:
        """Log rounds: their metrics, training curves, data sets and models; nothing of a round if that was done."""
        from mlflow.entities import LoggedModelOutput, Metric, RunTag

        points, inputs, outputs, marks = [], [], [], {}
        with quiet_mlflow():
            for n in numbers:
                folder = self.folder / "rounds" / round_name(n)
                manifest = json.loads((folder / "manifest.json").read_text())
                mark = tree_hash({name: stage["key"] for name, stage in manifest["stages"].items()})[:16]
                if self.logged.get(n) == mark:
                    continue
                metrics = metrics_of(folder)
                now = int(folder.joinpath("metrics.json").stat().st_mtime * 1000)
                points += [Metric(f"round/{k}", v, now, n) for k, v in metrics.items()]
                points += self._curve(folder / "training.csv", n, now, manifest)
                data = self._dataset(folder, n, manifest)
                inputs.append(data)
                model = self._model(folder, n, manifest, data.dataset.digest)
                outputs += [] if model in self.linked else [LoggedModelOutput(model, n)]
                marks[n] = mark
            for at in range(0, len(points), BATCH):
                self.client.log_batch(self.run_id, metrics=points[at : at + BATCH])
            if inputs:
                self.client.log_inputs(self.run_id, datasets=inputs)
            if outputs:
                self.client.log_outputs(self.run_id, models=outputs)
            if marks:  # last: what a kill interrupts is logged again
                self.client.log_batch(self.run_id, tags=[RunTag(f"genloss.round.{n}", m) for n, m in marks.items()])
        self.logged |= marks
        self.linked |= {output.model_id for output in outputs}

    def _curve(self, path: Path, n: int, now: int, manifest: dict[str, Any]) -> list[Any]:
        from mlflow.entities import Metric

        if not path.is_file():
            return []
        steps = int(manifest["stages"]["train"]["result"].get("steps", 0))
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        thin = max(1, steps // 50)  # fifty points a round are enough to look at; the file has them all
        return [
            Metric(f"train/{key}", float(row[key]), now, n * steps + int(row["step"]))
            for i, row in enumerate(rows)
            for key in ("loss", "lr", "validation_loss", "reward", "kl")
            if row.get(key) and (key == "validation_loss" or i % thin == 0)
        ]

    def _dataset(self, folder: Path, n: int, manifest: dict[str, Any]) -> Any:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        mixed = manifest["stages"]["mix"]
        where = os.path.relpath(folder, project_root())
        dataset = Dataset(
            name=f"round {n} training set",
            digest=tree_hash(mixed["files"])[:36],
            source_type="local",
            source=json.dumps({"uri": f"{where}/train"}),
            profile=json.dumps({"shards": mixed["result"]["shards"]})[:16_000_000],
        )
        return DatasetInput(dataset, [InputTag("mlflow.data.context", "training"), InputTag("genloss.round", str(n))])

    def _model(self, folder: Path, n: int, manifest: dict[str, Any], digest: str) -> str:
        """The id of the model of round n, made now if no earlier run made it."""
        from mlflow.entities import LoggedModelStatus

        name = f"round-{n}"
        if name in self.models:
            return self.models[name]
        model = self.client.create_logged_model(
            self.experiment,
            name=name,
            source_run_id=self.run_id,
            model_type="external",
            tags={
                "mlflow.model.isExternal": "true",
                "genloss.path": f"{os.path.relpath(folder, project_root())}/model",
                "genloss.sha256": tree_hash(manifest["stages"]["train"]["files"]),
                "genloss.round": str(n),
                "genloss.dataset": digest,
            },
        )
        self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        self.models[name] = model.model_id
        return str(model.model_id)

    def finish(self) -> None:
        with quiet_mlflow():
            figure = self.folder / "report" / "rounds.png"
            if figure.is_file():
                self.client.log_artifact(self.run_id, str(figure))
            self.client.set_terminated(self.run_id)
            parent = self.client.get_run(self.run_id).data.tags.get("mlflow.parentRunId")
            if parent:
                self.client.set_terminated(parent)
