"""The store: content-keyed stages, shared by every arm, safe against kills and parallel jobs.

A stage is a pure function of (its name, its part of the config, the hashes of its inputs, its seed, its code and
the library versions that matter). `Work` describes one; its key is the hash of all that. The store keeps

    blobs/ab/cdef...            file contents by sha256, read-only
    stages/<stage>/<key>.json   which files (name -> sha256) the stage with this key wrote, and its small results
    scratch/<key>/              where a stage works; kept after a kill, so that a stage can resume by chunks
    locks/<key>                 held while a stage runs: parallel arms wait for it instead of running it again

Run directories hold hard links to blobs: a file that is shared by rounds or arms is on disk once. Deleting the
whole store loses no result that a run directory or the DVC cache holds; it only has to be computed again.

Weights of models may go alone (`keep.models`, genloss.core.retention): the record stays, so that nothing is computed
again before something needs them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genloss.core.code import PLUMBING_VERSION
from genloss.core.errors import UserError
from genloss.core.files import link, locked, write_atomic
from genloss.core.hashes import canonical, sha256_file, sha256_json, sha256_text
from genloss.core.machine import _one_heap, release_memory
from genloss.core.plugin import no_numbers
from genloss.core.retention import weights


@dataclass(frozen=True)
class Done:
    """What a finished stage left: its key, its files (relative name -> sha256) and its small results."""

    key: str
    files: dict[str, str]
    result: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        said = {"key": self.key, "files": self.files, "result": self.result, "seconds": self.seconds}
        return {**said, "sha256": sha256_json(said)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Done:
        """KeyError, TypeError or ValueError if it is not what `to_json` wrote: a digit of a result is data too, and a
        run directory may be a stranger's. Records of before 2026-11-27 have no hash."""
        said = {name: value[name] for name in ("key", "files", "result", "seconds")}
        if "sha256" in value and value["sha256"] != sha256_json(said):
            raise ValueError("its sha256 differs")
        for name in said["files"]:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{name} lies outside of its folder")
        return cls(**said)


@dataclass(frozen=True)
class Work:
    """One stage that is ready to run.

    `execute(out, scratch)` writes files below `out` and returns small JSON results; it may keep partial work below
    `scratch`, which survives a kill. It must depend on nothing that is not in the other fields.
    """

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]  # name -> sha256
    seed: int
    code: dict[str, str]  # module -> sha256 of what is reached of it (genloss.core.code)
    libraries: dict[str, str]  # name -> version
    execute: Callable[[Path, Path], dict[str, Any]] = field(compare=False)
    ready: Callable[[Path], None] = field(default=lambda scratch: None, compare=False)  # before it, and not timed

    def identity(self) -> dict[str, Any]:
        """Everything that the outputs depend on, readable: it goes into the manifest."""
        return {
            "stage": self.stage,
            "config": self.config,
            "inputs": self.inputs,
            "seed": self.seed,
            "code": self.code,
            "plumbing": PLUMBING_VERSION,
            "libraries": self.libraries,
        }

    @property
    def key(self) -> str:
        return sha256_text(canonical(self.identity()))


