"""Studies: claims of published systems that no formula gives, tested over arms and seeds.

    genloss replicate llm2llm                  # run its sweeps (finished arms are kept), print its table
    genloss replicate llm2llm --write          # also into docs/llm2llm.md and docs/llm2llm.png

A study is an experiment of conf/experiment/, the sweeps that make its arms, and lines. A line compares arms of equal seeds
(`Contrast`), or follows one number over arms (`Trend`); a panel of the figure shows ours beside what was published. A study is
one file, studies/NAME.py, with a constant STUDY.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genloss.core.errors import UserError
from genloss.observatory.compare import SAME, Arms, Contrast, Outcome, Panel, Study, interval, judge
from genloss.observatory.figures import COLOURS, _bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = ("<!-- results: written by genloss replicate {} --write -->", "<!-- end of results -->")


def studies() -> list[Study]:
    """The studies of all systems: each in the module `study` of its folder."""
    from genloss import systems as package

    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package.__name__}.{name}.study").STUDY for name in names]


# -- arms ------------------------------------------------------------------------------------------------------------------


# -- statistics ------------------------------------------------------------------------------------------------------------


# -- running and showing ---------------------------------------------------------------------------------------------------


def run_sweep(study: Study, overrides: Sequence[str], jobs: int) -> list[Path]:
    """The arms of a sweep, run to their end or found finished. It is the user's own command: the arms are in runs/ and MLflow."""
    from genloss.core.places import project_root
    from genloss.observatory.results import arms_of

    command = [
        sys.executable,
        "-m",
        "genloss",
        "run",
        "-m",
        f"experiment={study.name}",
        *overrides,
        "hydra/launcher=joblib",
        f"hydra.launcher.n_jobs={jobs}",
        "runtime.workers=1",
    ]
    done = subprocess.run(command, cwd=project_root(), stdout=subprocess.PIPE, text=True, check=False)
    found = re.findall(r"^sweep: (.*)$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise UserError(
            study.name, " ".join(overrides), "did not finish (see above); the same command goes on from here"
        )
    return [folder for _, folder in arms_of(Path(found[-1]))]


def row(outcome: Outcome) -> list[str]:
    line = outcome.line
    if isinstance(line, Contrast):
        sign = f"within ±{line.margin:g}" if line.kind == SAME else "> 0"
    else:
        sign = "τ > 0"
    p = "" if isinstance(line, Contrast) and line.kind == SAME else f"{outcome.p:.3f}"
    return [
        line.states,
        sign,
        f"{outcome.mean:+.3f}",
        f"{outcome.low:+.3f} to {outcome.high:+.3f}",
        p,
        str(outcome.seeds),
        outcome.verdict,
    ]


HEAD = ["stated", "claim", "we measure", "95 %", "p", "seeds", "verdict"]


def markdown(study: Study, outcomes: Sequence[Outcome], arms: Arms) -> str:
    lines = [HEAD, ["---", "---", "---:", "---", "---:", "---:", "---"], *(row(o) for o in outcomes)]
    parts = ["\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)]
    for panel in study.panels:
        if panel.rounds:
            continue
        head = [panel.title, "mean", "95 %", *(["published"] if panel.published else [])]
        body = []
        for name, value in panel.values.items():
            mean, low, high = interval(list(arms.values(value).values()))
            known = panel.published.get(name)
            published = ["" if known is None else f"{known:g}"] if panel.published else []
            body.append([name, f"{mean:.3f}", f"{low:.3f} to {high:.3f}", *published])
        rows = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        parts.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in rows))
    return "\n\n".join(parts) + "\n"


def figure(study: Study, arms: Arms, path: Path) -> None:
    """Each panel, and before it what was published."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [
        (panel, published) for panel in study.panels for published in ((True, False) if panel.published else (False,))
    ]
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        across = len(shown) if len(shown) <= 3 else 3 if len(shown) != 4 else 2
        rows = [shown[i : i + across] for i in range(0, len(shown), across)]
        heights = [max([3.3, *(0.24 * len(p.values) for p, _ in row if not p.rounds)]) for row in rows]
        chart, axes = plt.subplots(
            len(rows),
            across,
            figsize=(3.9 * across, sum(heights)),
            layout="constrained",
            squeeze=False,
            gridspec_kw={"height_ratios": heights},
        )
        for axis in axes.flat[len(shown) :]:
            axis.axis("off")
        for axis, (panel, published) in zip(axes.flat, shown, strict=False):
            if published:
                names = [name for name in panel.values if name in panel.published]
                _bars(axis, names, [(panel.published[n],) * 3 for n in names], "#999999")
                title = panel.published_title or f"published: {panel.title}"
            else:
                (_lines if panel.rounds else _measured)(axis, panel, arms)
                title = f"ours: {panel.title}" if panel.published else panel.title
            axis.set_title(textwrap.fill(title, 30), fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{os.getpid()}-{path.name}")
        chart.savefig(aside, dpi=150, metadata={"Software": None})
        plt.close(chart)
    os.replace(aside, path)


def _measured(axis: Axes, panel: Panel, arms: Arms) -> None:
    found = {name: list(arms.values(value).values()) for name, value in panel.values.items()}
    _bars(axis, list(found), [interval(v) for v in found.values()], COLOURS[0])
    for at, each in zip(range(len(found))[::-1], found.values(), strict=True):
        axis.plot(each, [at] * len(each), "o", ms=2.5, color="#E69F00", zorder=3)


def _lines(axis: Axes, panel: Panel, arms: Arms) -> None:
    from matplotlib.ticker import MaxNLocator

    for i, (name, value) in enumerate(panel.values.items()):
        runs = list(arms.of(value.where).values())
        rounds = sorted(n for n in set.intersection(*(set(r) for r in runs)) if value.metric in runs[0][n])
        spread = np.array([interval([run[n][value.metric] for run in runs]) for n in rounds])
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(rounds, spread[:, 0], "o-", ms=3, lw=1.5, color=colour, label=name)
        axis.fill_between(rounds, spread[:, 1], spread[:, 2], color=colour, alpha=0.15, lw=0)
    axis.set_xlabel("round")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, fontsize=7)


def insert(page: str, name: str, results: str) -> str:
    """The page with the results between its marks; they are added at the end if it has none."""
    begin, end = MARKS[0].format(name), MARKS[1]
    block = f"{begin}\n\n{results}\n{end}"
    if begin in page and end in page:
        return page[: page.index(begin)] + block + page[page.index(end) + len(end) :]
    return f"{page.rstrip()}\n\n{block}\n" if page else f"{block}\n"


def replicate_study(study: Study, write: bool, jobs: int) -> int:
    """Run it, print its table, write it and the figure; 0 if every line holds, 1 otherwise."""
    from genloss.core.files import write_atomic
    from genloss.core.places import project_root
    from genloss.replicate import place

    folders = [folder for overrides in study.sweeps for folder in run_sweep(study, overrides, jobs)]
    arms = Arms(folders)
    outcomes = [judge(line, arms) for line in study.lines]
    text = markdown(study, outcomes, arms)
    print(f"{study.name} ({study.paper})\n\n{text}")
    out = project_root() / "docs" if write else place()
    page, image = out / f"{study.name}.md", out / f"{study.name}.png"
    old = page.read_text() if page.is_file() else ""
    write_atomic(page, insert(old, study.name, text))
    figure(study, arms, image)
    write_atomic(place() / f"{study.name}.json", json.dumps([row(o) for o in outcomes], indent=1))
    print(f"written: {page}, {image}")
    return 0 if all(o.verdict == "holds" for o in outcomes) else 1
