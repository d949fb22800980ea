"""Progress: a live table on a terminal, plain lines in a file; the same source for one arm or many processes.

Every arm writes its state to a small JSON file (atomically, at most five times a second). On a terminal one thread of
the main process draws a table of them; elsewhere each arm prints a line when a stage ends. Nothing is printed on
standard output.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from genloss.core.files import write_atomic

EVERY = 0.2  # seconds between two writes of a state
LINE = 30.0  # seconds between two plain lines inside a stage
ENDED = ("finished", "failed")


class Progress:
    """State of one arm. `stage` wraps a stage and yields the function that the stage reports with."""

    def __init__(self, arm: str, rounds: int, state: Path | None = None, lines: bool = True):
        self.arm, self.rounds, self.state, self.lines = arm, rounds, state, lines
        self.began = time.time()
        self._now: dict[str, Any] = {}
        self._written = 0.0

    @classmethod
    def silent(cls) -> Progress:
        return cls("", 0, None, lines=False)

    @contextlib.contextmanager
    def stage(self, n: int, stage: str) -> Iterator[Callable[..., None]]:
        began = printed = time.perf_counter()
        self._now = {"round": n, "stage": stage, "waiting": False}
        self._write(force=True)
        worked = False

        def report(done: float, total: float, unit: str) -> None:
            nonlocal worked, printed
            worked = True
            seconds = max(1e-9, time.perf_counter() - began)
            self._now |= {
                "done": done,
                "total": total,
                "unit": unit,
                "rate": done / seconds,
                "left": seconds * (total - done) / max(done, 1),
            }
            self._write()
            if self.lines and time.perf_counter() - printed > LINE:
                printed = time.perf_counter()
                self._line(f"round {n} {stage}: {done:.0f}/{total:.0f} {unit}, {self._now['left']:.0f} s left")

        yield report
        if worked and self.lines:
            now = self._now
            seconds = time.perf_counter() - began
            self._line(f"round {n}/{self.rounds} {stage}: {now['total']:.0f} {now['unit']} in {seconds:.1f} s")

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
                json.dumps({"arm": self.arm, "rounds": self.rounds, "began": self.began, **self._now}),
                False,
            )

    def _line(self, text: str) -> None:
        print(f"{self.arm}: {text}", file=sys.stderr, flush=True)


class Live:
    """Draws the states below `folder` on a terminal until closed."""

    def __init__(self, folder: Path, total: int):
        self.folder, self.total = folder, total
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)

    def __enter__(self) -> Live:
        if sys.stderr.isatty():
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=3)

    def _draw(self) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        with RichLive(console=Console(stderr=True), refresh_per_second=4, transient=True) as screen:
            while not self._stop.wait(0.25):
                screen.update(self.table())

    def states(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.read_text()))
        return found

    def table(self) -> Any:
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        states = sorted(self.states(), key=lambda s: s.get("stage") in ENDED)  # a small screen cuts off what has ended
        if not states:
            return "starting ..."
        over = sum(s.get("stage") in ENDED for s in states)
        title = f"{over} of {self.total} arms have ended" if self.total > 1 else None
        table = Table(
            title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
        )
        for name in ("arm", "round", "stage", "", "rate", "left", "arm left"):
            right = name in ("round", "rate", "left", "arm left")
            least = 8 if name == "stage" else None  # so that the columns do not jump
            table.add_column(name, justify="right" if right else "left", no_wrap=True, min_width=least)
        for s in states:
            total = s.get("total") or 1  # "waits": another arm computes the stage that this one needs
            bar = ProgressBar(total=total, completed=s.get("done", 0), width=12) if "done" in s else ""
            stage = "waits" if s.get("waiting") else s.get("stage", "")
            rate = f"{s['rate']:.0f} {s['unit']}/s" if "rate" in s else ""
            table.add_row(
                escape(s["arm"]),
                f"{s.get('round', 0)}/{s['rounds']}",
                stage,
                bar,
                rate,
                clock(s.get("left")),
                clock(arm_left(s)),
            )
        return table


def arm_left(state: dict[str, Any]) -> float | None:
    """Seconds that an arm still needs, if its coming rounds take as long as its past ones; None before the first."""
    done = state.get("round", 0)
    if done < 1 or state.get("stage") in ENDED:
        return None
    return (time.time() - state["began"]) / done * (state["rounds"] + 1 - done)


def clock(seconds: float | None) -> str:
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
