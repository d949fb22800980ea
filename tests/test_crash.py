"""Killed anywhere, the same command goes on and ends with the same bytes; nothing that was finished is computed again.

    python tests/test_crash.py FOLDER KILLS SEED OVERRIDE...      # the driver, alone; KILLS=stages: one in each stage

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
from typing import Any

import pytest

from genloss.core import source
from support import Project, forked, frozen, hashes, serving
from test_self_instruct import REAL
from test_self_instruct import behave as tasks

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
    "genloss.domains.images.training",
    "diffusers.models.unets.unet_2d",
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


TALKERS = [
    *("domain=instruct", "domain.context=160", "domain.examples=64", "domain.validation=8", "domain.test=24"),
    *("domain.pool=48", "model=llama", "size=64", "trainer.steps=30", "trainer.batch=4", "rounds=1"),
    *("trainer.checkpoint_minutes=1e-9", "tracking=none", "runtime.workers=1"),
]
ANSWERS = [*TALKERS, "recipe.n=24", "recipe.samples=2", "recipe.chunk=8"]
WRITERS = [
    *TALKERS,
    *("experiment=self_instruct", "hydra.mode=RUN", "seed=0", "rounds=2", "domain.examples=200", "size=200"),
    *("recipe.calls=48", "recipe.author.chunk=8", "curation.novelty.threshold=0.6"),
]
ASKED = [
    *REAL,
    *("rounds=1", "recipe.calls=12", "recipe.author.chunk=4", "recipe.author.backend.seeds=false"),
    *("trainer.steps=30", "trainer.checkpoint_minutes=1e-9", "runtime.workers=1"),
]


def say(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
    """A judge: a number by a hash of what is asked."""
    time.sleep(0.02)
    draw = random.Random(json.dumps(body, sort_keys=True))
    text = str(draw.randint(1, 100))
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": min(2, body["max_tokens"])}
    return 200, json.dumps({"choices": [choice], "usage": usage}).encode()


def write(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
    """A server that writes tasks and does them."""
    time.sleep(0.02)
    return tasks(number, body)


# name: (overrides, the plug-in whose author is behind a server, what that server says)
CHATS: dict[str, tuple[list[str], str, Any]] = {
    "instruct": ([*ANSWERS, "curation=noisy_judge"], "", say),
    "judge": ([*ANSWERS, "recipe.n=12", "curation=judge"], "curation.judge", say),
    "self_instruct": (WRITERS, "", say),
    "self_instruct/server": (ASKED, "recipe", write),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CHATS)
def test_conversations_are_killed_in_every_stage(tmp_path: Path, name: str) -> None:
    """Once in each stage, at a random moment of it: the same records and metrics; no reply is asked for twice, and no
    chunk of texts is sampled twice."""
    home = Project.make(tmp_path / "unused")
    options, key, behave = CHATS[name]
    overrides = [*options]
    with serving(behave) as server:
        if key:
            of = f"{key}.author"
            overrides += [
                f"recipe/backend@{of}.backend=openai",
                f"{of}.backend.url={server.url}",
                f"{of}.new_tokens=40",
            ]
            overrides += [f"{of}.backend.model=m", f"{of}.backend.api=chat"]
        result = home.spawn(sys.executable, __file__, str(tmp_path), "stages", "0", *overrides, timeout=800)
        asked = len(server.bodies)
    assert result.code == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    print(found["interrupted"], found["seconds"], found["kills"])
    assert found["rewritten"] == [] and found["records"] == found["undisturbed_records"]
    assert found["hashes"] and found["hashes"] == found["undisturbed"]
    assert found["metrics"] and found["metrics"] == found["undisturbed_metrics"]
    assert set(found["interrupted"]) >= {"data", "train", "generate", "evaluate"} and found["kills"] >= 6
    assert set(found["sampled"].values()) == ({1} if key != "recipe" else set())
    if key:
        assert "curate" in found["interrupted"] or key == "recipe"
        most = 2 * found["replies"] + found["kills"]  # of two runs, and what was on its way at a kill
        assert 20 < 2 * found["replies"] <= asked <= most


DIGITS = [
    *("domain=images", "domain/corpus=digits", "size=96", "rounds=1", "model.channels=[8,16]", "trainer.steps=60"),
    *("trainer.batch=8", "trainer.validate_every=20", "recipe.chunk=8", "recipe.steps=4", "tracking=none"),
    *("trainer.checkpoint_minutes=1e-9", "runtime.workers=1"),
]


@pytest.mark.timeout(900)
def test_images_are_killed_in_every_stage(tmp_path: Path) -> None:
    home = Project.make(tmp_path / "unused")
    result = home.spawn(sys.executable, __file__, str(tmp_path), "stages", "0", *DIGITS, timeout=800)
    assert result.code == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    assert found["rewritten"] == [] and found["records"] == found["undisturbed_records"]
    assert found["hashes"] and found["hashes"] == found["undisturbed"]
    assert found["metrics"] and found["metrics"] == found["undisturbed_metrics"]
    assert set(found["interrupted"]) >= {"train", "generate", "evaluate"} and found["kills"] >= 5


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
    of = compared(calm, calm)
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
        if compared(calm, home) != of:
            break
    stage_of = {Path(name).stem: Path(name).parent.name for name in records(calm)}
    return {
        "kills": killed,
        "projects": projects,
        "seconds": round(seconds, 2),
        "delays": delays,
        "rewritten": rewritten,
        "interrupted": dict(Counter(stage_of.get(key, "?") for key in interrupted)),
        "points": points(home),
    } | compared(calm, home)


def compared(calm: Project, wild: Project) -> dict[str, Any]:
    """What the run that was killed has, and what the one that was not."""
    return {
        "hashes": hashes(run_dir(wild)),
        "undisturbed": hashes(run_dir(calm)),
        "records": records(wild),
        "undisturbed_records": records(calm),
    }


def told(home: Project) -> dict[str, dict[str, float]]:
    """metrics.json of each round, without what tells of time, and of requests that a kill has cut off."""
    spent = ("generate/requests", "generate/tokens_sent", "generate/tokens_written", "generate/replies_found")
    free = ("seconds/", "tokens_per_second/", *spent)
    found = {}
    for path in sorted(run_dir(home).glob("rounds/*/metrics.json")):
        metrics = json.loads(path.read_text())
        found[path.parent.name] = {k: v for k, v in metrics.items() if not k.startswith(free)}
    return found


def log_samples(file: Path) -> None:
    """From now on a line in the file for every chunk of texts that is sampled, and kept."""
    from genloss.language.sampling import Asked

    keep = Asked.keep

    def kept(self: Asked, number: int, *given: Any) -> Any:
        made = keep(self, number, *given)
        with file.open("a") as log:
            log.write(f"{self.request.scratch} {number}\n")
        return made

    file.touch()
    Asked.keep = kept  # type: ignore[method-assign, assignment]


def in_each_stage(folder: Path, seed: int, arguments: list[str]) -> dict:
    """Kill a run once in each stage, at a random moment of its first half: a stage may be quicker than it was."""
    preload(LIBRARIES)
    log_samples(folder / "sampled")
    calm, wild, rng = Project.make(folder / "calm"), Project.make(folder / "wild"), random.Random(seed)
    seconds = finish(calm, arguments)
    done = {path.stem: path for path in sorted(calm.store.glob("stages/*/*.json"), key=lambda p: p.stat().st_mtime_ns)}
    rewritten, before = [], frozen(wild.store)
    interrupted: Counter[str] = Counter()
    for key, path in done.items():
        pid, at_work = child(wild, arguments), wild.store / "scratch" / key / "out"
        while not at_work.exists() and os.waitpid(pid, os.WNOHANG)[0] != pid:
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.5 * json.loads(path.read_text())["seconds"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        after = frozen(wild.store)
        rewritten += [k for k, v in before.items() if after.get(k) != v]
        before = after
        if str(wild.store / path.relative_to(calm.store)) not in after:
            interrupted[path.parent.name] += 1
    finish(wild, arguments)
    after = frozen(wild.store)
    return {
        "kills": interrupted.total(),
        "seconds": round(seconds, 2),
        "interrupted": dict(interrupted),
        "rewritten": rewritten + [k for k, v in before.items() if after.get(k) != v],
        "sampled": dict(Counter((folder / "sampled").read_text().splitlines())),
        "replies": sum(path.is_file() for path in calm.store.glob("replies/**/*")),
        "metrics": told(wild),
        "undisturbed_metrics": told(calm),
    } | compared(calm, wild)


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
    where, kills, seed, *given = sys.argv[1:]
    if kills == "stages":
        print(json.dumps(in_each_stage(Path(where), int(seed), given)))
    else:
        print(json.dumps(drive(Path(where), int(kills), int(seed), given)))
