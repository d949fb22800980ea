"""`genloss feedback RUN`: a page on which a person likes and dislikes images, and has the next round made of that.

genloss run experiment=fabric/person           # a model, no rounds yet
genloss feedback runs/images-...               # says which page to open; Ctrl-C ends it, the same command goes on

The session is a run directory beside RUN, with the suffix -feedback. What was clicked is config of its round,
`schedule.N.curation.clicks`, so params.yaml is all of the session: `genloss round` and `genloss verify` make the same
bytes of it again, and lineage, reports and DVC know it like any other run. RUN itself is left as it is.

The page is ours, asks nobody else for anything, and is there for this machine alone: a request that names another host
than the address that was printed, or comes from another page, is refused."""

from __future__ import annotations

import json
import os
import secrets
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
from omegaconf import DictConfig

from genloss.core import records
from genloss.core.errors import UserError
from genloss.core.files import write_atomic
from genloss.core.places import load_params, store_root
from genloss.core.rundir import RunDir, round_name
from genloss.core.store import Store
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.stages import GENERATE
from genloss.systems.fabric.curator import DISLIKED, LIKED, Clicks
from genloss.systems.fabric.recipe import Fabric
from genloss.workflow.compose import to_yaml
from genloss.workflow.dvc import dvc_yaml
from genloss.workflow.params import change

SUFFIX = "-feedback"
PAGE = Path(__file__).with_name("feedback.html")
LONGEST = 1 << 16  # bytes of a request
ROUNDS = 1000  # of a session


class Session:
    """A run directory whose next round waits for clicks. UserError: the run is none that a person can give feedback
    to."""

    def __init__(self, run: Path):
        run = run.resolve()
        self.folder = run if run.name.endswith(SUFFIX) else run.with_name(run.name + SUFFIX)
        there = (self.folder / "params.yaml").is_file()
        cfg = load_params((self.folder if there else run) / "params.yaml")
        names = [name for name, curator in Experiment(cfg).curators.items() if isinstance(curator, Clicks)]
        if not names or not isinstance(Experiment(cfg).recipe, Fabric):
            why = "takes no clicks (recipe=fabric curation=clicks); `genloss run experiment=fabric/person` makes one"
            raise UserError(str(run), None, why)
        self.name = names[0]
        if not there:
            write_atomic(self.folder / "params.yaml", to_yaml(cfg))
            self._write(change(self.folder / "params.yaml", ["rounds=0"]))
            origin = {"of": os.path.relpath(run, self.folder), "overrides": ["rounds=0"]}
            write_atomic(self.folder / "what_if.json", json.dumps(origin, indent=1))
        loop = self._loop(self._cfg)
        loop.prepare()
        loop.round(0)  # from the store, where RUN's model is
        self.answered = int(self._cfg.rounds)
        for n in range(1, self.answered + 1):
            loop.round(n)  # found, or what a kill has left undone
        self._ask()

    @property
    def _cfg(self) -> DictConfig:
        return load_params(self.folder / "params.yaml")

    def _write(self, cfg: DictConfig) -> None:
        path = self.folder / "params.yaml"
        write_atomic(path, to_yaml(cfg))
        write_atomic(path.with_name("dvc.yaml"), dvc_yaml(path, code=False))

    def _loop(self, cfg: DictConfig) -> Loop:
        return Loop(Experiment(cfg), RunDir(self.folder, Store(store_root())))

    @property
    def round(self) -> int:
        """The round that waits for clicks."""
        return self.answered + 1

    def _ask(self) -> None:
        """Draw the images of the next round; params.yaml does not know it until it is answered."""
        self._loop(change(self.folder / "params.yaml", [f"rounds={self.round}"])).do(GENERATE, self.round)

    def images(self, n: int) -> list[bytes]:
        """PNG bytes of the images of a round, answered or waiting."""
        table: pa.Table = records.read(self.folder / f"rounds/{round_name(n)}/generated.parquet", ["image"])
        found: list[bytes] = table.column("image").to_pylist()
        return found

    def clicks(self, n: int) -> dict[str, list[int]]:
        """What was clicked in a round that was answered."""
        said = self._cfg.schedule[str(n)].curation[self.name]
        return {key: list(said.get(key, [])) for key in (LIKED, DISLIKED)}

    def answer(self, n: int, liked: list[int], disliked: list[int]) -> None:
        """Finish round n by these clicks, and draw the next one. UserError: it is not the one that waits, or they are
        no clicks on its images."""
        if type(n) is not int or n != self.round:
            raise UserError("round", n, f"is not the one that waits, which is {self.round}; load the page again")
        if n >= ROUNDS:
            raise UserError("round", n, f"is the last: a session has at most {ROUNDS}")
        count = len(self.images(n))
        for key, numbers in ((LIKED, liked), (DISLIKED, disliked)):
            if not all(type(i) is int and 0 <= i < count for i in numbers):
                raise UserError(key, numbers, f"must be numbers of images from 0 to {count - 1}")
        if not liked:
            raise UserError(LIKED, "[]", "like at least one image")
        key = f"++schedule.{n}.curation.{self.name}"
        said = [f"{key}.{LIKED}={sorted(liked)}", f"{key}.{DISLIKED}={sorted(disliked)}"]
        cfg = change(self.folder / "params.yaml", [f"rounds={n}", *said])
        loop = self._loop(cfg)  # refuses what is both liked and disliked, before anything is written
        self._write(cfg)
        loop.round(n)
        self.answered = n
        self._ask()

    def state(self) -> dict[str, Any]:
        """What the page shows: the round that waits, how many images it has, and the rounds before it."""
        past = [{"round": n, "images": len(self.images(n)), **self.clicks(n)} for n in range(1, self.round)]
        return {"round": self.round, "images": len(self.images(self.round)), "past": past, "folder": self.folder.name}


