"""For tests that need more than one process or a project that lives longer than one test."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from genloss.core.contracts import Fit
    from genloss.domains.lab import LabModel

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from genloss.core.places import conf_dir
from genloss.workflow.compose import compose
from genloss.workflow.sweep import expand

REPOSITORY = Path(__file__).resolve().parents[1]
S = TypeVar("S", bound=ThreadingHTTPServer)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """What the last line on standard output names: `run: PATH` or `sweep: PATH`."""
        return Path(self.out.strip().splitlines()[-1].partition(": ")[2])

    @property
    def refusals(self) -> list[str]:
        """Lines on standard error that are no warning, and not what a run will take of the disk."""
        other = ("warning: ", "genloss: needs at most ")
        said = [line for line in self.err.splitlines() if line.startswith("genloss: ")]
        return [line for line in said if not any(word in line for word in other)]


@dataclass
class Project:
    """A project in a folder of its own, and the ways to run something in it."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, root: Path, **env: str) -> Project:
        root.mkdir(parents=True)
        shutil.copytree(REPOSITORY / "conf", root / "conf")
        return cls(root, {"GENLOSS_PROJECT": str(root), "GENLOSS_STORE": str(root / ".genloss" / "store"), **env})

    @property
    def store(self) -> Path:
        return Path(self.env["GENLOSS_STORE"])

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """This process, as if it had been started in the project."""
        environment, folder, argv = dict(os.environ), Path.cwd(), sys.argv
        os.environ.update(self.env)
        os.chdir(self.root)
        sys.argv = ["genloss"]
        try:
            yield
        finally:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv = argv

    def call(self, *arguments: str) -> Result:
        """`genloss ...` in this process, which spares seconds of imports."""
        from genloss import cli

        out, err, code = io.StringIO(), io.StringIO(), 0
        with self.here(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main(list(arguments))
            except SystemExit as exit:
                code = int(exit.code or 0)
        return Result(code, out.getvalue(), err.getvalue())

    def ok(self, *arguments: str) -> Result:
        result = self.call(*arguments)
        assert result.code == 0, result.err
        return result

    def environment(self, **env: str) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, **self.env, "PATH": path, "COLUMNS": "120", "DVC_NO_ANALYTICS": "1", **env}

    def spawn(self, *command: str, cwd: Path | None = None, timeout: float = 300, **env: str) -> Result:
        """Any command in a process of its own; `genloss` and `dvc` are those of this interpreter."""
        if command[0] in ("genloss", "dvc"):
            command = (sys.executable, "-m", *command)
        done = subprocess.run(
            command,
            cwd=cwd or self.root,
            env=self.environment(**env),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def dvc(self, *arguments: str, cwd: Path | None = None) -> str:
        result = self.spawn("dvc", *arguments, cwd=cwd)
        assert result.code == 0, result.err + result.out
        return result.out + result.err

    def git(self, *arguments: str) -> None:
        command = ("git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments)
        result = self.spawn(*command)
        assert result.code == 0, result.err

    def stages(self) -> Counter:
        """How many stages of each kind the store holds."""
        return Counter(path.parent.name for path in self.store.glob("stages/*/*.json"))


def staged(**stages: dict[str, Any]) -> str:
    """A manifest as genloss wrote them before it sealed them, of stages of which so much matters."""
    empty = {"key": "", "files": {}, "result": {}, "seconds": 0.0}
    return json.dumps({"stages": {name: empty | said for name, said in stages.items()}})


def forked(home: Project, action: Callable[[], object], log: Path | None = None) -> int:
    """Fork a process that does something in `home` as a command does, its output in a file; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    with contextlib.suppress(BaseException):
        with (log or home.root.parent / "child.log").open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # not pytest's
        os.environ.update(home.env)
        os.chdir(home.root)
        try:
            action()
            code = 0
        except SystemExit as exit:
            code = int(exit.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def arms(overrides: Sequence[str], params: Mapping[str, str] | None = None) -> list[DictConfig]:
    """The configs of a sweep's arms, without running it. params: hydra.sweeper.params."""
    return [compose(job) for job in expand(OverridesParser.create(), params or {}, overrides)]


def experiment_arms(name: str, *overrides: str) -> list[DictConfig]:
    """The configs of the arms that `genloss run experiment=NAME OVERRIDES` runs."""
    chosen = [f"experiment={name}", *(o for o in overrides if o.startswith("experiment="))][-1]
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        node = hydra.compose("config", [chosen], return_hydra_config=True).hydra
    return arms([f"experiment={name}", *overrides], node.sweeper.params if node.mode == RunMode.MULTIRUN else None)


def fit_of(model: LabModel) -> Fit:
    """A fit of points that lie in memory: `Lab.estimate` reads none of the paths."""
    from genloss.core.contracts import Fit
    from genloss.domains.lab import ClosedForm

    nowhere = Path()
    return Fit(model, ClosedForm(), data=nowhere, shards=[], weights=[], start=None, seed=0, out=nowhere)


def killed(go: Callable[[], object]) -> bool:
    """Do something in a process of its own; whether it was killed."""
    pid = os.fork()
    if not pid:
        try:
            go()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def killer(step: int) -> Callable[[float, float, str], None]:
    def report(done: float, total: float, unit: str) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return report


def hashes(folder: Path, rounds: int | None = None) -> dict[str, str]:
    """sha256 of every data file of a run directory, read from disk; of rounds 0 to `rounds` alone if it is given."""
    found = {}
    for path in [*sorted(folder.glob("data/**/*")), *sorted(folder.glob("rounds/**/*"))]:
        name = path.relative_to(folder)
        if path.is_dir() or path.name in ("metrics.json", "manifest.json") or path.name.startswith("."):
            continue
        if rounds is None or name.parts[0] == "data" or int(name.parts[1]) <= rounds:
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def frozen(store: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every record of a finished stage."""
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in store.glob("stages/*/*.json")}


def described() -> Iterator[tuple[list[str], dict[str, str]]]:
    """(names, {column: cell}) of every row of the tables of docs/metrics.md. What begins with `_`, or stands after a
    name with a slash, takes the place of that name's end; a row without names is about those of the row above."""
    head: list[str] = []
    names: list[str] = []
    for line in (REPOSITORY / "docs/metrics.md").read_text().splitlines():
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not head:
            head = cells
        elif not set(cells[0]) <= set("-: ") or not cells[0]:
            found: list[str] = []
            for name in re.findall(r"`([^`]+)`", cells[0].partition("(")[0]):
                stem = found[-1] if found else ""
                if name.startswith("_"):
                    name = stem.rpartition("_")[0] + name
                elif "/" in stem and "/" not in name:
                    name = f"{stem.rpartition('/')[0]}/{name}"
                found.append(name)
            names = found or names
            yield names, dict(zip(head, cells, strict=True))


@cache
def documented() -> re.Pattern[str]:
    """Every name that docs/metrics.md has. Capitals stand for any word; an ellipsis stands for numbers."""
    found = []
    for each, cells in described():
        found += [re.sub(r"[A-Z]{2,}", ".+", re.escape(name)) for name in each]
        if "…" in cells["name"]:
            found.append(re.sub(r"\d+", r"\\d+", found[-1]))
    names = "|".join(found)
    return re.compile(rf"(theory/)?({names})(_low|_high)?(_floor|_se|_asymptotic|_limit)?")


def undocumented(names: Iterable[str]) -> list[str]:
    """Names of metrics.json that docs/metrics.md does not define."""
    return [name for name in names if not documented().fullmatch(name)]


# -- a chat endpoint ---------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """A chat endpoint; `behave(number of the request, its body)` says what comes back: text, or (status, bytes), and
    headers if there are any."""

    daemon_threads = True

    def __init__(self, behave: Callable[[int, dict[str, Any]], Any]):
        self.behave, self.lock = behave, threading.Lock()
        self.bodies: list[Any] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.given = 0  # replies with content
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are gone are what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
            self.server.paths.append(self.path)
        said = self.server.behave(number, body)
        if callable(said):
            said(self)
            return
        if isinstance(said, str):
            self.server.given += 1
            said = 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
        self.send_response(said[0])
        self.send_header("Content-Length", str(len(said[1])))
        for name, value in (said[2] if len(said) > 2 else {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said[1])

    def log_message(self, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def running(server: S) -> Iterator[S]:
    """A server at work in a thread; closed in the end."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serving(behave: Callable[[int, dict[str, Any]], Any]) -> contextlib.AbstractContextManager[Server]:
    return running(Server(behave))
