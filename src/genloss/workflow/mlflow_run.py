"""Where MLflow is, what names and values it takes, and one run of it.

client, experiment = connect(store_uri(cfg.tracking.uri), cfg.tracking.experiment)
with alone(client.tracking_uri):                      one process of the project writes at a time
    Run(client, experiment, found(client, experiment, ARM, name)[0]).state("FINISHED")
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from genloss.core.errors import UserError, one_line
from genloss.core.files import link, locked, sweep
from genloss.core.hashes import sha256_text
from genloss.core.places import in_project, project_root

SQLITE = "sqlite:///"
ARM, SWEEP, IN_SWEEP, DIR = "genloss.arm", "genloss.sweep", "genloss.in_sweep", "genloss.dir"
ERROR = "genloss.error"  # why a run is FAILED
ORIGINAL = "genloss.name."  # + a name that MLflow takes: the one that it stands for
NOTE = "mlflow.note.content"
PROJECT = "genloss.project"  # host and folder of the project that writes a run
MOST = 50_000  # runs that a server gives at once; without a number it leaves out all after the first 1000
BATCH = 900  # metrics a request; the server's limit is 1000
KEY, VALUE = 250, 6000  # characters of a name and of a value that MLflow takes


# -- where MLflow is -----------------------------------------------------------------------------------------------


def store_uri(uri: str | None) -> str:
    """The tracking address: the config's, else mlruns/mlflow.db of the project. A file is absolute, since DVC runs
    stages elsewhere, and quoted, since the address is a URL."""
    if uri and uri.startswith("file:") and not uri.startswith("file:/"):
        return in_project(uri.removeprefix("file:"), "tracking.uri").as_uri()
    if uri and not uri.startswith(SQLITE):
        return uri
    named = unquote((uri or "").removeprefix(SQLITE)) or "mlruns/mlflow.db"
    return f"{SQLITE}{quote(str(in_project(named, 'tracking.uri')))}"


def database(uri: str) -> Path | None:
    """The file of a SQLite address; None of another one."""
    return Path(unquote(uri.removeprefix(SQLITE))) if uri.startswith(SQLITE) else None


def artifacts(uri: str) -> Path | None:
    """The folder of a SQLite database's artifacts: beside it, so that they move together; None of another address."""
    file = database(uri)
    return file and file.parent / "artifacts"


@contextlib.contextmanager
def quiet_mlflow() -> Iterator[None]:
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # it logs errors of a database with their tracebacks, and raises them too
    logging.getLogger("alembic").setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def alone(uri: str) -> Iterator[None]:
    """Only one process at a time: of those that write a database, or of the project's where a server does. MLflow looks
    whether a thing exists and then makes it: two arms that log the data set of their common round 0 together fail on
    its unique name."""
    file = database(uri) or project_root() / "mlruns" / "server"
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.parent / ".lock"):
        yield


def connect(uri: str, experiment: str) -> tuple[Any, str]:
    """(MlflowClient, experiment id). Creates the database and the experiment if they are not there, one process at a
    time: two that migrate a fresh SQLite database together leave it broken."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    with quiet_mlflow(), alone(uri):
        from mlflow import MlflowClient

        file = database(uri)
        if file:
            _create(file)
        made = MlflowClient(tracking_uri=uri)
        there = made.get_experiment_by_name(experiment)
        if there is None:
            # an address without a place: the artifacts are where `genloss ui` says, beside the database
            place = "mlflow-artifacts:/" if file else None
            tags = {"mlflow.experimentKind": "custom_model_development"}  # its pages are those of model training
            return made, made.create_experiment(experiment, artifact_location=place, tags=tags)
        if there.lifecycle_stage == "deleted":
            restore = f"mlflow experiments restore --experiment-id {there.experiment_id}"
            remedy = f"was deleted in MLflow; choose another, or MLFLOW_TRACKING_URI='{uri}' {restore}"
            raise UserError("tracking.experiment", experiment, remedy)
        return made, there.experiment_id


def _create(file: Path) -> None:
    """Make a SQLite database aside and rename it: one whose creation was killed is broken for good."""
    if file.is_file():
        return
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.new")
    for left in file.parent.glob(f"{aside.name}*"):  # its journal too, which SQLite would play into the new one
        left.unlink()
    MlflowClient(tracking_uri=f"{SQLITE}{quote(str(aside))}").search_experiments(max_results=1)
    os.replace(aside, file)


DAMAGED = ("database disk image is malformed", "file is not a database")  # SQLite's words


def attempt(what: str, action: Callable[[], Any]) -> Any:
    """Do something with MLflow; what goes wrong there becomes one warning line, and None."""
    try:
        return action()
    except Exception as error:  # a view must not stop the work
        text = one_line(error)[:300]
        if any(word in str(error) for word in ("Max retries exceeded", "Connection", "timed out", "Timeout")):
            said = f"is not reached ({text}); when it is there again, `genloss report DIR` writes what it lacks"
        elif any(word in str(error) for word in DAMAGED):
            said = f"does not take {what}: its database is damaged; delete it, and `genloss report DIR` writes it anew"
        else:
            said = f"does not take {what} ({text})"
        print(f"genloss: warning: MLflow {said}", file=sys.stderr)
        return None


# -- what MLflow takes ---------------------------------------------------------------------------------------------


def here() -> str:
    return f"{socket.gethostname()}:{project_root()}"


def place(folder: Path) -> str:
    """A folder as MLflow's tags have it: relative to the project, which may move."""
    return os.path.relpath(folder, project_root())


