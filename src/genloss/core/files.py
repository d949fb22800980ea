"""Files: written aside and renamed, linked instead of copied, locked between processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from genloss.core.errors import UserError

T = TypeVar("T")

OUTPUTS = ("data", "rounds", "report")  # folders of a run that DVC keeps
LEFT = re.compile(r"\..+\.\d+(-\d+)?")  # names of what `aside_of` names
DVCS = re.compile(r"\.[\w-]{22}\.tmp")  # of DVC's temporary files, which it would take for parts of an output
OLD = 3600.0  # seconds after which no writer is at work on it


def aside_of(path: Path) -> Path:
    """Where a file is written that is then renamed to `path`: beside it, but for what DVC keeps. A kill would leave it
    there to be pushed; such files go to .genloss/tmp of the run."""
    home, name = path.parent, f".{path.name}.{os.getpid()}-{threading.get_ident()}"
    for folder in path.parents:
        if folder.name in OUTPUTS and (folder.parent / "params.yaml").is_file():
            outside = folder.parent / ".genloss" / "tmp"
            outside.mkdir(parents=True, exist_ok=True)
            if outside.stat().st_dev == home.stat().st_dev:
                return outside / name
    return home / name


def sweep(folder: Path) -> None:
    """Delete what kills have left of writing aside, below `folder`; ours when nobody is at work on it."""
    for path in folder.rglob(".*"):
        with contextlib.suppress(FileNotFoundError):
            ours = LEFT.fullmatch(path.name) and time.time() - path.stat().st_ctime > OLD
            if (ours or DVCS.fullmatch(path.name)) and path.is_file():
                path.unlink()


def read_json(path: Path, made: Callable[[Any], T], remedy: str, load: Callable[[str], Any] = json.loads) -> T:
    """What `made` makes of a JSON file that genloss wrote. UserError, which names the file, where it is not there, or
    where `load` or `made` meets what genloss has not written. remedy: what brings it back, "run it again", say."""
    try:
        return made(load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(str(path), None, f"is not there; {remedy}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # no UTF-8, no JSON, another shape
        raise UserError(str(path), None, f"is damaged; delete it and {remedy}") from None


@contextlib.contextmanager
def _renamed(aside: Path) -> Iterator[None]:
    """Delete what was written aside if it does not come to be renamed: a full disk needs the room."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def write_atomic(
    path: Path, text: str, durable: bool = True, mode: int | None = None, aside: Path | None = None
) -> None:
    """Write aside, flush to disk, rename: readers see the old file or the new one, never a part. mode: who may read
    it, if that is not what a new file of this user has. aside: where it is written, if that is known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = aside or aside_of(path)
    with _renamed(aside):
        _write(aside, text, durable, mode)
        os.replace(aside, path)


def write_first(path: Path, text: str) -> None:
    """`write_atomic`, but what is there already stays, also where several write at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(path)
    with _renamed(aside):
        _write(aside, text)
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        aside.unlink()


def _write(aside: Path, text: str, durable: bool = True, mode: int | None = None) -> None:
    with aside.open("w", encoding="utf-8") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def keep(path: Path, text: str) -> None:
    """`write_atomic`; a file that says so already stays as it is, with its time."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)


def link(source: Path, target: Path) -> None:
    """Put `source` at `target`, replacing what is there: a hard link, or a copy across file systems."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(target)
    aside.unlink(missing_ok=True)
    with _renamed(aside):
        try:
            os.link(source, aside)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            shutil.copyfile(source, aside)
        os.replace(aside, target)
    aside.unlink(missing_ok=True)  # rename() of two links to one inode does nothing and leaves the first


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Held by one process at a time; `waiting` is called if this one has to wait. It ends with the process, however
    that dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
