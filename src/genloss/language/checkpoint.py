"""Checkpoints inside a training: where a killed one goes on, to the same bytes.

    checkpoints = Checkpoints(fit.scratch, fit.out, minutes=10)
    checkpoints.restore()                               # what was in `out`
    if last := checkpoints.last():                      # a folder
        go_on_from(last / STATE)
    ...
    if checkpoints.due(step):                           # asks the clock, and that seldom
        checkpoints.keep(step, save)                    # save(path) writes the state

The last one is kept, in the stage's scratch folder, whose name is the stage's key: config, data, seed and code are
those that it was written with. It appears under its name when it is complete. What it holds is the training's own
affair (Lightning's checkpoint, for most), but for one thing: plain values and tensors alone, so that no code of a file
is run when it is read.
"""

from __future__ import annotations

import pickle
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

STATE = "state"  # what a training goes on from
OUT = "out"  # copy of the files that it had written


class Checkpoints:
    """Those of one training that writes to `out`; off without a `scratch` folder, and with minutes=0.

    kind: what else a checkpoint must have been written with, such as the strategy of several devices. agree: of several
    processes that train together, gives all of them what the first one said; `main` is that one."""

    def __init__(
        self,
        scratch: Path | None,
        out: Path,
        minutes: float,
        kind: str = "step",
        agree: Callable[[int], int] = int,
        main: bool = True,
    ):
        self.folder, self.out = scratch / "checkpoints" if scratch and minutes else None, out
        self.seconds, self.kind, self.agree, self.main = 60 * minutes, kind, agree, main
        self._began = self._kept = time.monotonic()
        self._first: int | None = None  # step that was asked about
        self._next = 0

    def last(self, step: int | None = None) -> Path | None:
        """The folder of the last one, or of the last one up to `step`."""
        found = {int(path.name.rpartition("-")[2]): path for path in self._all()}
        known = [n for n in found if step is None or n <= step]
        return found[max(known)] if known else None

    def restore(self, step: int | None = None) -> None:
        """Make `out` what it was at `last(step)`; without one it is empty. Of a training that begins without
        checkpoints it is so already."""
        if self.folder is None and step is None:
            return
        shutil.rmtree(self.out, ignore_errors=True)
        if last := self.last(step):
            shutil.copytree(last / OUT, self.out)
        else:
            self.out.mkdir(parents=True)

    def due(self, step: int) -> bool:
        """Whether one should be kept after that step. The clock is asked at half of the steps that are left until
        then, if they go on as fast as they did, and after twice as many at most: processes need not agree at each."""
        if self.folder is None or step < self._next:
            return False
        now = time.monotonic()
        if self._first is None:
            self._began, self._first = now, step
        left = self._kept + self.seconds - now
        pace = (now - self._began) / max(1, step - self._first)
        wait = self.agree(0 if left <= 0 else max(1, min(int(left / max(pace, 1e-6) / 2), step - self._first)))
        self._next = step + max(1, wait)
        return wait == 0

    def keep(self, step: int, save: Callable[[Path], None]) -> None:
        """Keep the state after `step`, which `save` writes, with a copy of `out`; in all processes. What could not be
        written, or read again, turns checkpoints off with a warning: no training ends by it."""
        assert self.folder is not None
        aside, name = self.folder / ".new", self.folder / f"{self.kind}-{step:09d}"
        if self.main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        save(aside / STATE)
        fault = self._finish(aside) if self.main else ""
        if not self.agree(not fault):
            if self.main:
                said = f"{fault}; this training cannot go on from here after a kill"
                print(f"genloss: warning: no checkpoints are kept: {said}", file=sys.stderr)
                shutil.rmtree(aside, ignore_errors=True)
            self.folder = None
        elif self.main:
            before = self._all()
            aside.rename(name)
            for old in before:
                old.rename(aside)  # under its name it would be a whole one
                shutil.rmtree(aside)
        self._kept = time.monotonic()

    def _finish(self, aside: Path) -> str:
        """Copy what is written beside the state; returns what is wrong with both, '' if nothing."""
        import torch

        state = aside / STATE
        try:
            if not state.is_dir():  # of a strategy that writes shards
                torch.load(state, map_location="cpu", weights_only=True, mmap=True)  # its tensors are not read
            shutil.copytree(self.out, aside / OUT)
        except pickle.UnpicklingError:
            return "the state of one of trainer.callbacks holds more than plain values and tensors"
        except OSError as error:
            return f"{aside} cannot be written ({error.strerror})"
        return ""

    def _all(self) -> list[Path]:
        return [] if self.folder is None else list(self.folder.glob(f"{self.kind}-*"))
