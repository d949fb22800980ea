"""Killed anywhere, the same command goes on and ends with the same bytes; nothing that was finished is computed again.

    python tests/test_crash.py FOLDER KILLS SEED OVERRIDE...      # the driver, alone

The driver imports the heavy libraries once and forks the processes that it kills, so that a kill costs what is lost by
it and not seven seconds of imports."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from genloss.core import source
from support import Project, forked, frozen, hashes

KILLS = 32
LIBRARIES = (
    "torch",
    "torch.nn",
    "torch.utils.data",
    "torch._dynamo",
    "lightning.pytorch",
    "tokenizers",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "pyarrow.parquet",
    "mlflow",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
    "matplotlib.pyplot",
    "genloss.workflow.hydra_app",
    "genloss.workflow.sweep",
    "genloss.observatory.report",
    "genloss.workflow.dvc_cache",
    "genloss.workflow.verify",
    "genloss.language.training",
    "genloss.language.sampling",
    "genloss.language.scoring",
)


@pytest.mark.timeout(1800)
def test_killed_at_random_moments(tmp_path: Path, tiny: list[str]) -> None:
    home = Project.make(tmp_path / "unused")
    # a checkpoint at each step: what is killed in a training goes on inside of it
    overrides = [*tiny, "rounds=2", "trainer.steps=30", "trainer.checkpoint_minutes=1e-9", "tracking=mlflow"]
    result = home.spawn(sys.executable, __file__, str(tmp_path), str(KILLS), "0", *overrides, timeout=1500)
    assert result.code == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    print({k: found[k] for k in ("kills", "projects", "seconds", "delays", "interrupted")})
    assert found["kills"] >= 30
    assert found["rewritten"] == []  # no record of a finished stage was ever written again
    assert found["hashes"] and found["hashes"] == found["undisturbed"]
    assert found["records"] == found["undisturbed_records"]  # the same stages under the same keys, each once
    log = (tmp_path / "child.log").read_text()
    assert "warning: MLflow" not in log, [line for line in log.splitlines() if "warning" in line]
    assert found["points"] and set(found["points"].values()) == {1}  # MLflow has every point, and has it once
    assert found["interrupted"]  # some kills hit a stage at work


# -- the driver --------------------------------------------------------------------------------------------------------


def child(home: Project, arguments: list[str]) -> int:
    """Fork a process that runs genloss in `home`; returns its id."""
    from genloss import cli

    return forked(home, lambda: cli.main(["run", *arguments]))


def finish(home: Project, arguments: list[str]) -> float:
    """Run to the end, undisturbed; returns the seconds it took."""
    began = time.perf_counter()
    code = os.waitstatus_to_exitcode(os.waitpid(child(home, arguments), 0)[1])
    if code:
        sys.exit(
            f"a run that was left alone ended with {code}:\n{(home.root.parent / 'child.log').read_text()[-3000:]}"
        )
    return time.perf_counter() - began


def records(home: Project) -> list[str]:
    return sorted(str(p.relative_to(home.store)) for p in home.store.glob("stages/*/*.json"))


def working_since(home: Project, began: float) -> bool:
    """Whether a stage began after that time."""
    for path in home.store.glob("scratch/*/out"):
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            if path.stat().st_mtime > began:
                return True
    return False


def run_dir(home: Project) -> Path:
    return next(p.parent for p in home.root.glob("runs/*/params.yaml"))


def preload(libraries: Iterable[str]) -> None:
    """What the processes that are forked from this one need not import again."""
    for name in libraries:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for name in [name for name in sys.modules if name.startswith("genloss.")]:
        source.parse(name)  # remembered, so that an edit while this runs does not make two programs of one
    # a stage collects garbage; what the parent imported is none, and copying its pages to see so takes long
    gc.freeze()


def drive(folder: Path, kills: int, seed: int, arguments: list[str]) -> dict:
    preload(LIBRARIES)
    calm = Project.make(folder / "calm")
    seconds = min(finish(calm, arguments), finish(Project.make(folder / "calm again"), arguments))
    undisturbed, of = hashes(run_dir(calm)), records(calm)
    rng = random.Random(seed)
    killed, rewritten, delays = 0, [], []
    interrupted: Counter[str] = Counter()
    projects = 0
    while killed < kills:  # a run that gets to its end before enough kills is followed by a new one, from nothing
        home = Project.make(folder / f"wild{projects}")
        projects += 1
        before: dict[str, tuple[int, int]] = {}
        while killed < kills:
            pid = child(home, arguments)
            delay = rng.uniform(0.05, 0.35 * seconds)
            wait = killed % 2 == 1  # every other kill waits for a stage to begin, however slow the machine is
            deadline = time.monotonic() + delay
            ended, began = False, time.time()
            while not ended and time.monotonic() < deadline:
                ended = os.waitpid(pid, os.WNOHANG)[0] == pid
                if wait and not working_since(home, began):
                    deadline = time.monotonic() + delay / 10
                time.sleep(0.002)
            if ended:
                break
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            killed += 1
            delays.append(round(delay, 2))
            after = frozen(home.store)
            rewritten += [k for k, v in before.items() if after.get(k) != v]
            finished = {Path(k).stem for k in after}
            for scratch in home.store.glob("scratch/*"):
                if scratch.name not in finished:
                    interrupted[scratch.name] += 1
            before = after
        finish(home, arguments)
        after = frozen(home.store)
        rewritten += [k for k, v in before.items() if after.get(k) != v]
        if hashes(run_dir(home)) != undisturbed or records(home) != of:
            break
    stage_of = {Path(name).stem: Path(name).parent.name for name in of}
    return {
        "kills": killed,
        "projects": projects,
        "seconds": round(seconds, 2),
        "delays": delays,
        "rewritten": rewritten,
        "interrupted": dict(Counter(stage_of.get(key, "?") for key in interrupted)),
        "hashes": hashes(run_dir(home)),
        "undisturbed": undisturbed,
        "records": records(home),
        "undisturbed_records": of,
        "points": points(home),
    }


def points(home: Project) -> dict[str, int]:
    """How often MLflow holds each point of round/* and train/*."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{home.root / 'mlruns' / 'mlflow.db'}")
    [experiment] = [e for e in client.search_experiments() if e.name == "genloss"]
    [run] = client.search_runs([experiment.experiment_id])
    found: Counter[str] = Counter()
    for key in run.data.metrics:
        if key.startswith(("round/", "train/")):
            found.update(f"{key}@{point.step}" for point in client.get_metric_history(run.info.run_id, key))
    return dict(found)


if __name__ == "__main__":
    print(json.dumps(drive(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])))
