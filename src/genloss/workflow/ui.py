"""`genloss ui`: MLflow's server on the project's database, and the address of the page to look at.

genloss ui                         # the runs of the experiment
genloss ui runs/sweep-1234abcd     # the arms of a sweep, its headline metric first, seeds averaged
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig

from genloss.core.errors import UserError, one_line
from genloss.core.places import load_params
from genloss.observatory.results import shown
from genloss.workflow.bands import GROUP, KINDS, named
from genloss.workflow.compose import compose
from genloss.workflow.identity import arm_id, varied
from genloss.workflow.mlflow_run import ARM, IN_SWEEP, artifacts, connect, store_uri, sweep_id
from genloss.workflow.sweep import true_arms
from genloss.workflow.tracking import mark_killed

LOADED = 100  # runs that MLflow's page asks for; of more, its means are of those that came first
WAIT = 600  # seconds for which the server may take to answer


def ui(folder: Path | None, uri: str | None, host: str, port: int) -> int:
    """Start MLflow's server, unless the tracking address is one, and say which page to open."""
    paths = [arm / "params.yaml" for _, arm in true_arms(folder.resolve())] if folder else []
    params = [path for path in paths if path.is_file()]  # of the arms that have begun
    configs = [load_params(path) for path in params]
    tracking = (configs[0] if configs else compose()).tracking
    address = store_uri(uri or tracking.uri)
    try:  # as a run does, under its lock: two that make one database leave it broken
        client, experiment = connect(address, tracking.experiment)
        mark_killed(client, experiment, address)
        key = _view(client, experiment, folder.resolve(), configs, shown(params[0])) if folder and params else None
    except UserError:
        raise
    except Exception as error:  # of a server, a driver, a file
        raise UserError("tracking.uri", address, f"MLflow does not answer ({one_line(error)[:200]})") from None
    page = f"/#/experiments/{experiment}/runs?workflowType=machine_learning"
    page += f"&viewStateShareKey={quote(key)}&compareRunsMode=CHART" if key else ""
    if address.startswith(("http://", "https://")):
        _open(address.rstrip("/") + page)
        return 0
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError("--port", port, f"cannot be used on {host} ({error.strerror}); choose another") from None
    # one process: MLflow's default, four and as many that wait for jobs of its GenAI side, takes half a minute and 2 GB
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = ["mlflow", "ui", "--backend-store-uri", address, "--host", host, "--port", str(port), "--workers", "1"]
    if local := artifacts(address):
        local.mkdir(parents=True, exist_ok=True)
        command += ["--artifacts-destination", local.as_uri()]
    if os.fork() == 0:  # says where to look once there is something to see; the server keeps this process
        try:
            if _answers(host, port):
                _open(f"http://{host}:{port}{page}")
        finally:
            os._exit(0)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", *command])


def _answers(host: str, port: int) -> bool:
    parent, end = os.getppid(), time.monotonic() + WAIT
    while time.monotonic() < end and os.getppid() == parent:
        try:
            with socket.create_connection((host, port), timeout=1):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def _open(address: str) -> None:
    print(f"\nopen: {address}\n", flush=True)
    if sys.stdout.isatty() and (sys.platform == "darwin" or os.environ.get("DISPLAY")):
        webbrowser.open(address)


def _view(client: Any, experiment: str, folder: Path, configs: list[DictConfig], metrics: list[str]) -> str:
    """What the page shows, as MLflow keeps a view that is shared: the name under which it is kept.

    The runs of the sweep or arm alone by its headline metric, a column for each thing in which they differ, and, if
    there are several seeds, their mean; of more arms than a page loads the runs of means and intervals in their place,
    once there are. The charts of what its domain is about stand before the others.
    """
    groups, values = varied(configs)
    keys = [*groups, *(key for key in values if key != "seed")]
    swept = (folder / "sweep.json").is_file()
    tag, name = (IN_SWEEP, sweep_id(folder)) if swept else (ARM, arm_id(configs[0]))
    runs, means = f"tags.`{tag}` = '{name}'", f"tags.`{GROUP}` LIKE '{named(folder, '')}%'"
    many = swept and len(configs) > LOADED and bool(client.search_runs([experiment], means, max_results=1))
    first = f"metrics.`round/{metrics[0]}`"
    state: dict[str, Any] = {
        "searchFilter": means if many else runs,
        "orderByKey": first,
        "orderByAsc": True,
        "selectedColumns": [first, *(f"params.`{key}`" for key in keys)],
        "compareRunSections": [{"uuid": "main", "name": "main", "display": True}],
        "compareRunCharts": [_chart(metric, KINDS if many else KINDS[:1]) for metric in metrics],
    }
    if keys and "seed" in values and not many:
        grouped = [{"mode": "param", "groupByData": key} for key in keys]
        state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": grouped}
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{name}", json.dumps(state))
    return name


def _chart(metric: str, kinds: Sequence[str]) -> dict[str, Any]:
    """A chart of a metric over rounds, or of a mean and its interval."""
    keys = [f"{kind}/{metric}" for kind in kinds]
    made: dict[str, Any] = {"uuid": keys[0], "metricKey": keys[0], "metricSectionId": "main"}
    if len(keys) == 1:  # a `generated` bar of a metric that has steps: MLflow makes a line of it, with its own settings
        return made | {"type": "BAR", "isGenerated": True}
    axes = {"xAxisKey": "step", "yAxisKey": "metric", "xAxisScaleType": "linear", "scaleType": "linear"}
    title = f"{keys[0]}: mean and 95 % interval"
    made |= axes | {"type": "LINE", "selectedMetricKeys": keys, "displayName": title}
    return made | {"lineSmoothness": 0, "range": {}}
