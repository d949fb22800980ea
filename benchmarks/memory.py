"""Peak memory over the rounds of accumulate with a fixed step budget.

    python benchmarks/memory.py             # about a minute

The bound: from round 2 to round 10 within 5 %.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from common import scratch, table
from overhead import project

ROUNDS = """
import resource
from genloss.workflow.compose import compose
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.workflow.arm import arm_dir, open_run
cfg = compose(["mixing=accumulate", "rounds=10", "trainer.steps=60", "tracking=none", "runtime.workers=1"])
def peak(n):
    value = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew for every round
    print(n, value, flush=True)
Loop(Experiment(cfg), open_run(arm_dir(cfg), cfg)).run(peak)
"""


def main() -> None:
    with scratch() as name:
        folder = project(Path(name) / "project")
        env = {k: v for k, v in os.environ.items() if k != "GENLOSS_PROJECT"}
        done = subprocess.run(
            [sys.executable, "-c", ROUNDS], cwd=folder, env=env, capture_output=True, text=True, check=True
        )
    peaks = {int(n): int(kb) / 1024 for n, kb in (line.split() for line in done.stdout.splitlines())}
    table(
        "Peak memory of accumulate",
        ["round", "peak MB", "against round 2"],
        [[str(n), f"{mb:.0f}", f"{100 * (mb / peaks[2] - 1):+.1f} %"] for n, mb in peaks.items()],
    )
    late = [mb / peaks[2] - 1 for n, mb in peaks.items() if n >= 2]
    print(f"\nfrom round 2 to 10: {100 * min(late):+.1f} % to {100 * max(late):+.1f} %; bound: 5 %")


if __name__ == "__main__":
    main()
