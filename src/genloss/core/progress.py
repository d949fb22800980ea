"""Progress: a live table on a terminal, plain lines in a file; the same source for one arm or many processes.

Every arm writes its state to a small JSON file (atomically, at most five times a second). On a terminal one thread of
the main process draws a table of them; elsewhere each arm prints a line when a stage ends. Nothing is printed on
standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from genloss.core.files import write_atomic

ROOM = 67  # columns of the table beside the arm's name
EVERY = 0.2  # seconds between two writes of a state
LINE = 30.0  # seconds between two plain lines inside a stage
SEEN = 0.02  # of a stage, after which the time that is left is told
ENDED = ("finished", "failed")


def drawn() -> bool:
    """Whether a table can be drawn: on a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown", "")


class Progress:
    """State of one arm. `stage` wraps a stage and yields the function that the stage reports with."""

    def __init__(self, arm: str, rounds: int, state: Path | None = None, lines: bool = True):
        self.arm, self.rounds, self.state, self.lines = arm, rounds, state, lines
        self.loss: float | None = None  # of the last training
        self._rounds: list[float] = []  # seconds of the rounds in which something was computed
        self._began, self._number, self._worked = time.time(), -1, False  # of the round that runs
        self._now: dict[str, Any] = {}
        self._written = 0.0

    @classmethod
    def silent(cls) -> Progress:
        return cls("", 0, None, lines=False)

    @contextlib.contextmanager
    def stage(self, n: int, stage: str) -> Iterator[Callable[..., None]]:
        began = printed = time.perf_counter()
        if n != self._number:
            self._rounds += [time.time() - self._began] if self._worked else []
            self._began, self._number, self._worked = time.time(), n, False
        self._now = {"round": n, "stage": stage, "waiting": False}
        self._write(force=True)
        worked = False

        def report(done: float, total: float, unit: str) -> None:
            nonlocal worked, printed
            worked = self._worked = True
            seconds = max(1e-9, time.perf_counter() - began)
            self._now |= {
                "done": done,
                "total": total,
                "unit": unit,
                "rate": done / seconds,
                # the first step takes what every first step takes
                "left": seconds * (total - done) / done if done > max(1, SEEN * total) else None,
            }
            self._write()
            if self.lines and time.perf_counter() - printed > LINE:
                printed = time.perf_counter()
                left = f", {clock(self._now['left'])} left" if self._now["left"] is not None else ""
                self._line(f"round {n}/{self.rounds} {stage}: {done:.0f}/{total:.0f} {unit}{left}")

        yield report
        if worked and self.lines:
            now = self._now
            seconds = time.perf_counter() - began
            loss = f", loss {self.loss:.3f}" if stage == "train" and self.loss is not None else ""
            self._line(f"round {n}/{self.rounds} {stage}: {now['total']:.0f} {now['unit']} in {seconds:.1f} s{loss}")

    def waiting(self) -> None:
        """Another arm is computing the stage that this one needs."""
        self._now["waiting"] = True
        self._write(force=True)

    def note(self, text: str) -> None:
        """A line that is worth reading on a terminal too."""
        if self.arm:
            self._line(text)

    def end(self, state: str) -> None:
        self._now = {"round": self.rounds, "stage": state}
        self._write(force=True)

    def _write(self, force: bool = False) -> None:
        now = time.monotonic()
        if self.state is None or (not force and now - self._written < EVERY):
            return
        self._written = now
        with contextlib.suppress(OSError):  # progress is never a reason to fail
            write_atomic(
                self.state,
                json.dumps({"arm": self.arm, "rounds": self.rounds, **self._pace(), **self._now}),
                False,
            )

    def _pace(self) -> dict[str, Any]:
        """When this round began, how long the ones before it took (seconds), and the last loss."""
        pace = sum(self._rounds) / len(self._rounds) if self._rounds else None
        return {"began": self._began, "pace": pace, "loss": self.loss}

    def _line(self, text: str) -> None:
        print(f"{self.arm}: {text}", file=sys.stderr, flush=True)


class Live:
    """Draws the states below `folder` on a terminal until closed."""

    def __init__(self, folder: Path, total: int):
        self.folder, self.total = folder, total
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)

    def __enter__(self) -> Live:
        if drawn():
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=3)

    def _draw(self) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        console = Console(stderr=True)
        with RichLive(console=console, refresh_per_second=4, transient=True) as screen:
            while not self._stop.wait(0.25):
                screen.update(self.table(console.width))

    def states(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.read_text()))
        return found

    def table(self, width: int) -> Any:
        """The arms, in `width` columns."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        states = sorted(self.states(), key=lambda s: s.get("stage") in ENDED)  # a small screen cuts off what has ended
        if not states:
            return "starting ..."
        over = sum(s.get("stage") in ENDED for s in states)
        left = all_left(states, self.total)
        title = f"{over} of {self.total} arms have ended" + (f", {clock(left)} left" if left else "")
        table = Table(
            title=title if self.total > 1 else None,
            title_justify="left",
            title_style="",
            box=SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for name in ("arm", "round", "stage", "", "loss", "rate", "left", "arm left"):
            right = name not in ("arm", "stage")
            least = 8 if name == "stage" else None  # so that the columns do not jump
            table.add_column(name, justify="right" if right else "left", no_wrap=True, min_width=least)
        for s in states:
            table.add_row(
                escape(cut(s["arm"], max(9, width - ROOM))),
                f"{s.get('round', 0)}/{s['rounds']}",
                "waits" if s.get("waiting") else s.get("stage", ""),  # for another arm, which computes what it needs
                f"{100 * s['done'] / (s.get('total') or 1):.0f}%" if "done" in s else "",
                "" if s.get("loss") is None else f"{s['loss']:.3f}",
                f"{s['rate']:.0f} {s['unit']}/s" if "rate" in s else "",
                clock(s.get("left")),
                clock(arm_left(s)),
            )
        return table


def cut(name: str, room: int) -> str:
    """A name in at most `room` characters; it is its beginning and its end (the seed) that tell arms apart."""
    half = (room - 1) // 2
    return name if len(name) <= room else f"{name[: room - 1 - half]}…{name[-half:]}"


def arm_left(state: dict[str, Any]) -> float | None:
    """Seconds that an arm still needs, if its coming rounds take as long as those that it has computed; at least what
    its stage needs. None before the first, and after the last."""
    pace = state.get("pace")
    if pace is None or state.get("stage") in ENDED:
        return None
    this = max(0.0, state.get("left") or 0.0, pace - (time.time() - state["began"]))
    return this + pace * (state["rounds"] - state["round"])


def all_left(states: list[dict[str, Any]], total: int) -> float | None:
    """Seconds that the arms of a sweep still need, if those that have not begun take as long as those that run, and as
    many run at a time."""
    running = [s for s in states if arm_left(s) is not None]
    if not running:
        return None
    whole = sum(s["pace"] * (s["rounds"] + 1) for s in running) / len(running)
    return max(arm_left(s) or 0.0 for s in running) + (total - len(states)) * whole / len(running)


def clock(seconds: float | None) -> str:
    """minutes:seconds, or hours:minutes:seconds."""
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
