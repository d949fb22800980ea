"""A warm process for `dvc repro`: DVC starts a process a round, and importing torch, transformers and lightning takes
seconds.

The first `genloss round` that DVC calls starts a server in the background that only imports; every later round is a
fork of it, an ordinary process of its own that starts in milliseconds. The server never computes, so a fork of it is as
clean as a new process. It ends when nothing has used it for `IDLE` seconds. Its address contains a fingerprint of
genloss's source, so that edited code never meets an old server. Without it (GENLOSS_WARM=0, or anything fails) a round
just pays for its imports.

    python -m genloss serve SOCKET          # what `held` runs; no verb for users
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from genloss.core.signals import end_children

IDLE = 30.0  # seconds
PRELOAD = (  # what a round imports
    "torch",
    "genloss.language.sampling",
    "genloss.language.scoring",
    "genloss.language.training",
    "genloss.workflow.arm",
)

Main = Callable[[list[str]], None]  # runs a command; its exit code is that of SystemExit, or 0


def address() -> Path:
    """A socket for this user, interpreter and state of the source."""
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    state = [sys.executable, *(f"{p}:{p.stat().st_mtime_ns}" for p in sources)]
    digest = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"genloss-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder / f"{digest}.sock"


def wanted() -> bool:
    return bool(os.environ.get("DVC_STAGE")) and os.environ.get("GENLOSS_WARM", "1") != "0"


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Start a server and keep it from idling out while this process works."""
    subprocess.Popen(
        [sys.executable, "-m", "genloss", "serve", str(path)],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    hold = path.with_suffix(f".{os.getpid()}.hold")
    hold.touch()
    try:
        yield
    finally:
        hold.unlink(missing_ok=True)


def run(arguments: list[str], cold: Callable[[], int]) -> int:
    """Run `genloss ARGUMENTS` in a fork of the server if there is one, else by `cold` in this process."""
    if not wanted():
        return cold()
    try:
        path = address()
        code = _ask(path, arguments)
    except OSError:
        return cold()
    if code is not None:
        return code
    with held(path):
        return cold()


def _ask(path: Path, arguments: list[str]) -> int | None:
    """The exit code of the command in a fork of the server; None if no server answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        try:
            link.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        request = json.dumps({"arguments": arguments, "cwd": str(Path.cwd()), "env": dict(os.environ)}).encode()
        socket.send_fds(link, [len(request).to_bytes(4, "big")], [1, 2])
        link.sendall(request)
        answer = link.recv(4)
        return int.from_bytes(answer, "big") if len(answer) == 4 else 1


def serve(path: Path, main: Main) -> int:
    """Import, then fork for every request, and let `main` run it in the fork, until idle. Returns 0."""
    for module in PRELOAD:
        importlib.import_module(module)
    import torch

    torch.set_num_threads(1)  # no thread pool exists when it forks
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        aside = path.with_suffix(f".{os.getpid()}")
        server.bind(str(aside))
        server.listen()
        server.settimeout(1.0)
        os.replace(aside, path)
        mine = path.stat().st_ino
        children: set[int] = set()
        used = time.monotonic()
        while time.monotonic() - used < IDLE:
            children -= {pid for pid in children if os.waitpid(pid, os.WNOHANG)[0]}
            if children or any(_alive(hold) for hold in path.parent.glob(f"{path.stem}.*.hold")):
                used = time.monotonic()
            try:
                link, _ = server.accept()
            except TimeoutError:
                continue
            used = time.monotonic()
            pid = os.fork()
            if pid == 0:
                server.close()
                _child(link, main)
            children.add(pid)
            link.close()
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == mine:
                path.unlink()
    return 0


def _alive(hold: Path) -> bool:
    """Whether the process that holds the server is there; its file goes if it is not."""
    pid = int(hold.suffixes[-2][1:])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        hold.unlink(missing_ok=True)
        return False
    return True


def _child(link: socket.socket, main: Main) -> None:
    """Be the process that the client asked for, and tell it the exit code. It dies with the client (DVC, Ctrl-C)."""
    code = 1
    try:
        head, descriptors, _, _ = socket.recv_fds(link, 4, 2)
        size = int.from_bytes(head, "big")
        body = b""
        while len(body) < size:
            part = link.recv(size - len(body))
            if not part:
                os._exit(1)
            body += part
        request = json.loads(body)
        for source, target in zip(descriptors, (1, 2), strict=True):
            os.dup2(source, target)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        os.environ["GENLOSS_WARM"] = "0"
        _die_with(link)
        try:
            main(request["arguments"])
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
        link.sendall(code.to_bytes(4, "big"))
    finally:
        os._exit(code)


def _die_with(link: socket.socket) -> None:
    """End this process, and what it has started, when the client's end of the connection closes: what kills the client
    kills the work."""
    import threading

    def watch() -> None:
        with contextlib.suppress(OSError):
            if link.recv(1) == b"":
                end_children()
                os._exit(130)

    threading.Thread(target=watch, daemon=True).start()
