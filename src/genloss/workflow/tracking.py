"""MLflow: a view of the run directories, sweep → arm, with round as the x-axis.

An arm's metrics are `round/NAME` with step = round, so that the compare page is right with no clicks; its training
curves are `train/NAME` over all steps of all rounds, and grow while a round trains, beside `system/NAME` of the
machine, whose step is the seconds since the run began. Every round's training set is logged as a data set with its
digest, every model as an external model. Everything is written from files, in batches, and twice is the same as once:
`genloss report DIR` writes what is missing. A server that is down costs a warning, never a run.

A run of MLflow is one arm in one sweep: what two sweeps share stands in both. Its state is true: whoever runs an arm
or a sweep holds a lock that ends with the process (`held`), and what is RUNNING without one was killed (`mark_killed`).
MLflow only adds points, so a run whose results have changed since is replaced by a new one."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import shlex
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from genloss.core.errors import UserError, one_line
from genloss.core.hashes import sha256_text, tree_hash
from genloss.core.places import is_project, load_params, project_root
from genloss.core.plugin import flatten
from genloss.core.rundir import RunDir, round_name
from genloss.language.curve import stride
from genloss.observatory import results, verdict
from genloss.observatory.groups import grouped
from genloss.observatory.pictures import grid, zoom
from genloss.observatory.readings import first_texts
from genloss.observatory.report import PAGE
from genloss.observatory.results import Arm, metrics_of, notes_of, rounds_of, sweep_entries
from genloss.observatory.samples import printable, samples
from genloss.workflow.bands import GROUP, write_bands
from genloss.workflow.identity import CHAINS, CHOICES, arm_id, arm_identity, differing, option, title
from genloss.workflow.live import Follower, Machine, Rows
from genloss.workflow.mlflow_run import (
    ARM,
    BATCH,
    DIR,
    IN_SWEEP,
    KEY,
    NOTE,
    ORIGINAL,
    PROJECT,
    SWEEP,
    VALUE,
    Run,
    alone,
    attempt,
    connect,
    database,
    found,
    here,
    place,
    quiet_mlflow,
    safe,
    store_uri,
    sweep_id,
    value,
)

# notes for the next process; MLflow's pages hide what begins with `mlflow.`
ROUND = "mlflow.genloss.round."  # + number: digest of what was written of a round
WRITING = "mlflow.genloss.writing"  # rounds being written; after a kill nobody knows which of their points are there
SEEN = "mlflow.genloss.live"  # round and key of the training whose curve was shown while it ran
CUT = "\n\n… The rest is in report.md, among the artifacts."  # of a description that is too long
PAUSE = 2.0  # seconds between requests of an arm
STATES = {"finished": "FINISHED", "failed": "FAILED"}  # of a sweep's notes; of another one it was killed, or waits


# -- who runs ------------------------------------------------------------------------------------------------------


def _lock(name: str) -> Path:
    folder = project_root() / "mlruns" / ".running"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / sha256_text(name)[:16]


@contextlib.contextmanager
def held(name: str) -> Iterator[None]:
    """While this process, or another one, is here, `running(name)` holds. It ends with the process, however that
    dies."""
    with _lock(name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def running(name: str) -> bool:
    with _lock(name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def what_if(folder: Path) -> str:
    """Of a what-if: the folder that it differs from, and in what."""
    path = folder / "what_if.json"
    try:
        said = json.loads(path.read_text())
        return " ".join([place((folder / said["of"]).resolve()), *said["overrides"]])
    except (ValueError, KeyError, TypeError):
        raise UserError(str(path), None, "is damaged; delete it, and the arm is one like any other") from None


def manifest_of(folder: Path, n: int) -> tuple[str, dict[str, Any]]:
    """What made a round, and its digest: with whether its model was kept, which the model's page says, and the metrics
    that were added since."""
    manifest = results.manifest(folder, n)
    keys = {name: stage["key"] for name, stage in manifest["stages"].items()}
    keys |= {f"added/{name}": metric["key"] for name, metric in manifest.get("added", {}).items()}
    return tree_hash(keys | ({"dropped": ""} if "dropped" in manifest else {}))[:16], manifest


def _found(folder: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Where a round's model is, or which command computes it again."""
    if dropped := manifest.get("dropped"):
        return {"genloss.path": "was not kept", "genloss.again": dropped["again"]}
    return {"genloss.path": f"{place(folder)}/model"}


