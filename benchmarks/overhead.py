"""What genloss costs beside the models' work, on the default experiment.

    python benchmarks/overhead.py           # about seven minutes on two cores

Bounds: everything that is not model work under 10 % of a round; `dvc repro` within 1.3 times the same run in one
process; with nothing to do under 3 s; a finished sweep of twelve arms, called again, under 3 s of CPU;
`genloss --help` under 1 s."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import scratch, table

REPO = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

ROUNDS = """
import time, sys
from pathlib import Path
from genloss.workflow.compose import compose
from genloss.experiment import Experiment
from genloss.domains.text import Text
from genloss.language.trainer import Supervised
from genloss.workflow.arm import arm_dir, open_run
from genloss.loop import Loop
from genloss.workflow.tracking import Tracker
spent = 0.0
def timed(kind, name):
    inner = getattr(kind, name)
    def outer(*args, **kwargs):
        global spent
        began = time.perf_counter()
        result = inner(*args, **kwargs)
        if name == "sample":
            result = list(result)
        spent += time.perf_counter() - began
        return result
    setattr(kind, name, outer)
for kind, name in ((Supervised, "train"), (Text, "sample"), (Text, "losses")):
    timed(kind, name)
cfg = compose([])
marks = []
tracker = Tracker(arm_dir(cfg), cfg, None)
def after(n):
    tracker.round(n)
    marks.append((time.perf_counter(), spent))
Loop(Experiment(cfg), open_run(arm_dir(cfg), cfg)).run(after)
wall = marks[-1][0] - marks[0][0]
model = marks[-1][1] - marks[0][1]
print(wall / (len(marks) - 1), model / (len(marks) - 1))
"""


def project(folder: Path) -> Path:
    """A project of its own: conf/, dvc.yaml, params.yaml, an empty store."""
    folder.mkdir()
    shutil.copytree(REPO / "conf", folder / "conf")
    for name in ("params.yaml", "dvc.yaml"):
        text = (REPO / name).read_text()
        (folder / name).write_text("".join(s for s in text.splitlines(True) if s.strip() != "- src/genloss"))
    text = (
        (folder / "dvc.yaml")
        .read_text()
        .replace("    deps:\n    outs:", "    outs:")
        .replace("    deps:\n    params:", "    params:")
    )
    (folder / "dvc.yaml").write_text(text)
    shutil.copytree(REPO / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    config = folder / ".dvc" / "config"
    config.write_text(config.read_text().replace("[core]\n", "[core]\n    no_scm = true\n"))
    shutil.copy(REPO / ".dvcignore", folder)
    return folder


def timed(command: list[str], folder: Path) -> tuple[float, str]:
    """(seconds, standard output) of a command."""
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    env.pop("GENLOSS_PROJECT", None)
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - began, done.stdout


def cpu_again(command: list[str], folder: Path) -> float:
    """CPU seconds, of all processes, of a command that has been run before: the median of five."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    timed(command, folder)
    marks = [spent()]
    for _ in range(5):
        timed(command, folder)
        marks.append(spent())
    return statistics.median(after - before for before, after in itertools.pairwise(marks))


def main() -> None:
    with scratch() as name:
        base = Path(name)
        _, said = timed([sys.executable, "-c", ROUNDS], project(base / "rounds"))
        wall, model = map(float, said.split()[-2:])
        one, _ = timed([str(BIN / "genloss"), "run"], project(base / "run"))
        repro_project = project(base / "repro")
        repro, _ = timed([str(BIN / "dvc"), "repro"], repro_project)
        nothing = statistics.median(timed([str(BIN / "dvc"), "repro"], repro_project)[0] for _ in range(3))
        arms = ["-m", "domain=gaussian", "mixing=replace,accumulate,real_only", "seed=range(0,4)", "rounds=3"]
        sweep = cpu_again([str(BIN / "genloss"), "run", *arms], project(base / "sweep"))
        aid = statistics.median(timed([str(BIN / "genloss"), "--help"], base)[0] for _ in range(5))
        run_aid = statistics.median(timed([str(BIN / "genloss"), "run", "--help"], REPO)[0] for _ in range(5))
    table(
        "Overhead of the default experiment",
        ["", "measured", "bound"],
        [
            ["a round, in one process", f"{wall:.1f} s", ""],
            ["  of it not model work", f"{100 * (1 - model / wall):.1f} %", "10 %"],
            ["genloss run, all rounds, one process", f"{one:.1f} s", ""],
            ["dvc repro, a process a round", f"{repro:.1f} s = {repro / one:.2f} x", "1.3 x"],
            ["dvc repro with nothing to do", f"{nothing:.2f} s", "3 s"],
            ["a finished sweep of 12 arms, CPU", f"{sweep:.2f} s", "3 s"],
            ["genloss --help", f"{aid:.2f} s", "1 s"],
            ["genloss run --help", f"{run_aid:.2f} s", "1 s"],
        ],
    )


if __name__ == "__main__":
    main()