class Store:
    """Content-keyed results below `root`. `computed` and `reused` count the stages of this process."""

    def __init__(self, root: Path):
        self.root = root
        self.computed = 0
        self.reused = 0
        try:
            for name in ("blobs", "stages", "scratch", "locks"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                "store", str(root), f"cannot be written ({error.strerror}); set GENLOSS_STORE to a folder"
            ) from None

    def blob(self, digest: str) -> Path:
        return self.root / "blobs" / digest[:2] / digest[2:]

    def _record(self, work: Work, key: str) -> Path:
        return self.root / "stages" / work.stage / f"{key}.json"

    def _known(self, work: Work, key: str) -> Done | None:
        path = self._record(work, key)
        try:
            return Done.from_json(json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise UserError(
                str(path), None, "is damaged; delete it and run again (the stage is then computed anew)"
            ) from None

    def lookup(self, work: Work, key: str, whole: bool = True) -> Done | None:
        """The finished stage with this key, if its record and all of its files are there and intact. whole: with its
        weights, which else are not looked at."""
        done = self._known(work, key)
        if done is None:
            return None
        for name, digest in done.files.items():
            if not whole and name in weights(done.files):
                continue
            blob = self.blob(digest)
            if not blob.is_file():
                return None
            if sha256_file(blob) != digest:
                raise UserError(
                    str(blob),
                    None,
                    f"is damaged (it is {work.stage}'s {name}, and its sha256 differs); "
                    f"delete it and run again (the stage is then computed anew, the rest is kept)",
                )
        return done

    def add_file(self, path: Path) -> str:
        """Move a file into the blobs (a blob that is already there stays) and return its sha256."""
        digest = sha256_file(path)
        blob = self.blob(digest)
        if not blob.exists():
            blob.parent.mkdir(parents=True, exist_ok=True)
            path.chmod(0o444)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(path, blob)
        return digest

    def add_link(self, path: Path, digest: str) -> None:
        """Have a file of a run directory, whose sha256 is known, among the blobs too."""
        if not self.blob(digest).exists():
            link(path, self.blob(digest))

    def adopt(self, done: Done, work: Work, folder: Path) -> None:
        """Enter a stage that a run directory already holds (after `dvc pull`, say) without computing it; weights as
        far as they are there, and not those of an earlier training."""
        for name, digest in done.files.items():
            path = folder / name
            if name not in weights(done.files) or (path.is_file() and sha256_file(path) == digest):
                self.add_link(path, digest)
        if self._known(work, done.key) is None:
            write_atomic(self._record(work, done.key), canonical(done.to_json()))

    def drop(self, digests: Iterable[str]) -> None:
        """Delete blobs that are nowhere else: one that a run directory, DVC's cache or a stage at work links to costs
        nothing here."""
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):
                if self.blob(digest).stat().st_nlink == 1:
                    self.blob(digest).unlink()

    def get(self, work: Work, *, whole: bool = True, waiting: Callable[[], None] | None = None) -> Done:
        """The outputs of `work`: from the store if its key is known, else computed here, once. whole: with its weights;
        those that have gone are computed again."""
        key = work.key
        done = self.lookup(work, key, whole)
        if done is None:
            with locked(self.root / "locks" / key, waiting):
                done = self.lookup(work, key, whole)  # another arm may have finished it while we waited
                if done is None:
                    done = self._compute(work, key)
                    self.computed += 1
                    return done
        self.clear(key)
        self.reused += 1
        return done

    def clear(self, key: str) -> None:
        """Delete where a stage worked that is entered: it was killed just then, or its disk failed."""
        scratch = self.root / "scratch" / key
        if scratch.exists():
            with locked(self.root / "locks" / key):  # who still works there
                shutil.rmtree(scratch, ignore_errors=True)

    def _compute(self, work: Work, key: str) -> Done:
        scratch = self.root / "scratch" / key
        out = scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        _one_heap()
        work.ready(scratch)
        began = time.perf_counter()
        result = work.execute(out, scratch)
        seconds = time.perf_counter() - began
        for name, number in no_numbers(result):
            raise UserError(f"{work.stage}.{name}", number, "is no finite number; nothing was stored")
        files = {str(path.relative_to(out)): self.add_file(path) for path in sorted(out.rglob("*")) if path.is_file()}
        done = Done(key, files, result, round(seconds, 3))
        before = self._known(work, key)
        if before and before.files == done.files:  # weights had gone, and are the same again
            done = before
        else:
            write_atomic(self._record(work, key), canonical(done.to_json()), aside=scratch / "record")
        shutil.rmtree(scratch, ignore_errors=True)
        release_memory()
        return done


class Kept(Store):
    """Computes nothing and restores nothing: for who only asks whether all is there."""

    def get(self, work: Work, *, whole: bool = True, waiting: Callable[[], None] | None = None) -> Done:
        raise UserError(work.stage, None, "is not there")

    def drop(self, digests: Iterable[str]) -> None:
        """Not here."""

    def clear(self, key: str) -> None:
        """Not here: somebody may be at work there."""
