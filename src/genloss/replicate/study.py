"""Studies: claims of published systems that no formula gives, tested over arms and seeds.

    genloss replicate llm2llm                  # run its sweeps (finished arms are kept), print its table
    genloss replicate llm2llm --write          # also into docs/llm2llm.md and docs/llm2llm.png

A study is an experiment of conf/experiment/, the sweeps that make its arms, and lines. A line compares arms of equal
seeds (`Contrast`), or follows one number over arms (`Trend`); a panel of the figure shows ours beside what was
published. It is one file, systems/NAME/study.py, with a constant STUDY; genloss.observatory.compare has what it is
made of.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from genloss import systems
from genloss.core.errors import NotThere, UserError
from genloss.core.files import write_atomic
from genloss.core.places import conf_dir, project_root
from genloss.experiment import Experiment
from genloss.observatory.compare import (
    HOLDS,
    LEVEL,
    SAME,
    Arms,
    Contrast,
    Outcome,
    Panel,
    Study,
    Value,
    described,
    interval,
    measure,
    together,
)
from genloss.observatory.figures import panels_figure
from genloss.observatory.results import arms_of
from genloss.observatory.tables import aligned, piped
from genloss.workflow.compose import compose, hydra_error
from genloss.workflow.identity import arm_id
from genloss.workflow.sweep import expand

BEGIN, END = "<!-- results: written by genloss replicate {} --write -->", "<!-- end of results -->"
HEAD = ["stated", "claim", "we measure", "95 %", "p", "seeds", "alone", "p (Holm)", "among all"]


def studies() -> list[Study]:
    """The studies of all systems: each in the module `study` of its folder."""
    names = sorted(module.name for module in pkgutil.iter_modules(systems.__path__))
    return [importlib.import_module(f"{systems.__name__}.{name}.study").STUDY for name in names]


def replicate_study(study: Study, out: Path, jobs: int) -> int:
    """Run it, print its table, write it and the figure to `out`; 0 if every line holds among all, 1 otherwise."""
    check(study)
    arms = Arms([folder for overrides in study.sweeps for folder in run_sweep(study, overrides, jobs)])
    outcomes = together([measure(line, arms) for line in study.lines], study.looked)
    print(f"{study.name} ({study.paper})\n\n{tables(study, outcomes, arms, aligned)}")
    page, image = out / f"{study.name}.md", out / f"{study.name}.png"
    old = page.read_text() if page.is_file() else ""
    write_atomic(page, insert(old, study.name, tables(study, outcomes, arms, piped)))
    if study.panels:
        panels_figure(study.panels, arms, image)
    print(f"written: {page}{f', {image}' if study.panels else ''}")
    return 0 if all(outcome.survives == HOLDS for outcome in outcomes) else 1


def check(study: Study) -> None:
    """Refuse, before any arm runs, what would only be found after others: an arm that is refused, a line of too few
    seeds, a value that selects no arm, or two of one seed."""
    arms = Planned(study)
    for line in study.lines:
        measure(line, arms)
    for panel in study.panels:
        for value in (*panel.values.values(), *([panel.against] if panel.against else [])):
            arms.values(value)


class Planned(Arms):
    """The arms of a study before they have run: their configs are known, every number is 0."""

    def __init__(self, study: Study):
        found: dict[tuple[str, int], dict[str, Any]] = {}  # an arm may be in several sweeps
        for overrides in study.sweeps:
            seeds: dict[tuple[str, ...], list[int]] = {}  # arms that differ in their seed alone are composed once
            for job in jobs(study.name, overrides):
                seed = next((o.removeprefix("seed=") for o in job if o.startswith("seed=")), "0")
                seeds.setdefault(tuple(o for o in job if not o.startswith("seed=")), []).append(int(seed))
            for rest, each in seeds.items():
                cfg = compose([*rest, "seed=0"])
                _accept(cfg)
                found |= {(arm_id(cfg), seed): described(cfg) | {"seed": seed} for seed in each}
        self.known = [(known, {}) for known in found.values()]

    def values(self, value: Value) -> dict[int, float]:
        return dict.fromkeys(self.of(value.where), 0.0)


def _accept(cfg: DictConfig) -> None:
    """Refuse an arm that would be; a run that it names may be one that an earlier sweep of the study makes, and what
    would be checked after that is not."""
    with contextlib.suppress(NotThere):
        Experiment(cfg)


def jobs(name: str, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each arm that `run_sweep` runs."""
    chosen = [f"experiment={name}", *overrides]
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            experiment = [o for o in chosen if o.startswith("experiment=")][-1]
            params = hydra.compose("config", [experiment], return_hydra_config=True).hydra.sweeper.params
    except HydraException as error:
        raise hydra_error(error, chosen) from None
    return expand(OverridesParser.create(), params or {}, chosen)


