"""`genloss verify DIR`: compute a run again from nothing, in a store of its own, and compare the hash of every file.

genloss verify runs/text-replace-none-s0-1a2b...            # all rounds
genloss verify runs/text-replace-none-s0-1a2b... --round 3  # round 3, from the artifacts of the rounds before it
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from pathlib import Path

from omegaconf import DictConfig

from genloss.core.errors import UserError
from genloss.core.files import link
from genloss.core.hashes import sha256_file, version
from genloss.core.places import load_params
from genloss.core.progress import Progress, drawn
from genloss.core.retention import NOTE, weights
from genloss.core.rundir import LIBRARIES, STAGES, RunDir
from genloss.core.store import Store
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.observatory.results import metrics_of, without_rounds
from genloss.workflow.added import Added, Gone


def environment(run: RunDir) -> list[str]:
    """What differs between the machine that made the run and this one."""
    manifest = run.manifest("train", 0)
    here = {name: version(name) for name in LIBRARIES} | {
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    there = {
        **manifest.get("libraries", {}),
        "machine": manifest.get("machine"),
        "python": manifest.get("python"),
    }
    return [f"{k}: {there.get(k, 'unknown')} then, {here[k]} now" for k in here if there.get(k) != here[k]]


def verify(folder: Path, only: int | None) -> int:
    """Exit code 0 if every file is the same, 1 if not."""
    cfg = load_params(folder / "params.yaml")
    if "diverged" in cfg.trainer:
        cfg.trainer.diverged = "go_on"  # a diverged round is compared like any other
    experiment = Experiment(cfg)
    if only is not None and not 0 <= only <= experiment.rounds:
        raise UserError("--round", only, f"must lie in 0..{experiment.rounds}")
    with tempfile.TemporaryDirectory(prefix="genloss-verify-") as name:
        store = Store(Path(name) / "store")
        there, again = RunDir(folder, store), RunDir(Path(name) / "run", store)
        made = [n for n in range(experiment.rounds + 1) if there.manifest("train", n)]
        if not made or (only is not None and not set(range(only + 1)) <= set(made)):
            if not made:
                raise without_rounds(folder)
            what = f"round {', '.join(map(str, made))} alone"
            raise UserError(str(folder), None, f"holds {what}: there is nothing to compare with; run it first")
        for line in environment(there):
            print(f"environment differs: {line}")
        if only is not None and only > 0:
            for n in range(only):
                _copy(there.round(n), again.round(n))
            _copy(there.data, again.data)
        loop = Loop(experiment, again, Progress("verify", experiment.rounds, lines=not drawn()))
        rounds = range(experiment.rounds + 1) if only is None else [only]
        if only in (None, 0):
            loop.prepare()
        there.dropped = again.dropped
        checked = different = dropped = 0
        for n in rounds:
            loop.round(n)
            for stage in STAGES:
                old, new = there.done(stage, n), again.done(stage, n)
                if new is None or (stage == "data" and n > 0):
                    continue
                if old is None:
                    print(f"round {n} {stage}: not in the run directory")
                    different += 1
                    continue
                for file in sorted(set(old.files) | set(new.files)):
                    gone = stage == "train" and n in there.dropped and file in weights(old.files)
                    checked, dropped = checked + 1, dropped + gone
                    path = there.folder(stage, n) / file
                    if file in old.files and not (gone or (path.is_file() and sha256_file(path) == old.files[file])):
                        different += 1
                        print(f"round {n} {stage} {file}: {'was edited' if path.is_file() else 'is missing'}")
                    if old.files.get(file) != new.files.get(file):
                        different += 1
                        print(
                            f"round {n} {stage} {file}: {str(old.files.get(file))[:12]} then, "
                            f"{str(new.files.get(file))[:12]} now"
                        )
                numbers = {k for k in {*old.result, *new.result} if old.result.get(k) != new.result.get(k)}
                if stage == "evaluate" and numbers:
                    different += 1
                    print(f"round {n} metrics differ: {', '.join(sorted(numbers))}")
            different += _added(there, again, cfg, n)
            try:
                metrics_of(there.round(n))
            except (UserError, OSError) as error:
                different += 1
                print(f"round {n}: {error}")
            for path in unnamed(there, n):
                different += 1
                print(f"round {n}: {path} is of no stage; delete it")
            print(f"round {n}: {'same' if not different else f'{different} differences so far'}", flush=True)
    kept = f" ({dropped} are not kept, and were compared by their sha256)" if dropped else ""
    print(f"verified {checked} files{kept}: {'all the same' if not different else f'{different} differ'}")
    return 1 if different else 0


def _added(there: RunDir, again: RunDir, cfg: DictConfig, n: int) -> int:
    """How many of the metrics that were added to a round are not the same, measured on what was computed again."""
    different = 0
    for name, old in there.added(n).items():
        try:
            added = Added(again, cfg, {name: there.added_config(n, name)})
            added.measure(n, name)
        except Gone as error:
            print(f"round {n} {name}: not compared, since {error}")
            continue
        new = again.added(n)[name]
        if numbers := {k for k in {*old.result, *new.result} if old.result.get(k) != new.result.get(k)}:
            different += 1
            print(f"round {n} metrics differ: {', '.join(sorted(numbers))} (of {name}, which was added)")
    return different


def unnamed(run: RunDir, n: int) -> list[Path]:
    """Files of a round (of round 0: of data/ too) that its manifest does not name; DVC would share them."""
    named = {run.round(n) / name for name in ("metrics.json", "manifest.json")}
    folders = [run.round(n), *([run.data] if n == 0 else [])]
    for stage in STAGES:
        if done := run.done(stage, n):
            named |= {run.folder(stage, n) / name for name in done.files}
    named |= {run.round(n) / "model" / NOTE} if n in run.dropped else set()
    return sorted(p for folder in folders for p in folder.rglob("*") if p.is_file() and p not in named)


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            if path.name.endswith("json"):
                (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / path.relative_to(source))
            else:
                link(path, target / path.relative_to(source))
