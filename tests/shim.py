"""A fault at a point that has a name: what a process is about to do to a file of its project or to MLflow's database.

A process whose environment has GENLOSS_FAULT calls `install`; every process that it starts does the same, by the
`sitecustomize` that `folder` writes. The fault comes at the first point that GENLOSS_POINTS does not list yet, which is
then added to it, and once for each time that GENLOSS_ARMED is made: so a command that is run again and again meets a
fault at every point of its way, once, until it ends undisturbed. No point is a moment: the tenth run dies where the
ninth would have gone on.

    GENLOSS_FAULT   kill: this process and all of its group; killself: this process; EIO, ENOSPC, ...: an OSError
    GENLOSS_WHERE   a pattern; points that do not match it are none
    GENLOSS_SHARE   n: every n-th point alone, chosen by its name
    GENLOSS_CLOCK   seconds that are added to what this process takes for the time
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sqlite3
import sys
import time
import zlib
from pathlib import Path
from typing import Any

CONNECT = sqlite3.dbapi2.connect
CHANGES = {"os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
STATEMENT = re.compile(r"\s*(INSERT INTO|UPDATE|DELETE FROM|CREATE TABLE|COMMIT)\s*(\S*)", re.IGNORECASE)
RANDOM = (  # parts of names that differ from run to run
    (re.compile(r"\.\d+(-\d+)?$"), ".PID"),
    (re.compile(r"(?<=/progress/)[^/]*-\d+(?=/|$)"), "HOST-PID"),
    (re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])"), "RUN"),
    (re.compile(r"\.?[\w-]{22}\.tmp"), "TMP"),
)


def named(path: str) -> str:
    """A path without what chance has put into it."""
    for pattern, word in RANDOM:
        path = pattern.sub(word, path)
    return path


def folder(at: Path) -> str:
    """A folder for PYTHONPATH with which every new interpreter calls `install`."""
    at.mkdir(exist_ok=True)
    call = f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\nimport shim\nshim.install()\n"
    (at / "sitecustomize.py").write_text(call)
    return str(at)


def install() -> None:
    if shift := float(os.environ.get("GENLOSS_CLOCK", 0)):
        real = time.time
        time.time = lambda: real() + shift
    if "GENLOSS_FAULT" in os.environ:
        made = Shim()
        sys.addaudithook(made)
        sqlite3.dbapi2.connect = made.connect  # type: ignore[assignment]


class Shim:
    def __init__(self) -> None:
        self.fault = os.environ["GENLOSS_FAULT"]
        self.where = re.compile(os.environ.get("GENLOSS_WHERE", ""))
        self.share = int(os.environ.get("GENLOSS_SHARE", 1))
        self.root = os.environ["GENLOSS_PROJECT"]
        self.points, self.armed = Path(os.environ["GENLOSS_POINTS"]), Path(os.environ["GENLOSS_ARMED"])
        self.known: set[str] = set()
        self.busy = False  # what follows is the shim's own doing
        self.commits = 0

    def __call__(self, event: str, details: tuple[Any, ...]) -> None:
        if self.busy:
            return
        if event == "open" or event in CHANGES:
            self.busy = True
            try:
                self._file(event, details)
            finally:
                self.busy = False

    def connect(self, database: Any, *options: Any, **more: Any) -> sqlite3.Connection:
        """sqlite3.connect, whose connection tells of every statement."""
        made = CONNECT(database, *options, **more)
        if str(database).startswith(self.root):
            name = Path(database).name
            made.set_trace_callback(lambda statement: self._statement(name, statement))
        return made

    def _file(self, event: str, details: tuple[Any, ...]) -> None:
        path, writes, flags = details[0], True, 0
        if event == "open":
            flags = details[2]
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if not writes and self.fault != "EIO":  # a full disk can be read
                return
        elif event in ("os.rename", "os.link", "os.symlink"):
            path = details[1]
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        at = details[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1  # a folder's descriptor, as rmtree
        base = Path(f"/proc/self/fd/{at}").readlink() if isinstance(at, int) and at > 0 else Path.cwd()
        place = os.path.normpath(base / os.fsdecode(path))
        if not place.startswith(self.root + os.sep) or (event == "open" and Path(place).is_dir()):
            return
        what = event.removeprefix("os.") if event != "open" else "write" if writes else "read"
        if not self._due(f"{what} {named(os.path.relpath(place, self.root))}"):
            return
        if not self.fault.startswith("kill"):
            number = getattr(errno, self.fault)
            raise OSError(number, os.strerror(number), place)
        if flags & os.O_TRUNC:  # a kill just after it was opened: it is empty
            os.close(os.open(place, flags))
        self._kill()

    def _statement(self, database: str, statement: str) -> None:
        match = STATEMENT.match(statement)
        if match is None or not self.fault.startswith("kill"):
            return
        words = " ".join(match.groups()).strip()
        if words.upper() == "COMMIT":
            self.commits += 1
            words += f" {self.commits}"
        if database.startswith("."):  # one that is being made, by hundreds of statements
            words = "…"
        if self._due(f"sql {database} {words}"):
            self._kill()

    def _due(self, point: str) -> bool:
        if point in self.known or not self.where.search(point) or zlib.crc32(point.encode()) % self.share:
            return False
        self.busy = True
        listed = self.points.read_text().splitlines() if self.points.exists() else []
        self.known.update(listed)
        try:
            if point in self.known:
                return False
            self.armed.unlink()  # of several processes one succeeds
        except FileNotFoundError:
            return False
        finally:
            self.busy = False
        with self.points.open("a") as file:
            file.write(f"{point}\n")
        return True

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL) if self.fault == "killself" else os.killpg(0, signal.SIGKILL)
        time.sleep(60)  # the signal comes
