"""`genloss feedback`: a session of clicks is a run; the page, asked as a browser asks, and used in one."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genloss.core import records
from genloss.core.errors import UserError
from genloss.core.places import load_params
from genloss.workflow.feedback import Server, Session
from support import Project, running

CHROMIUM = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
TINY = [
    "experiment=fabric/person",
    "size=64",
    "trainer.steps=4",
    "trainer.batch=8",
    "model.channels=[8,16]",
    "recipe.n=4",
    "recipe.steps=2",
    "tracking=none",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    project = Project.make(tmp_path_factory.mktemp("feedback") / "project")
    project.ok("run", *TINY)
    (made,) = (project.root / "runs").glob("images-*")
    return project, made


@pytest.fixture
def session(run: tuple[Project, Path]) -> Iterator[Session]:
    project, made = run
    shutil.rmtree(made.with_name(made.name + "-feedback"), ignore_errors=True)
    with project.here():
        yield Session(made)


def served(session: Session) -> contextlib.AbstractContextManager[Server]:
    return running(Server(session, 0))


def asked(server: Server, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
    link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=120)
    known = {"Host": f"127.0.0.1:{server.server_port}"} | ({"Content-Type": "application/json"} if body else {})
    text = body if isinstance(body, str | None) else json.dumps(body)
    link.request(method, path, text, {**known, **{k.replace("_", "-"): v for k, v in headers.items()}})
    answer = link.getresponse()
    data, said = answer.read(), dict(answer.getheaders())
    link.close()
    return answer.status, json.loads(data) if said["Content-Type"] == "application/json" else data, said


# -- a session is a run ------------------------------------------------------------------------------------------------


def test_clicks_make_rounds(session: Session, run: tuple[Project, Path]) -> None:
    project, made = run
    before = (made / "params.yaml").read_bytes()
    assert session.round == 1 and len(session.images(1)) == 4
    session.answer(1, [2, 0], [3])
    session.answer(2, [1], [])
    kept = records.read(session.folder / "rounds/01/kept.parquet").column("id").to_pylist()
    shown = records.read(session.folder / "rounds/01/generated.parquet").column("id").to_pylist()
    assert kept == [shown[0], shown[2]] and session.round == 3
    parents = records.read(session.folder / "rounds/02/generated.parquet").column("parents").to_pylist()
    assert parents == [[shown[0], shown[2], shown[3]]] * 4
    assert session.clicks(1) == {"liked": [0, 2], "disliked": [3]} and session.clicks(2)["disliked"] == []
    assert load_params(session.folder / "params.yaml").rounds == 2 and (made / "params.yaml").read_bytes() == before
    assert project.ok("verify", str(session.folder)).code == 0
    assert project.ok("report", str(session.folder)).code == 0


def test_a_session_goes_on_where_it_was_left_and_is_replayed(session: Session, run: tuple[Project, Path]) -> None:
    project, made = run
    session.answer(1, [1], [0])
    waits = session.images(2)
    again = Session(made)
    assert again.round == 2 and again.images(2) == waits and Session(session.folder).round == 2
    replay = Project.make(project.root.parent / f"replay-{time.monotonic_ns()}")
    folder = replay.root / "runs/again"
    folder.mkdir(parents=True)
    shutil.copy(session.folder / "params.yaml", folder)  # all of a session
    for n in (0, 1):
        replay.ok("round", str(n), "--dir", str(folder))
    for name in ("generated", "kept", "rejected"):
        path = f"rounds/01/{name}.parquet"
        assert (folder / path).read_bytes() == (session.folder / path).read_bytes()


@pytest.mark.parametrize(
    ("n", "liked", "disliked", "says"),
    [
        (1, [], [0], r"liked=\[\]: like at least one image"),
        (1, [4], [], r"liked=\[4\]: must be numbers of images from 0 to 3"),
        (1, [0], [-1], r"disliked=\[-1\]: must be numbers"),
        (1, ["0"], [], r"liked=\['0'\]: must be numbers"),
        (1, [True], [], "must be numbers"),
        (1, [0], [0], "both"),
        (1, [0, 0], [], "each once"),
        (2, [0], [], "round=2: is not the one that waits, which is 1"),
        (1.0, [0], [], "is not the one that waits"),
    ],
)
def test_clicks_that_are_refused(session: Session, n: Any, liked: list[Any], disliked: list[Any], says: str) -> None:
    before = (session.folder / "params.yaml").read_bytes()
    with pytest.raises(UserError, match=says):
        session.answer(n, liked, disliked)
    assert (session.folder / "params.yaml").read_bytes() == before and session.round == 1


def test_a_run_that_takes_no_clicks(project: Path, tmp_path: Path) -> None:
    from genloss.workflow.compose import compose, to_yaml

    (tmp_path / "params.yaml").write_text(to_yaml(compose(["experiment=fabric"])))
    with pytest.raises(
        UserError, match=r"takes no clicks \(recipe=fabric curation=clicks\); .*experiment=fabric/person"
    ):
        Session(tmp_path)


# -- the page ----------------------------------------------------------------------------------------------------------


def test_what_the_server_answers(session: Session) -> None:
    with served(session) as server:
        code, html, said = asked(server, "GET", "/")
        assert code == 200 and b"http" not in html.replace(b"https", b"http") and b"NONCE" not in html
        assert "default-src 'none'" in said["Content-Security-Policy"]
        assert asked(server, "GET", "/state")[1] == {
            "round": 1, "images": 4, "past": [], "folder": session.folder.name,
        }  # fmt: skip
        assert asked(server, "GET", "/image/1/3")[1] == session.images(1)[3]
        for path in (
            "/image/1/4",
            "/image/2/0",
            "/image/0/0",
            "/image/1/-1",
            "/image/1/%D9%A3",
            "/image/1",
            "/../params.yaml",
        ):
            assert asked(server, "GET", path)[0] == 404, path
        code, state, _ = asked(server, "POST", "/feedback", {"round": 1, "liked": [2], "disliked": [0]})
        assert code == 200 and state["round"] == 2
        assert state["past"] == [{"round": 1, "images": 4, "liked": [2], "disliked": [0]}]
        code, state, _ = asked(server, "POST", "/feedback", {"round": 1, "liked": [2], "disliked": [0]})
        assert code == 409 and "is not the one that waits" in state["error"]  # sent twice


def test_what_the_server_refuses(session: Session) -> None:
    fine = {"round": 1, "liked": [2], "disliked": [0]}
    with served(session) as server:
        own = f"http://127.0.0.1:{server.server_port}"
        for headers in (
            {"Host": "evil.example"},
            {"Host": f"evil.example:{server.server_port}"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": own.replace("http", "https")},
        ):
            for method, path, body in (("GET", "/", None), ("GET", "/state", None), ("POST", "/feedback", fine)):
                assert asked(server, method, path, body, **headers)[0] == 403, headers
        assert asked(server, "POST", "/feedback", fine, Content_Type="text/plain")[0] == 404
        assert asked(server, "POST", "/feedback", "x" * 70_000)[0] == 413
        for text in ("no json", "[]", "{}", '{"round": 1, "liked": 3, "disliked": []}', "[" * 50_000):
            assert asked(server, "POST", "/feedback", text)[0] == 400, text[:9]
        assert session.round == 1
        assert asked(server, "POST", "/feedback", fine, Origin=own)[0] == 200
        assert server.server_address[0] == "127.0.0.1"


class Browser:
    """Chromium by its debugging pipe: messages of JSON that end in a zero byte, on descriptors 3 and 4."""

    def __init__(self, folder: Path):
        assert CHROMIUM
        to_browser, self.to = os.pipe()
        self.back, from_browser = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        flags += ["--disable-component-update", "--disable-sync", "--window-size=900,900", "--remote-debugging-pipe"]
        command = [CHROMIUM, *flags, f"--user-data-dir={folder}", "about:blank"]
        script = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command], pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self.number, self.rest, self.session = 0, b"", ""
        target = next(t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        os.write(self.to, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                read = os.read(self.back, 1 << 16)
                assert read, "the browser has ended"
                self.rest += read
            one, _, self.rest = self.rest.partition(b"\0")
            if (said := json.loads(one)).get("id") == self.number:
                assert "error" not in said, said
                result: dict[str, Any] = said["result"]
                return result

    def value(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def until(self, expression: str) -> None:
        end = time.monotonic() + 90
        while not self.value(expression):
            assert time.monotonic() < end, f"{expression}: {self.value('document.body.innerText')}"
            time.sleep(0.1)

    def press(self, key: str) -> None:
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, **({"text": text} if text else {}))
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, selector: str) -> None:
        box = self.value(
            f"(() => {{ const b = document.querySelector('{selector}').getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.to)
        os.close(self.back)


def test_a_browser_by_mouse_and_by_keyboard(session: Session, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: how a browser uses the page is not tested")
    with served(session) as server:
        browser = Browser(tmp_path / "browser")
        try:
            browser.ask("Page.navigate", url=server.address)
            browser.until("document.querySelectorAll('#images img').length === 4")
            browser.until("[...document.images].every(i => i.complete && i.naturalWidth === 8)")
            assert browser.value("document.getElementById('next').disabled")
            browser.click("#images button:nth-child(2)")
            browser.click("#images button:nth-child(4)")
            browser.click("#images button:nth-child(4)")
            assert browser.value("document.getElementById('said').innerText") == "1 liked, 1 disliked"
            if place := os.environ.get("GENLOSS_SCREENSHOT"):
                shot = browser.ask("Page.captureScreenshot")["data"]
                Path(place).write_bytes(base64.b64decode(shot))
            browser.click("#next")
            browser.until("document.getElementById('round').innerText === '2' && document.images.length === 8")
            assert session.clicks(1) == {"liked": [1], "disliked": [3]}
            for key in ("ArrowRight", "l", "ArrowLeft", "d", "ArrowRight", "ArrowRight", "l", "l", "Enter"):
                browser.press(key)  # the last l takes the one before it back
            browser.until("document.getElementById('round').innerText === '3' && document.images.length === 12")
            assert session.clicks(2) == {"liked": [1], "disliked": [0]}
            marks = "[...document.querySelectorAll('.past img')].map(i => i.dataset.mark)"
            assert browser.value(marks) == ["disliked", "liked", "", "", "", "liked", "", "disliked"]
            if place:
                shot = browser.ask("Page.captureScreenshot")["data"]
                Path(place).with_suffix(".later.png").write_bytes(base64.b64decode(shot))
        finally:
            browser.close()
