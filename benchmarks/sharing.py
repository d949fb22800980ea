"""Work done against work requested, for a sweep whose arms share their first stages.

    python benchmarks/sharing.py            # about a minute

Four regimes over the same real data share data, round 0 and the first generation. Serially and with two jobs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from common import scratch, table
from overhead import project

SWEEP = [
    "-m",
    "mixing=real_only,replace,accumulate,replace_keep",
    "rounds=2",
    "size=128",
    "trainer.steps=20",
    "recipe.chunk=64",
    "tracking=none",
]
STAGES = ("data", "generate", "curate", "mix", "train", "evaluate")


def count(folder: Path, extra: list[str]) -> dict[str, int]:
    env = {k: v for k, v in os.environ.items() if k != "GENLOSS_PROJECT"}
    subprocess.run(
        [sys.executable, "-m", "genloss", "run", *SWEEP, *extra], cwd=folder, env=env, check=True, capture_output=True
    )
    return {s: len(list((folder / ".genloss/store/stages" / s).glob("*.json"))) for s in STAGES}


def main() -> None:
    arms, rounds = 4, 2
    requested = {
        s: arms * (1 if s == "data" else rounds if s in ("generate", "curate") else rounds + 1) for s in STAGES
    }
    with scratch() as name:
        serial = count(project(Path(name) / "serial"), [])
        parallel = count(project(Path(name) / "parallel"), ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])
    rows = [[s, str(requested[s]), str(serial[s]), str(parallel[s])] for s in STAGES]
    total = [sum(x.values()) for x in (requested, serial, parallel)]
    rows.append(["all", *(str(t) for t in total)])
    table(
        "Sharing: stages of a sweep of 4 arms over 2 rounds",
        ["stage", "requested", "done, serial", "done, 2 jobs"],
        rows,
    )
    print(f"\nwork done / work requested: {total[1] / total[0]:.2f} serially, {total[2] / total[0]:.2f} with two jobs")


if __name__ == "__main__":
    main()