def run_sweep(study: Study, overrides: Sequence[str], jobs: int) -> list[Path]:
    """The arms of a sweep, run to their end or found finished. It is a user's own command: the arms are in runs/ and in
    MLflow; only it ends with this process, however that ends. UserError if one failed."""
    command = [
        sys.executable,
        "-c",
        f"from genloss.core.machine import end_with; from genloss.cli import main; end_with({os.getpid()}); main()",
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
        more = "did not finish (see above); the same command goes on from here"
        raise UserError(study.name, " ".join(overrides), more)
    return [folder for _, folder in arms_of(Path(found[-1]))]


# -- the page ----------------------------------------------------------------------------------------------------------


Laid = Callable[[Sequence[str], Sequence[Sequence[str]], Collection[int]], str]  # `aligned` or `piped`


def tables(study: Study, outcomes: Sequence[Outcome], arms: Arms, laid: Laid) -> str:
    """The table of its lines and how to read it, then one table of each panel of bars."""
    lines = laid(HEAD, [row(outcome) for outcome in outcomes], {2, 4, 5, 7})
    shown = (bars(panel, arms, laid) for panel in study.panels if not panel.rounds)
    return "\n\n".join([lines, explained(study), *shown]) + "\n"


def explained(study: Study) -> str:
    seeds = "The seeds were fixed before the run."
    if study.looked:
        seeds = (
            f"The design is sequential: after a look at {study.looked} seeds some lines got more, and their p is "
            "doubled for it before the correction."
        )
    return (
        f"p is two-sided and belongs to the interval: *alone*, a line is decided where p < {LEVEL:g}, which is where "
        f"its interval lies on one side. p (Holm) is corrected over the {len(study.lines)} lines of the study: *among "
        f"all*, the chance of any false verdict in this table is at most {LEVEL:.0%}. {seeds} The tests are in "
        "`genloss.observatory.compare`."
    )


def row(outcome: Outcome) -> list[str]:
    """The cells of a line, by HEAD."""
    line, claim = outcome.line, "> 0"
    if not isinstance(line, Contrast):
        claim = "τ > 0"
    elif line.kind == SAME:
        claim = f"within ±{line.margin:g}"
    spread = "no spread" if isnan(outcome.low) else f"{outcome.low:+.3f} to {outcome.high:+.3f}"
    p = [f"{value:.3f}" if value >= 0.001 else f"{value:.0e}" for value in (outcome.p, outcome.corrected)]
    return [
        line.states,
        claim,
        f"{outcome.mean:+.3f}",
        spread,
        p[0],
        str(outcome.seeds),
        outcome.verdict,
        p[1],
        outcome.survives,
    ]


def bars(panel: Panel, arms: Arms, laid: Laid) -> str:
    """The means of a panel, their intervals, and what was published."""
    head = [panel.title, "mean", "95 %", *(["published"] if panel.published else [])]
    body = []
    for name, each in arms.bars(panel).items():
        mean, low, high = interval(each)
        published = [f"{panel.published[name]:g}" if name in panel.published else ""] if panel.published else []
        body.append([name, f"{mean:.3f}", f"{low:.3f} to {high:.3f}", *published])
    return laid(head, body, range(1, len(head)))


def insert(page: str, name: str, results: str) -> str:
    """The page with the results between its marks; they are added at the end if it has none."""
    begin = BEGIN.format(name)
    block = f"{begin}\n\n{results}\n{END}"
    if begin in page and END in page:
        return page[: page.index(begin)] + block + page[page.index(END) + len(END) :]
    return f"{page.rstrip()}\n\n{block}\n" if page else f"{block}\n"
