"""DVC's cache: every arm's folder is a DVC project of its own that shares the project's cache.

Parallel jobs that write into one DVC project collide on its locks; projects of their own do not (docs/decisions.md).
`commit` puts an arm's files into the cache and writes dvc.lock, so that `dvc repro` there has nothing to do, and `dvc
push`, `dvc pull`, `dvc metrics show` work in it.

DVC takes any read-only object of the right name for the content. One that a kill has left empty, or a disk has damaged,
would replace the good file of a run at `dvc commit`. So every object that an arm's dvc.lock names is read once when the
arm is committed, and one that is wrong is replaced by the run's file. DVC finds all files there: it would put them
there by opening each object to see whether the disk can clone it, and commits of other arms would meet it empty.

Run directory, store and cache hold hard links to one file where the file system allows it: a bit that flips on the disk
flips in all three. The manifest's sha256 tells, and the stage is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from genloss.core.errors import UserError
from genloss.core.files import OUTPUTS, link, sweep
from genloss.core.hashes import sha256_file
from genloss.core.places import load_params, project_root, store_root
from genloss.core.rundir import files_of, round_name
from genloss.core.store import Store
from genloss.observatory.report import SUMMARY, write_report, write_summary
from genloss.workflow.dvc import dvc_yaml, outputs
from genloss.workflow.dvc_config import cache_dir

# --wait-for-lock: two commands may run one arm
DVC = [sys.executable, "-m", "genloss.workflow.dvc_process"]
COMMIT = [*DVC, "--wait-for-lock", "commit", "--force"]
LONG = 30.0  # seconds, after which a line says what is waited for
OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")
QUICK = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as quick, where it is built
TRIES = 3  # to heal


def commit(folder: Path) -> None:
    """Put every file of a finished run, whose dvc.yaml is there, into the DVC cache and write its dvc.lock; nothing if
    that was done."""
    sweep(folder)
    if committed(folder):
        return
    cache = Cache()
    write_report([(folder.name, folder)], folder / "report")
    write_summary(folder)
    said = ""
    for _ in range(TRIES):
        for path in (folder / SUMMARY, *(p for out in OUTPUTS for p in (folder / out).rglob("*") if p.is_file())):
            cache.put(path)
        done = run_dvc(folder)
        if done.returncode != 0:
            lines = done.stdout.strip().splitlines() or ["no message"]
            said = next((line for line in lines if line.startswith("ERROR")), lines[-1])
            # DVC rewrites both in place; a kill leaves them empty, and it refuses. The files say what they say
            for left in (folder / "dvc.lock", folder / ".dvc" / "tmp" / "rwlock"):
                left.unlink(missing_ok=True)
        elif not restored(folder) and committed(folder):
            break
    else:
        why = said or f"{cache.root} does not keep what it is given: is that disk full?"
        raise UserError(
            str(folder), None, f"DVC cannot commit it ({why}); the results are there, run again to commit them"
        )
    share(folder)


def run_dvc(folder: Path) -> subprocess.CompletedProcess[str]:
    """`dvc commit` in a folder. DVC's Python API takes its paths from the working directory of the process, which
    parallel jobs share. Another DVC, or a disk, may keep it waiting, which a line on standard error then says."""
    with subprocess.Popen(
        COMMIT, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=LONG)
        except subprocess.TimeoutExpired:
            why = "another DVC may be at work there, or a disk be slow"
            print(f"genloss: {folder}: still waiting for `dvc commit`; {why}", file=sys.stderr)
            said, _ = process.communicate()
        return subprocess.CompletedProcess(COMMIT, process.returncode, said)


def committed(folder: Path) -> bool:
    """Whether dvc.lock is that of the finished rounds which are there (their manifests name every other file's
    content), and the cache holds all of it."""
    try:
        stages = yaml.load((folder / "dvc.lock").read_text(), QUICK)["stages"]
        locked = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
        current = (folder / "dvc.yaml").read_text() == dvc_yaml(folder / "params.yaml", code=False)
    except (OSError, TypeError, KeyError, AttributeError, ValueError, yaml.YAMLError):
        return False
    rounds = _rounds(folder)
    expected = {path for n, home in enumerate(rounds) for path in outputs(n, f"rounds/{home.name}")} | {
        "report",
        SUMMARY,
    }
    there = [folder / SUMMARY, *(home / name for home in rounds for name in ("manifest.json", "metrics.json"))]
    if not current or not expected <= locked.keys():
        return False
    if any(not p.is_file() or locked.get(p.relative_to(folder).as_posix()) != md5(p) for p in there):
        return False
    cache = Cache()
    held = [cache.holds(name, folder / out) for out, name in locked.items()]  # each is looked at
    return all(held)


class Cache:
    """The objects of the project's DVC cache."""

    def __init__(self) -> None:
        self.root = cache_dir() / "files" / "md5"

    def holds(self, name: str, path: Path) -> bool:
        """Whether the object of this name, which `path` in a run directory is a copy of, is there with all that it
        lists. One that is not what its name says is deleted."""
        found = self.root / name[:2] / name[2:]
        if not (OBJECT.fullmatch(name) and found.is_file()):  # a stranger's dvc.lock may name any file
            return False
        # one that is a round's file itself was looked at: it has the manifest's sha256
        known = path.is_file() and path.samefile(found) and path.parent.name != "report"
        if not known and md5(found) != name.removesuffix(".dir"):
            found.unlink(missing_ok=True)
            return False
        listed = json.loads(found.read_bytes()) if name.endswith(".dir") else []
        held = [self.holds(entry["md5"], path / entry["relpath"]) for entry in listed]
        return all(held)

    def put(self, path: Path) -> None:
        """Have the content of a file under its name, at once or not at all."""
        name = md5(path)
        if self.holds(name, path):
            return
        found = self.root / name[:2] / name[2:]
        found.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, found)
        except FileExistsError:  # another arm's commit was quicker
            return
        except OSError:  # another file system
            link(path, found)
        found.chmod(0o444)


