"""DVC: every arm's folder is a DVC project of its own that shares the project's cache.

Parallel jobs that write into one DVC project collide on its locks; projects of their own do not (docs/decisions.md).
`commit` puts an arm's files into the cache and writes dvc.lock, so that `dvc repro` there has nothing to do, and `dvc
push`, `dvc pull`, `dvc metrics show` work in it. The project root has the same dvc.yaml, for the default experiment.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

from genloss.core.errors import UserError
from genloss.core.files import link, write_atomic
from genloss.core.places import store_root
from genloss.core.source import is_project
from genloss.core.store import Store
from genloss.experiment import KEYS, OPERATIONAL
from genloss.observatory.report import write_report
from genloss.observatory.results import shown
from genloss.stages import ALL, DATA, MIX, TRAIN

# What a round's result depends on: everything but how it is carried out, and not the number of rounds, so that adding a
# round leaves the ones before it as they are.
PARAMS = [key for key in KEYS if key not in (*OPERATIONAL, "rounds", "schedule")]
# --wait-for-lock: the commit of a run that was killed goes on without that run
COMMIT = [sys.executable, "-m", "dvc", "--wait-for-lock", "commit", "--force"]


def outputs(n: int, folder: str) -> list[str]:
    """What the stages of round 0, or of a later one, write; `folder` is the round's."""
    stages = [s for s in ALL if s.first <= n and not (s is DATA and n > 0)]
    written = [path if s is DATA else f"{folder}/{path}" for s in stages for path in s.writes]
    return [*written, f"{folder}/manifest.json"]


def dvc_yaml(params: Path, code: bool) -> str:
    """The pipeline of the run with these params: one stage a round, unrolled through foreach. `code`: also rerun when
    source of the project changes, genloss's or the user's."""
    source = ["src/genloss", *own_packages(params)] if code else []
    before = [
        f"rounds/${{item.prev}}/{name}" for name in (*MIX.writes, TRAIN.writes[0])
    ]  # what was trained on, and the model
    first = {
        "cmd": "genloss round 0",
        **({"deps": source} if source else {}),
        "params": PARAMS,
        "outs": outputs(0, "rounds/00"),
        "metrics": ["rounds/00/metrics.json"],
    }
    later = {
        "foreach": "${dvc.rounds}",
        "do": {
            "cmd": "genloss round ${key}",
            "deps": [*source, *DATA.writes, *before],
            "params": [*PARAMS, "dvc.rounds.${key}"],
            "outs": outputs(1, "rounds/${key}"),
            "metrics": ["rounds/${key}/metrics.json"],
        },
    }
    last = {"cmd": "genloss report . --out report", "deps": ["rounds"], "params": ["rounds"], "outs": ["report"]}
    head = "# Written by `genloss compose`. One stage a round; "
    head += "`dvc repro` runs what changed, from the first such round on.\n"
    plots = [{name: {"x": "round", "y": {"report/rounds.csv": name}, "x_label": "round"}} for name in shown(params)]
    stages = {"round-0": first, "round": later, "report": last}
    return head + yaml.safe_dump({"stages": stages, "plots": plots}, sort_keys=False, width=110)


def own_packages(params: Path) -> list[str]:
    """The packages, or single modules, of the classes that `params` names, as far as they are neither genloss nor
    installed; relative to the folder of `params`, without those that lie elsewhere: DVC would find them nowhere else.
    """
    root, found = params.resolve().parent, set()
    for top in re.findall(r"\b_target_: ['\"]?(\w+)", params.read_text()):
        if top == "genloss" or not is_project(top):
            continue
        spec = importlib.util.find_spec(top)
        assert spec is not None  # is_project has found it
        places = [Path(p).resolve() for p in spec.submodule_search_locations or [spec.origin or ""]]
        found |= {place.relative_to(root).as_posix() for place in places if place.is_relative_to(root)}
    return sorted(found)


def committed(folder: Path) -> bool:
    """Whether dvc.lock is that of the finished rounds which are there: their manifests name every other file's
    content."""
    try:
        stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
        locked = {out["path"]: out.get("md5") for stage in stages.values() for out in stage.get("outs", [])}
        current = (folder / "dvc.yaml").read_text() == dvc_yaml(folder / "params.yaml", code=False)
    except (OSError, TypeError, KeyError, yaml.YAMLError):
        return False
    there = [*folder.glob("rounds/*/manifest.json"), *folder.glob("rounds/*/metrics.json")]
    return current and all(
        locked.get(path.relative_to(folder).as_posix()) == hashlib.md5(path.read_bytes()).hexdigest() for path in there
    )


def commit(folder: Path) -> None:
    """Put every file of a finished run into the DVC cache and write its dvc.lock; nothing if that was done."""
    if committed(folder):
        return
    write_atomic(folder / "dvc.yaml", dvc_yaml(folder / "params.yaml", code=False))
    write_report([(folder.name, folder)], folder / "report")
    # DVC's Python API takes its paths from the working directory of the process, which parallel jobs share
    for _ in range(2):  # it failed once in some hundred parallel commits, why is not known (docs/decisions.md)
        done = subprocess.run(COMMIT, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
    else:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no message"]
        said = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise UserError(
            str(folder),
            None,
            f"DVC cannot commit it ({said}); the results are there, run again to commit them",
        )
    share(folder)


def share(folder: Path) -> None:
    """Let the store's blobs be DVC's files: DVC replaces what it commits by links to its cache, which would leave every
    byte on disk twice."""
    store = Store(store_root())
    for manifest in folder.glob("rounds/*/manifest.json"):
        for stage, entry in json.loads(manifest.read_text())["stages"].items():
            for name, digest in entry["files"].items():
                path, blob = (folder / "data" if stage == "data" else manifest.parent) / name, store.blob(digest)
                if not (path.is_file() and blob.is_file()) or path.samefile(blob):
                    continue
                here, there = path.stat(), blob.stat()
                if here.st_dev == there.st_dev and here.st_size == there.st_size:
                    link(path, blob)