def _trained(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a manifest says of the training."""
    return manifest["stages"].get("train", {"key": "", "result": {}})


def curve_of(folder: Path, manifest: Mapping[str, Any]) -> Rows:
    """The points of a round's training.csv that are shown; the file has them all."""
    path, thin = folder / "training.csv", stride(int(_trained(manifest)["result"].get("steps", 0)))
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        for i, row in enumerate(csv.DictReader(file)):
            for name in ("loss", "lr", "validation_loss", "reward", "kl"):
                if row.get(name) and (name == "validation_loss" or i % thin == 0):
                    yield int(row["step"]), name, float(row[name])


def _sweep_name(folder: Path) -> str:
    """What a sweep is called in a list of runs: its overrides, since a hash tells nobody what was swept, and its
    folder."""
    said = " ".join(word for word in notes_of(folder).command if "=" in word and not word.startswith("hydra"))
    said = said if len(said) <= 80 else f"{said[:79]}…"
    return f"{said} ({folder.name})".strip()[:KEY]


@cache
def commit(root: Path) -> dict[str, str]:
    """The project's Git commit as tags, with whether files differ from it; nothing outside of Git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no") if head else ""
    except OSError:  # no git
        return {}
    return {"mlflow.source.git.commit": head, "genloss.git.changed": str(bool(changed)).lower()} if head else {}


# -- what MLflow takes ---------------------------------------------------------------------------------------------


def parameters(cfg: DictConfig) -> dict[str, str]:
    """The config as MLflow's compare pages show it: every value by its key, an option by the name of its group, and the
    shortest keys first."""
    flat = {k: v for k, v in flatten(arm_identity(cfg)) if v not in ({}, [])}
    says: dict[str, str] = {}  # of a group the key that says which option it is, the plainest one
    for choice in CHOICES:
        says |= {k[: -len(choice) - 1]: k for k in flat if k.endswith(f".{choice}")} | says
    named = {key: group for group, key in says.items()}
    shown = {named.get(k, k): v for k, v in flat.items()} | {group: option(cfg, group) for group in CHAINS}
    return {safe(k): value(shown[k]) for k in sorted(shown, key=lambda k: k.count("."))}


# -- runs of MLflow ------------------------------------------------------------------------------------------------


class Tracker:
    """Shows an arm while it runs: from its start, round by round as they finish and curve by curve as they grow, to how
    it ended. After the first failure it leaves the rest to `genloss report`."""

    def __init__(self, run: RunDir, cfg: DictConfig, sweep: Path | None, name: str | None = None):
        self.folder, self.cfg, self.sweep, self.name = run.root, cfg, sweep, name
        self.follower = Follower(run, self._live)
        self.lock = threading.RLock()  # the follower's thread has the same view
        self.enabled = bool(cfg.tracking.enabled)
        self.view: View | None = None
        self.waiting: list[int] = []
        self.last = -PAUSE  # when rounds were logged; the first one is at once
        self.hold = contextlib.ExitStack()

    def __enter__(self) -> Tracker:
        self._try(self._begin)
        if self.enabled:
            self.hold.enter_context(self.follower)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        state = "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"
        why = one_line(error) if error and state == "FAILED" else ""
        if self.enabled and state != "KILLED":  # who interrupts does not want to wait
            self._try(self._flush)
        if self.enabled:
            self._try(lambda: self._end(state, why))
        self.hold.close()

    def _try(self, action: Callable[[], Any]) -> None:
        def done() -> bool:
            action()
            return True

        with self.lock:
            if self.enabled and attempt(f"arm {self.folder.name}", done) is None:
                self.enabled = False

    def _live(self, n: int, scratch: Path, rows: Rows) -> None:
        if self.view is not None:
            self._try(partial(self.view.live, n, scratch.name, rows))

    def _begin(self) -> None:
        self.hold.enter_context(held(arm_id(self.cfg)))
        if self.sweep is None:
            killed_of(self.cfg)
        self.view = View.of(self.folder, self.cfg, self.sweep, self.name)
        self.view.tag(commit(project_root()) if not self.view.logged else {})
        self.view.state("RUNNING")

    def round(self, n: int) -> None:
        """Log round n, or put it off: rounds of milliseconds are logged together. What a kill leaves out the next run
        logs."""
        self.waiting.append(n)
        if time.monotonic() - self.last > PAUSE:
            self._try(self._flush)

    def _flush(self) -> None:
        if self.view is not None and self.waiting:
            self.view.rounds(self.waiting)
            self.view.state("RUNNING")  # a run in place of one whose results have changed
        self.waiting, self.last = [], time.monotonic()

    def _end(self, state: str, why: str) -> None:
        if self.view is None:
            return
        self.view.end(state, why)
        if state == "FINISHED":  # in the other sweeps that have this arm
            for run in self.view.others():
                View(self.folder, self.cfg, self.view.client, self.view.experiment, run).write(state)


@contextlib.contextmanager
def following(folder: Path, cfg: DictConfig) -> Iterator[None]:
    """Shows a sweep while it runs, and at the end what its notes say of its arms. Also says of others that were killed
    that they were."""
    if not cfg.tracking.enabled:
        yield
        return

    def begin() -> None:
        hold.enter_context(held(sweep_id(folder)))
        killed_of(cfg)
        SweepView.of(folder, cfg).begin()

    with contextlib.ExitStack() as hold:
        attempt(f"sweep {folder.name}", begin)
        try:
            yield
        finally:
            attempt(f"sweep {folder.name}", partial(_ended, folder, cfg))


def mark_killed(client: Any, experiment: str, uri: str) -> None:
    """Runs of this project that MLflow believes to be running, and that nobody runs, were killed."""
    own = database(uri) == database(store_uri(None))
    with quiet_mlflow():
        for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
            name = next((run.data.tags[key] for key in (ARM, SWEEP, GROUP) if key in run.data.tags), None)
            if name and (own or run.data.tags.get(PROJECT) == here()) and not running(name):
                client.set_terminated(run.info.run_id, "KILLED")


def killed_of(cfg: DictConfig) -> None:
    """`mark_killed` where the runs of a config are shown."""
    uri = store_uri(cfg.tracking.uri)
    mark_killed(*connect(uri, cfg.tracking.experiment), uri)


def rebuild(folder: Path, cfg: DictConfig, sweep: Path | None = None, entry: Mapping[str, Any] | None = None) -> None:
    """Write everything that MLflow lacks of a run directory. entry: what its sweep notes of it."""

    def write() -> None:
        noted = STATES.get(entry["state"]) if entry else None
        complete = set(rounds_of(folder)) >= set(range(cfg.rounds + 1))
        state = "RUNNING" if running(arm_id(cfg)) else noted or ("FINISHED" if complete else None)
        why = entry["error"] if entry and entry["error"] and state == "FAILED" else ""
        view = View.of(folder, cfg, sweep, entry["name"] if entry else None)
        for run in [view.run, *([] if sweep else view.others())]:
            View(folder, cfg, view.client, view.experiment, run).write(state, why)

    if cfg.tracking.enabled:
        attempt(f"arm {folder.name}", write)


def _ended(sweep: Path, cfg: DictConfig) -> None:
    SweepView.of(sweep, cfg).end()


def rebuild_all(folders: Sequence[tuple[Path, Sequence[Arm]]], uri: str | None = None) -> None:
    """Write everything that MLflow lacks of run directories and sweeps, each with those of its arms that are what they
    should be; outside of any project there is no view. uri: in place of the address with which they ran last."""
    if not is_project(project_root()):
        print("genloss: no project is here or above the run; MLflow's view is not rebuilt", file=sys.stderr)
        return

    def config(arm: Path) -> DictConfig:
        cfg = load_params(arm / "params.yaml")
        if uri:
            cfg.tracking.uri, cfg.tracking.enabled = uri, True
        return cfg

    for folder, arms in folders:
        configs = {name: config(arm) for name, arm in arms if (arm / "params.yaml").is_file()}
        if not configs:
            continue
        first = next(iter(configs.values()))
        if first.tracking.enabled:
            attempt("what was killed", partial(killed_of, first))
        sweep = folder.resolve() if (folder / "sweep.json").is_file() else None
        entries = {entry["name"]: entry for entry in sweep_entries(sweep)} if sweep else {}
        for name, arm in arms:
            if name in configs:
                rebuild(arm, configs[name], sweep, entries.get(name))
        if sweep and first.tracking.enabled and not running(sweep_id(sweep)):
            attempt(f"sweep {sweep.name}", partial(_ended, sweep, first))


def description(sweep: Path) -> dict[str, str]:
    """What the run of a sweep says of it: the command and the tables, as far as MLflow takes them."""
    command = shlex.join(["genloss", "run", *notes_of(sweep).command])
    report = sweep / "report.md"
    text = report.read_text().partition("\n![")[0].strip() if report.is_file() else ""
    note = f"`` {command} ``\n\n{text}"  # a block of code would not wrap
    if len(note) > VALUE:
        note = note[: VALUE - len(CUT)].rpartition("\n")[0] + CUT
    return {k: value(v) for k, v in {"genloss.command": command, "mlflow.source.name": command, NOTE: note}.items()}


class SweepView(Run):
    """The MLflow run of a sweep, above those of its arms."""

    folder: Path

    @classmethod
    def of(cls, folder: Path, cfg: DictConfig) -> SweepView:
        client, experiment = connect(store_uri(cfg.tracking.uri), cfg.tracking.experiment)
        with alone(client.tracking_uri):  # two arms of one sweep make its run once
            runs = found(client, experiment, SWEEP, sweep_id(folder))
            tags = {SWEEP: sweep_id(folder), DIR: place(folder), PROJECT: here()}
            run = runs[0] if runs else client.create_run(experiment, run_name=_sweep_name(folder), tags=tags)
        made = cls(client, experiment, run)
        made.folder = folder
        made.tag(tags)
        return made

    def begin(self) -> None:
        self.tag(commit(project_root()))
        self.tag(description(self.folder))
        self.state("RUNNING")

    def end(self) -> None:
        """FINISHED if all arms are, FAILED if one failed, KILLED if one never ended; with table and figure."""
        entries = sweep_entries(self.folder)
        states = {STATES.get(entry["state"], "KILLED") for entry in entries}
        failed = [f"{entry['name']}: {entry['error']}" for entry in entries if entry["state"] == "failed"]
        self.tag(description(self.folder))
        arms = [(e["name"], (self.folder / e["dir"]).resolve()) for e in entries]
        groups = grouped(arms, differing(arms), [self.folder])
        with quiet_mlflow():
            write_bands(self.client, self.experiment, self.run_id, self.folder, groups)
        for name in (PAGE, verdict.FILE, "report.md", "rounds.csv", "rounds.png", "rounds.svg"):
            if (self.folder / name).is_file():
                self.attach(self.folder / name)
        state = next(s for s in ("KILLED", "FAILED", "FINISHED") if s in states)
        self.state(state, "; ".join(failed) if state == "FAILED" else "")
        self._verdicts()  # which refuse a damaged file

    def _verdicts(self) -> None:
        """Tags and metrics that runs can be filtered by: tags.`verdict.tail` = 'yes', `verdict.control`;
        metrics.`verdict/effect_tail/real_only` > 0.1, with the control in the name, since MLflow keeps those of a
        former one. Those of an arm are those of its group of seeds; the sweep's say what is true of an arm of it."""
        rows = verdict.read(self.folder).rows
        self.retag("verdict.", verdict_tags(rows))
        names = {i: entry["name"] for i, entry in notes_of(self.folder).arms.items()}
        for run in found(self.client, self.experiment, IN_SWEEP, sweep_id(self.folder)):
            name = names.get(run.data.tags.get(ARM))
            own = [row for row in rows if name in row["arms"]]
            arm = Run(self.client, self.experiment, run)
            arm.retag("verdict.", verdict_tags(own))  # it may be the control now
            effects = {f"verdict/effect_{row['definition']}/{row['control']}": row["effect"] for row in own}
            arm.numbers({safe(name): effect for name, effect in effects.items()})


def verdict_tags(rows: Sequence[verdict.Row]) -> dict[str, str]:
    """What is so of at least one arm: of every definition, and of any at all ("verdict.any"); and against what
    ("verdict.control")."""
    words = (verdict.YES, verdict.OPEN, verdict.NO, verdict.UNTESTABLE)  # the first that an arm has
    by_name: dict[str, set[str]] = {}
    for row in rows:
        if row["definition"] == verdict.NONE:  # the opposite of any
            word: str = row["verdict"]
            by_name.setdefault("any", set()).add({verdict.YES: verdict.NO, verdict.NO: verdict.YES}.get(word, word))
        else:
            by_name.setdefault(row["definition"], set()).add(row["verdict"])
    controls = ", ".join(dict.fromkeys(row["control"] for row in rows if row["control"]))
    tags = {f"verdict.{name}": next(w for w in words if w in found) for name, found in by_name.items()}
    return tags | ({"verdict.control": controls} if controls else {})


class View(Run):
    """The MLflow run of an arm in one sweep, or of one that is in none."""

    def __init__(self, folder: Path, cfg: DictConfig, client: Any, experiment: str, run: Any):
        super().__init__(client, experiment, run)
        self.folder, self.cfg = folder, cfg
        self.shown: set[tuple[str, int]] | None = None  # points of training curves that MLflow has; None: not asked
        self.machine = Machine()
        self._refresh()

    @classmethod
    def of(cls, folder: Path, cfg: DictConfig, sweep: Path | None, name: str | None = None) -> View:
        """Found by its tags, or made, below the run of its sweep; one that is in no sweep yet is taken into it."""
        client, experiment = connect(store_uri(cfg.tracking.uri), cfg.tracking.experiment)
        tags = {ARM: arm_id(cfg), DIR: place(folder), PROJECT: here(), "mlflow.source.name": place(folder)}
        tags |= {"regime": cfg.mixing.name, "curation": option(cfg, "curation"), "control": cfg.control}
        tags |= {"recipe": cfg.recipe.name, "domain": cfg.domain.name}
        if os.environ.get("DVC_EXP_NAME"):
            tags["dvc.experiment"] = os.environ["DVC_EXP_NAME"]
        if (folder / "what_if.json").is_file():
            tags["genloss.what_if"] = what_if(folder)
        if sweep is not None:
            tags["mlflow.parentRunId"] = SweepView.of(sweep, cfg).run_id
            tags[IN_SWEEP] = sweep_id(sweep)
        with alone(client.tracking_uri):
            runs = found(client, experiment, ARM, arm_id(cfg))
            own = [run for run in runs if run.data.tags.get(IN_SWEEP) == tags.get(IN_SWEEP)]
            free = [run for run in runs if IN_SWEEP not in run.data.tags] if sweep else runs
            if own or free:
                run = (own or free)[0]
                if name and run.info.run_name != name:
                    client.update_run(run.info.run_id, name=name)
            else:
                run = client.create_run(experiment, run_name=(name or title(cfg))[:KEY], tags=tags)
        made = cls(folder, cfg, client, experiment, run)
        if not (sweep is None and IN_SWEEP in run.data.tags):  # or another sweep's
            made.tag(tags)
        made._parameters()
        return made

    def others(self) -> list[Any]:
        """The runs of the same arm in other sweeps."""
        return [run for run in found(self.client, self.experiment, ARM, arm_id(self.cfg)) if self.run_id != _id(run)]

    def _refresh(self) -> None:
        """Read again what MLflow has of this run: another process may have written it."""
        self.run = self.client.get_run(self.run_id)
        marks = {k.removeprefix(ROUND): v for k, v in self.run.data.tags.items()}
        self.logged = {int(n): mark for n, mark in marks.items() if n.isdigit()}

    def _models(self) -> list[Any]:
        where, models, token = f"source_run_id = '{self.run_id}'", [], None
        while True:
            page = self.client.search_logged_models([self.experiment], filter_string=where, page_token=token)
            models += page
            token = page.token
            if not token:
                return models

    def _parameters(self) -> None:
        from mlflow.entities import Param

        have = self.run.data.params
        params = [Param(k, v) for k, v in parameters(self.cfg).items() if k not in have]
        for at in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[at : at + 100])

    def _replace(self) -> None:
        """MLflow forgets no point: a new run takes the place of one whose results have changed, or were written in
        part."""
        self.shown = None
        before = {k: v for k, v in self.run.data.tags.items() if not k.startswith((ROUND, ORIGINAL, SEEN))}
        for model in self._models():
            self.client.delete_logged_model(model.model_id)
        self.client.delete_run(self.run_id)
        self.run = self.client.create_run(
            self.experiment, run_name=self.run.info.run_name, tags=before | {WRITING: ""} | commit(project_root())
        )
        self._parameters()
        self._refresh()

    def rounds(self, numbers: Sequence[int]) -> None:
        """Log rounds: their metrics, training curves, data sets, models and samples; nothing of a round if that was
        done."""
        with quiet_mlflow(), alone(self.client.tracking_uri):
            self._refresh()
            manifests = {n: manifest_of(self.folder, n) for n in numbers}
            changed = any(self.logged.get(n, mark) != mark for n, (mark, _) in manifests.items())
            changed |= any(self._seen(n) not in (None, _trained(m)["key"]) for n, (_, m) in manifests.items())
            if changed or self.run.data.tags.get(WRITING):
                self._replace()
                manifests = {n: manifest_of(self.folder, n) for n in rounds_of(self.folder) if n <= max(numbers)}
            new = {n: (mark, manifest) for n, (mark, manifest) in manifests.items() if self.logged.get(n) != mark}
            if not new:
                return
            self.tag({WRITING: " ".join(map(str, new))})
            self._log({n: manifest for n, (_, manifest) in new.items()})
            self.tag({f"{ROUND}{n}": mark for n, (mark, _) in new.items()} | {WRITING: ""})
            self.logged |= {n: mark for n, (mark, _) in new.items()}

    def _log(self, manifests: Mapping[int, dict[str, Any]]) -> None:
        from mlflow.entities import LoggedModelInput, LoggedModelOutput, Metric

        points, sets, inputs, outputs = [], [], [], []
        names: dict[str, str] = {}
        models = {model.name: model.model_id for model in self._models()}
        linked = {output.model_id for output in (self.run.outputs.model_outputs if self.run.outputs else [])}
        for n, manifest in manifests.items():
            folder = self.folder / "rounds" / round_name(n)
            now = int(folder.joinpath("metrics.json").stat().st_mtime * 1000)
            data = self._dataset(folder, n, manifest)
            model = models.get(f"round-{n}") or self._model(folder, n, manifest, data.dataset)
            models[f"round-{n}"] = model
            for name, number in metrics_of(folder).items():
                key = safe(f"round/{name}")
                names |= {} if key == f"round/{name}" else {key: f"round/{name}"}
                points.append(Metric(key, number, now, n, model, data.dataset.name, data.dataset.digest))
            points += self._curve(n, curve_of(folder, manifest), now)
            sets.append(data)
            inputs += [LoggedModelInput(models[f"round-{n - 1}"])] if f"round-{n - 1}" in models else []
            outputs += [] if model in linked else [LoggedModelOutput(model, n)]
            if text := samples(self.folder, n, 8):
                lines = [textwrap.wrap(line, 110, drop_whitespace=False) for line in text.splitlines()]
                self.text("\n".join("\n".join(line) for line in lines), f"round {n}.txt", "samples")  # wraps nothing
            if (image := grid(self.folder, n, zoom(self.folder))) is not None:
                self.image(image, "pictures", n, now)
        self.tag({ORIGINAL + key: name for key, name in names.items()})
        self.client.log_inputs(self.run_id, datasets=sets, models=inputs)
        for at in range(0, len(points), BATCH):
            self.client.log_batch(self.run_id, metrics=points[at : at + BATCH])
        if outputs:
            self.client.log_outputs(self.run_id, models=outputs)

    def _samples(self) -> None:
        """The same records as a table. MLflow's page of artifacts compares runs by its first column, which therefore
        names a record, and shows the second."""
        rows = [
            [f"round {n}, record {i + 1}", printable(text), printable(prompt), finish]
            for n in rounds_of(self.folder)
            for i, (prompt, text, finish) in enumerate(first_texts(self.folder, n, 8))
        ]
        if rows:
            names = ["record", "text", "prompt", "how it ended"]
            full = [i for i, _ in enumerate(names) if any(row[i] for row in rows)]  # recipes may have no prompts
            self.table([names[i] for i in full], [[row[i] for i in full] for row in rows], "samples.json")

    def _curve(self, n: int, rows: Rows, now: int) -> list[Any]:
        """The points of a round's training that MLflow does not have; the round begins where those before it ended."""
        from mlflow.entities import Metric

        if self.shown is None:
            names = [name for name in self.run.data.metrics if name.startswith("train/")]
            histories = {name: self.client.get_metric_history(self.run_id, name) for name in names}
            self.shown = {(name, point.step) for name, history in histories.items() for point in history}
        before = sum(int(_trained(manifest_of(self.folder, m)[1])["result"].get("steps", 0)) for m in range(n))
        points = {(f"train/{name}", before + step): number for step, name, number in rows}
        new = {at: number for at, number in points.items() if at not in self.shown}
        self.shown |= set(new)
        return [Metric(name, number, now, step) for (name, step), number in new.items()]

    def _seen(self, n: int) -> str | None:
        """The key of the training of round n whose curve was shown while it ran; None if none was."""
        number, _, key = self.run.data.tags.get(SEEN, "").partition(" ")
        return key if number == str(n) else None

    def live(self, n: int, key: str, rows: Rows) -> None:
        """Log what a training has shown so far, and the machine. key: of its stage."""
        from mlflow.entities import Metric

        with quiet_mlflow(), alone(self.client.tracking_uri):
            other = self._seen(n) not in (None, key)
            if n in self.logged or other:  # computed anew, since something has changed: replaced when it has ended
                return
            self.tag({SEEN: f"{n} {key}"})
            now = int(time.time() * 1000)
            second = (now - self.run.info.start_time) // 1000
            points = [Metric(name, number, now, second) for name, number in self.machine.metrics().items()]
            points += self._curve(n, rows, now)
            for at in range(0, len(points), BATCH):
                self.client.log_batch(self.run_id, metrics=points[at : at + BATCH])

    def _dataset(self, folder: Path, n: int, manifest: dict[str, Any]) -> Any:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        mixed = manifest["stages"]["mix"]
        dataset = Dataset(
            name=f"round {n} training set",
            digest=tree_hash(mixed["files"])[:36],
            source_type="local",
            source=json.dumps({"uri": f"{place(folder)}/train"}),
            profile=json.dumps({"round": n, "trains": f"round-{n}", "shards": mixed["result"]["shards"]})[:16_000_000],
        )
        tags = {"mlflow.data.context": "training", "genloss.round": str(n), "genloss.model": f"round-{n}"}
        return DatasetInput(dataset, [InputTag(k, v) for k, v in tags.items()])

    def _model(self, folder: Path, n: int, manifest: dict[str, Any], data: Any) -> str:
        """The id of a new model of round n."""
        from mlflow.entities import LoggedModelStatus

        tags = {
            "mlflow.model.isExternal": "true",
            **_found(folder, manifest),
            "genloss.sha256": tree_hash(manifest["stages"]["train"]["files"]),
            "genloss.round": str(n),
            "genloss.dataset": f"{data.name} {data.digest}",
        }
        model = self.client.create_logged_model(
            self.experiment, name=f"round-{n}", source_run_id=self.run_id, model_type="external", tags=tags
        )
        self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return str(model.model_id)

    def end(self, state: str | None, why: str = "") -> None:
        """state: None: nobody has noted how it ended, and what did not end was killed."""
        for path in (self.folder / "report" / "rounds.png", self.folder / PAGE):
            if path.is_file():
                self.attach(path)
        self._samples()
        ended = self.run.info.status if self.run.info.status != "RUNNING" else "KILLED"
        self.state(state or ended, why)

    def write(self, state: str | None, why: str = "") -> None:
        """Everything that there is of the arm, and how it ended."""
        numbers = list(rounds_of(self.folder))
        if numbers:
            self.rounds(numbers)
        self.end(state, why)


def _id(run: Any) -> str:
    return str(run.info.run_id)