def md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _rounds(folder: Path) -> list[Path]:
    """The rounds of a finished run; not those that an earlier, longer config left there."""
    return [folder / "rounds" / round_name(n) for n in range(load_params(folder / "params.yaml").rounds + 1)]


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file that the manifests of a run name, with its sha256; not what was dropped."""
    for home in _rounds(folder):
        for stage, name, digest in files_of(json.loads((home / "manifest.json").read_text())):
            yield (folder / "data" if stage == "data" else home) / name, digest


def restored(folder: Path) -> bool:
    """Whether DVC has replaced a file of the run by another content; it is the store's again then."""
    store, wrong = Store(store_root()), False
    for path, digest in _files(folder):
        if path.is_file() and sha256_file(path) == digest:
            continue
        blob, wrong = store.blob(digest), True
        if not (blob.is_file() and sha256_file(blob) == digest):
            raise UserError(str(path), None, "was damaged by what DVC's cache held; run again to compute it anew")
        link(blob, path)
    return wrong


def share(folder: Path) -> None:
    """Let the store's blobs be DVC's files: DVC replaces what it commits by links to its cache, which would leave every
    byte on disk twice."""
    store = Store(store_root())
    for path, digest in _files(folder):
        blob = store.blob(digest)
        if blob.is_file() and not path.samefile(blob) and path.stat().st_dev == blob.stat().st_dev:
            link(path, blob)  # the same content: `restored` has looked at it


def forget(folder: Path) -> None:
    """Delete from DVC's cache the weights that a run has dropped and had kept before, if nobody else has them: of a
    cache that other projects share nobody knows."""
    cache, store = Cache(), Store(store_root())
    if not cache.root.is_relative_to(project_root()):
        return
    for home in _rounds(folder):
        manifest = json.loads((home / "manifest.json").read_text())
        for name in manifest.get("dropped", {}).get("files", ()):
            digest = manifest["stages"]["train"]["files"][name]
            blob = store.blob(digest)
            if not blob.is_file() or blob.stat().st_nlink != 2 or _elsewhere(home, name, digest):
                continue
            hashed = md5(blob)
            found = cache.root / hashed[:2] / hashed[2:]
            if found.is_file() and found.samefile(blob):
                found.unlink()


def _elsewhere(home: Path, name: str, digest: str) -> bool:
    """Whether another arm keeps these weights of a round, if only in DVC's cache; perhaps, if it does not say."""
    for path in project_root().glob(f"runs/*/rounds/{home.name}/manifest.json"):
        try:
            if path.parent != home and ("train", name, digest) in files_of(json.loads(path.read_text())):
                return True
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            return True  # empty or damaged, which its own run says
    return False