def sweep_id(folder: Path) -> str:
    return safe(folder.name if folder.parent == project_root() / "runs" else place(folder))


def safe(name: str) -> str:
    """A name that MLflow takes: letters, digits and `_-. /:`, no path upwards, at most 250 characters. What had to be
    changed ends in a hash, so that two names stay two."""
    kept = "".join(c if (c.isascii() and c.isalnum()) or c in "_-. /:" else "_" for c in name)
    kept = "/".join(part for part in kept.split("/") if part not in ("", ".", ".."))
    if kept == name and len(ORIGINAL + name) <= KEY:
        return name
    end = f"-{sha256_text(name)[:8]}"
    return kept[: KEY - len(end) - len(ORIGINAL)] + end


def value(text: Any) -> str:
    return str(text)[:VALUE]


# -- runs of MLflow ------------------------------------------------------------------------------------------------


class Run:
    """A run of MLflow."""

    def __init__(self, client: Any, experiment: str, run: Any):
        self.client, self.experiment, self.run = client, experiment, run

    @property
    def run_id(self) -> str:
        return str(self.run.info.run_id)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags, those that differ alone."""
        from mlflow.entities import RunTag

        known = self.run.data.tags
        new = [RunTag(k, value(v)) for k, v in tags.items() if known.get(k) != value(v)]
        for at in range(0, len(new), 100):
            self.client.log_batch(self.run_id, tags=new[at : at + 100])
        known |= {tag.key: tag.value for tag in new}

    def retag(self, prefix: str, tags: Mapping[str, str]) -> None:
        """Set tags, and delete others that begin with `prefix`."""
        for name in [name for name in self.run.data.tags if name.startswith(prefix) and name not in tags]:
            self.client.delete_tag(self.run_id, name)
            del self.run.data.tags[name]
        self.tag(tags)

    def numbers(self, numbers: Mapping[str, float | None]) -> None:
        """Log metrics of no round, those that differ alone. None: there is no such number, or no more; MLflow deletes
        none, and has nan in the place of one that it had."""
        from mlflow.entities import Metric

        known, now = self.run.data.metrics, int(time.time() * 1000)
        there = {k: math.nan if v is None else v for k, v in numbers.items() if v is not None or k in known}
        new = [Metric(k, v, now, 0) for k, v in there.items() if repr(known.get(k)) != repr(float(v))]
        if new:
            self.client.log_batch(self.run_id, metrics=new)

    def state(self, state: str, why: str = "") -> None:
        """RUNNING, or how it ended, and why if it failed; the time of its end stays where the state does."""
        if self.run.info.status == state:
            return
        if why:
            self.tag({ERROR: why})
        elif ERROR in self.run.data.tags:
            self.client.delete_tag(self.run_id, ERROR)
        with quiet_mlflow():
            if state == "RUNNING":
                self.client.update_run(self.run_id, status=state)
            else:
                self.client.set_terminated(self.run_id, state)
        self.run = self.client.get_run(self.run_id)

    def attach(self, path: Path, folder: str = "") -> None:
        """Put a file among the run's artifacts."""
        uri = self.run.info.artifact_uri
        local = artifacts(self.client.tracking_uri)
        if local and uri.startswith("mlflow-artifacts:/"):
            home = local / unquote(uri.removeprefix("mlflow-artifacts:")).strip("/") / folder
            link(path, home / path.name)
            sweep(home)
        else:
            self.client.log_artifact(self.run_id, str(path), folder or None)

    def text(self, text: str, name: str, folder: str = "") -> None:
        """Put a text among the run's artifacts, as a file."""
        with tempfile.TemporaryDirectory(prefix="genloss-") as made:
            path = Path(made) / name
            path.write_text(text, encoding="utf-8")
            self.attach(path, folder)

    def image(self, png: bytes, name: str, step: int, when: int) -> None:
        """What MLflow's `log_image` writes: its page shows the images of one name by their steps. when: in ms."""
        from PIL import Image

        with tempfile.TemporaryDirectory(prefix="genloss-") as made:
            path = (
                Path(made)
                / f"{name}+step+{step}+timestamp+{when}+{uuid.uuid5(uuid.NAMESPACE_OID, f'{name} {step}')}.png"
            )
            path.write_bytes(png)
            small = path.with_name(f"{path.stem}+compressed.webp")
            with Image.open(path) as image:
                image.thumbnail((512, 512))
                image.save(small, lossless=True)
            for each in (path, small):
                self.attach(each, "images")
        self.tag({"mlflow.loggedImages": "True"})

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], name: str) -> None:
        """What MLflow's `log_table` writes, which itself finds no artifacts beside a database: a JSON file, and a tag
        that says so."""
        self.text(json.dumps({"columns": list(columns), "data": [list(row) for row in rows]}), name)
        self.tag({"mlflow.loggedArtifacts": json.dumps([{"path": name, "type": "table"}])})


def found(client: Any, experiment: str, tag: str, name: str) -> list[Any]:
    """The runs with a tag, the oldest first."""
    with quiet_mlflow():
        asked = f"tags.`{tag}` = '{name}'"
        return list(client.search_runs([experiment], asked, max_results=MOST, order_by=["attributes.start_time"]))
