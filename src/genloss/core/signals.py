"""Signals that stop a command: Ctrl-C, a scheduler's SIGTERM, a terminal that closes. All end it alike, in every stage.

    with stoppable():        # around a command, and around a job in a worker of a launcher
        ...                  # Stopped is raised here; the processes that this one has started are told to end

What was finished stays, and the same command goes on from there: the exception is there to leave the terminal and
MLflow's states as they should be, and nothing depends on how far it gets."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
GRACE = 10.0  # seconds for what has to be tidied up, and for threads that compute


class Stopped(BaseException):
    """A signal came. No KeyboardInterrupt: Lightning takes that for its own and ends the process with 1."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(number)
        self.code = 128 + number  # as a shell says it

    def __str__(self) -> str:
        return f"genloss: interrupted ({signal.Signals(self.code - 128).name}); the same command goes on from here"


_stopped: list[int] = []  # the first signal; schedulers and wrappers send a second one at once


@contextlib.contextmanager
def stoppable(ends: bool = True) -> Iterator[None]:
    """What stops this process raises Stopped in its main thread. A signal that is ignored (nohup), or that something
    else handles (submitit), stays so. ends: whether the process is to end with it, soon and whatever hangs; else, as in
    a notebook, it goes on as if nothing had been."""
    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in STOPS if signal.getsignal(number) in DEFAULTS]

    def stop(number: int, frame: FrameType | None) -> None:
        if _stopped:
            return
        _stopped.append(number)
        if ends:
            last = threading.Timer(GRACE, _end, [number])
            last.daemon = True
            last.start()
        end_children()
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in ours}
    try:
        yield
    finally:
        if before and not (ends and _stopped):
            _stopped.clear()
            for number, handler in before.items():
                signal.signal(number, handler)


def _end(number: int) -> None:
    print(Stopped(number), file=sys.stderr, flush=True)
    os._exit(128 + number)


def end_children() -> None:
    """Tell every process that this one has started, and theirs, to end."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.terminate()