class Server(ThreadingHTTPServer):
    """The page of a session on this machine. port 0: any that is free."""

    daemon_threads = True

    def __init__(self, session: Session, port: int):
        super().__init__(("127.0.0.1", port), Handler)
        self.session, self.lock = session, Lock()
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "genloss"
    sys_version = ""
    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for the address."""

    def _send(self, code: int, kind: str, body: bytes, policy: str = "default-src 'none'") -> None:
        self.send_response(code)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", f"{policy}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _json(self, code: int, said: Any) -> None:
        self._send(code, "application/json", json.dumps(said).encode())

    def _foreign(self) -> bool:
        """Whether another host is meant, as by a name that was bent to this machine, or another page asks."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host in self.server.hosts and origin in (None, f"http://{host}"):
            return False
        self._json(403, {"error": "this page is for its own address on this machine alone"})
        return True

    def do_GET(self) -> None:
        if self._foreign():
            return
        path, session = self.path, self.server.session
        if path == "/":
            nonce = secrets.token_urlsafe(16)
            own = "default-src 'none'; img-src 'self'; connect-src 'self'"
            policy = f"{own}; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
            html = PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
            self._send(200, "text/html; charset=utf-8", html.encode(), policy)
        elif path == "/state":
            with self.server.lock:
                self._json(200, session.state())
        elif (parts := path.split("/")) and len(parts) == 4 and parts[1] == "image" and path.isascii():
            numbers = [int(part) if part.isdigit() and len(part) < 7 else -1 for part in parts[2:]]
            images = session.images(numbers[0]) if 1 <= numbers[0] <= session.round else []
            if 0 <= numbers[1] < len(images):
                self._send(200, "image/png", images[numbers[1]])
            else:
                self._json(404, {"error": "there is no such image"})
        else:
            self._json(404, {"error": "there is nothing here"})

    def do_POST(self) -> None:
        if self._foreign():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/feedback" or self.headers.get("Content-Type") != "application/json":
            self._json(404, {"error": "there is nothing here"})
            return
        if not (length.isascii() and length.isdigit() and len(length) < 7 and int(length) <= LONGEST):
            self._json(413, {"error": f"a request has at most {LONGEST} bytes, and says how many"})
            return
        try:
            said = json.loads(self.rfile.read(int(length)))
            n, liked, disliked = said["round"], list(said[LIKED]), list(said[DISLIKED])
        except (ValueError, TypeError, KeyError, RecursionError):
            self._json(400, {"error": "that is no feedback: round, liked and disliked are wanted"})
            return
        with self.server.lock:
            try:
                self.server.session.answer(n, liked, disliked)
                self._json(200, self.server.session.state())
            except UserError as error:
                self._json(409, {"error": str(error)})


def feedback(run: Path, port: int) -> int:
    """Serve the page until the command is stopped."""
    session = Session(run)
    try:
        server = Server(session, port)
    except OSError as error:
        raise UserError("--port", port, f"cannot be used ({error.strerror}); choose another, or 0 for any") from None
    print(f"session: {os.path.relpath(session.folder)}\n\nopen: {server.address}\n", flush=True)
    with server:
        server.serve_forever()
    return 0
