"""`genloss report --metrics NAME,...`: metrics of finished rounds, measured from what the rounds have left.

genloss report --metrics vendi,self_bleu runs/sweep-1234abcd
genloss report --metrics vendi,metrics.vendi.n=1000 runs/text-replace-*     # options as in `genloss run`

Nothing but the stage that evaluates is carried out, once for a round and metric: what it depends on is its key, as in a
run. The manifest holds it under `added`, beside the stages, and metrics.json is written again, so that it says what the
manifest says. Models are taken from the run, from what `genloss model` has computed again, or from the store; they are
not trained again here: a metric that needs one that is gone says so, and the others are measured."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from genloss.core.contracts import Report, silent
from genloss.core.errors import UserError, one_of
from genloss.core.files import link
from genloss.core.hashes import sha256_file
from genloss.core.places import load_params, options, project_root, store_root
from genloss.core.plugin import plain
from genloss.core.progress import Progress, drawn
from genloss.core.retention import again
from genloss.core.rundir import RunDir, round_name
from genloss.core.store import Store, Work
from genloss.experiment import Experiment
from genloss.observatory.results import Arm, rounds_of
from genloss.stages import EVALUATE, TRAIN, Artifact, Job
from genloss.summary import Summary
from genloss.workflow.compose import compose
from genloss.workflow.dvc_cache import commit


class Gone(UserError):
    """A model that a metric needs, and that is nowhere any more."""


@dataclass(frozen=True)
class Afterwards(Job):
    """A stage of a finished run: it finds models and trains none. needed: whether the stage looks at them."""

    needed: bool = True

    def fetched(self, artifacts: Iterable[Artifact], scratch: Path) -> dict[Artifact, Path]:
        found = {}
        for artifact in sorted({a for a in artifacts if a.stage == TRAIN.name and not self.run.holds(a.round)}):
            place = self._found(artifact.round, scratch)
            if place:
                found[artifact] = place
            elif self.needed:
                command = again(Path(os.path.relpath(self.run.root, project_root())), artifact.round)
                raise Gone(f"the model of round {artifact.round}", None, f"was not kept; `{command}` has it again")
        return found

    def _found(self, n: int, scratch: Path) -> Path | None:
        """A model that is not in its round: where `genloss model` puts it, or linked from the store."""
        done = self.run.done(TRAIN.name, n)
        files = {name: digest for name, digest in done.files.items() if name.startswith("model/")} if done else {}
        beside = self.run.root / "models" / round_name(n)
        if all((beside / name).is_file() and sha256_file(beside / name) == files[name] for name in files):
            return beside / "model"
        blobs = {name: self.run.store.blob(digest) for name, digest in files.items()}
        if not all(blob.is_file() and sha256_file(blob) == files[name] for name, blob in blobs.items()):
            return None
        for name, blob in blobs.items():
            link(blob, scratch / "models" / round_name(n) / name)
        return scratch / "models" / round_name(n) / "model"


class Added:
    """Metrics of an arm that its config does not name. metrics: their configs by name."""

    def __init__(self, run: RunDir, cfg: DictConfig, metrics: Mapping[str, Any]):
        self.run = run
        cfg = cfg.copy()
        cfg.metrics = dict(metrics)
        for overrides in (cfg.get("schedule") or {}).values():
            if overrides:  # null changes nothing in its round
                overrides.pop("metrics", None)
        self.whole = Experiment(cfg)
        self.metrics = metrics

    def work(self, n: int, name: str, report: Report = silent) -> Work:
        """The stage that measures one of them in a round."""
        x = copy(self.whole.at_round(n))
        x.metrics = {name: x.metrics[name]}
        x.cfg = x.cfg.copy()
        x.cfg.metrics = {name: self.metrics[name]}
        needed = any(part.reads_models for part in x.metrics.values())
        return EVALUATE.work(Afterwards(x, n, self.run, report, needed=needed))

    def measure(self, n: int, name: str, report: Report = silent) -> bool:
        """Have it in the round's manifest; whether it was not there yet. UserError if it cannot be measured."""
        work, known = self.work(n, name, report), self.run.added(n)
        if name in known and known[name].key == work.key:
            return False
        done = self.run.store.get(work)
        others = [known[other].result for other in known if other != name]
        stage = self.run.done(EVALUATE.name, n)
        taken = {key for result in [stage.result if stage else {}, *others] for key in result} - {"n_samples"}
        for key in sorted(taken & done.result.keys()):
            raise UserError(f"metrics.{name}", key, "is the name of another metric's number too")
        self.run.add(n, name, self.metrics[name], work, done)
        return True


def chosen(text: str) -> dict[str, Any]:
    """The configs of the metrics that `--metrics` names, by name: options of conf/metrics, and overrides of theirs."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    names = [word for word in words if "=" not in word]
    if not names:
        raise UserError("--metrics", text, f"names none; known: {', '.join(sorted(options('metrics')))}")
    for name in names:
        one_of("--metrics", name, options("metrics"))
    return dict(plain(compose([f"metrics=[{','.join(names)}]", *(word for word in words if "=" in word)]).metrics))


def add(arms: Sequence[Arm], text: str) -> int:
    """Measure what `--metrics` names in every finished round of some arms. Exit code 1 if something could not be."""
    metrics, failed = chosen(text), False
    for arm, folder in arms:
        cfg, run = load_params(folder / "params.yaml"), RunDir(folder, Store(store_root()))
        own = [name for name in metrics if name in cfg.metrics]
        for name in own:
            print(f"genloss: {arm}: {name} is among the metrics of the run itself", file=sys.stderr)
        wanted = {name: config for name, config in metrics.items() if name not in own}
        if not wanted:
            continue
        why: dict[str, list[int]] = {}  # what could not be measured, and in which rounds
        added = Added(run, cfg, wanted)
        progress = Progress(arm, cfg.rounds, lines=not drawn())
        fresh = False
        for n in rounds_of(folder):
            with progress.stage(n, EVALUATE.name) as report:
                for name in wanted:
                    try:
                        fresh |= added.measure(n, name, report)
                    except UserError as error:
                        why.setdefault(f"{name}: {error}", []).append(n)
            Summary(Experiment(cfg), run).write(n)
        progress.end("finished")
        for what, rounds in why.items():
            print(f"genloss: {arm}: round {', '.join(map(str, rounds))}: {what}", file=sys.stderr)
        failed |= bool(why)
        if (folder / "dvc.lock").is_file() and folder != project_root():
            commit(folder)
        elif fresh and folder == project_root():
            print("genloss: `dvc commit` enters what was added into the project's own pipeline", file=sys.stderr)
    return 1 if failed else 0
