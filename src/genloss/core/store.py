"""The store: content-keyed stages, shared by every arm, safe against kills and parallel jobs.

A stage is a pure function of (its name, its part of the config, the hashes of its inputs, its seed, its code and
the library versions that matter). `Work` describes one; its key is the hash of all that. The store keeps

    blobs/ab/cdef...            file contents by sha256, read-only
    stages/<stage>/<key>.json   which files (name -> sha256) the stage with this key wrote, and its small results
    scratch/<key>/              where a stage works; kept after a kill, so that a stage can resume by chunks
    locks/<key>                 held while a stage runs: parallel arms wait for it instead of running it again

Run directories hold hard links to blobs: a file that is shared by rounds or arms is on disk once. Deleting the
whole store loses no result that a run directory or the DVC cache holds; it only has to be computed again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from genloss.core.errors import UserError


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_hashes: dict[tuple[int, int, int, int], str] = {}


def sha256_file(path: Path) -> str:
    """sha256 of a file; remembered for this process while inode (one for all links to it), size and time of change stay."""
    status = path.stat()
    mark = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if mark not in _hashes:
        with path.open("rb") as file:
            _hashes[mark] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[mark]


def write_atomic(path: Path, text: str, durable: bool = True) -> None:
    """Write aside, flush to disk, rename: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(aside, path)


def tree_hash(files: dict[str, str]) -> str:
    """One sha256 for a set of files (name -> sha256)."""
    return sha256_text("\n".join(f"{name} {digest}" for name, digest in sorted(files.items())))


def folder_hash(folder: Path) -> str:
    """One sha256 for the files directly in a folder: a saved model or tokenizer outside of the run."""
    return tree_hash({f.name: sha256_file(f) for f in folder.iterdir() if f.is_file()})


@cache
def code_hash(module: str) -> str:
    """sha256 of a module's source: editing a curator makes its stages, and no others, new."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return "unknown"
    return sha256_file(Path(spec.origin))


@cache
def version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


@dataclass(frozen=True)
class Done:
    """What a finished stage left: its key, its files (relative name -> sha256) and its small results."""

    key: str
    files: dict[str, str]
    result: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "files": self.files, "result": self.result, "seconds": self.seconds}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Done:
        return cls(value["key"], value["files"], value["result"], value["seconds"])


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
    modules: tuple[str, ...]
    libraries: tuple[str, ...]
    execute: Callable[[Path, Path], dict[str, Any]] = field(compare=False)

    def identity(self) -> dict[str, Any]:
        """Everything that the outputs depend on, readable: it goes into the manifest."""
        return {
            "stage": self.stage,
            "config": self.config,
            "inputs": self.inputs,
            "seed": self.seed,
            "code": {m: code_hash(m) for m in sorted(set(self.modules))},
            "libraries": {name: version(name) for name in sorted(set(self.libraries))},
        }

    @property
    def key(self) -> str:
        return sha256_text(canonical(self.identity()))


def link(source: Path, target: Path) -> None:
    """Put `source` at `target`, replacing what is there: a hard link, or a copy across file systems."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, aside)
    os.replace(aside, target)
    aside.unlink(missing_ok=True)  # rename() of two links to one inode does nothing and leaves the first


@cache
def _one_heap() -> ctypes.CDLL | None:
    """Put everything, Arrow's tables too, in one heap of the C library that keeps what is freed until a stage ends. Else every
    training step would return its pages and fault them in again (docs/decisions.md, "Memory"). None where there is no glibc."""
    import pyarrow as pa

    try:
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-8, 1), (-3, 1 << 28), (-1, 1 << 30)):  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(option, value)
    except (OSError, AttributeError):
        return None
    pa.set_memory_pool(pa.system_memory_pool())
    return libc


def release_memory() -> None:
    """Give back what a stage used: cycles (Lightning's, which hold model and optimizer) and freed pages.

    What survives is frozen: it is not looked through again, which took 0.4 s with all libraries loaded."""
    gc.collect()
    gc.freeze()
    if libc := _one_heap():
        libc.malloc_trim(0)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Held by one process at a time; `waiting` is called if this one has to wait. It ends with the process, however that dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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

    def lookup(self, work: Work, key: str) -> Done | None:
        """The finished stage with this key, if its record and all of its files are there and intact."""
        path = self._record(work, key)
        try:
            done = Done.from_json(json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise UserError(
                str(path), None, "is damaged; delete it and run again (the stage is then computed anew)"
            ) from None
        for name, digest in done.files.items():
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

    def adopt(self, done: Done, work: Work, folder: Path) -> None:
        """Enter a stage that a run directory already holds (after `dvc pull`, say) without computing it."""
        for name, digest in done.files.items():
            if not self.blob(digest).exists():
                link(folder / name, self.blob(digest))
        write_atomic(self._record(work, done.key), canonical(done.to_json()))

    def get(self, work: Work, *, waiting: Callable[[], None] | None = None) -> Done:
        """The outputs of `work`: from the store if its key is known, else computed here, once."""
        key = work.key
        done = self.lookup(work, key)
        if done is None:
            with locked(self.root / "locks" / key, waiting):
                done = self.lookup(work, key)  # another arm may have finished it while we waited
                if done is None:
                    done = self._compute(work, key)
                    self.computed += 1
                    return done
        self.reused += 1
        return done

    def _compute(self, work: Work, key: str) -> Done:
        scratch = self.root / "scratch" / key
        out = scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        _one_heap()
        began = time.perf_counter()
        result = work.execute(out, scratch)
        seconds = time.perf_counter() - began
        files = {str(path.relative_to(out)): self.add_file(path) for path in sorted(out.rglob("*")) if path.is_file()}
        done = Done(key, files, result, round(seconds, 3))
        write_atomic(self._record(work, key), canonical(done.to_json()))
        shutil.rmtree(scratch, ignore_errors=True)
        release_memory()
        return done
