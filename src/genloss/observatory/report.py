"""Reports: arm × round tables, the figure, a CSV, from the metrics.json of finished rounds.

    genloss report runs/sweep-1234abcd                      # writes report.md, rounds.csv, rounds.png there
    genloss report runs/text-replace-* --metric distinct_2  # any metric, any runs

The command then also rebuilds the MLflow view of what was read: files are the truth.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from genloss.core.errors import UserError
from genloss.core.files import write_atomic
from genloss.core.places import project_root
from genloss.observatory.figures import PANELS, figure
from genloss.observatory.results import Arm, arms_of, rounds_of, shown
from genloss.observatory.tables import rounds_csv, table


def write_report(arms: Sequence[Arm], out: Path, metric: str | None = None) -> str:
    """Write rounds.csv, report.md and rounds.png to `out`; returns the table as text. metric: none is the domain's own."""
    arms = [(name, folder) for name, folder in arms if rounds_of(folder)]
    if not arms:
        raise UserError(str(out), None, "no finished round to report on")
    panels = shown(arms[0][1] / "params.yaml")
    metric = metric or panels[0]
    text = table(arms, metric)
    write_atomic(out / "rounds.csv", rounds_csv(arms))
    write_atomic(
        out / "report.md",
        f"# {metric}\n\n{table(arms, metric, markdown=True)}\n\n![{metric} by round](rounds.png)\n",
    )
    figure(arms, out / "rounds.png", [metric, *(m for m in panels if m != metric)][:PANELS])
    return f"{metric}\n\n{text}"


def report_sweep(folder: Path, metric: str | None = None) -> str:
    return write_report(arms_of(folder), folder, metric)


def next_commands(folder: Path) -> str:
    """The exact commands that come next."""
    name, arm = arms_of(folder)[-1]
    root = project_root()

    def short(path: Path) -> str:
        return os.path.relpath(path, Path.cwd()) if path.is_relative_to(root) else str(path)

    prefix = "" if os.environ.get("VIRTUAL_ENV") or not (root / ".venv").is_dir() else ". .venv/bin/activate; "
    return (
        f"\nfigure: {folder / 'rounds.png'}\n\nnext:\n"
        f"  {prefix}genloss ui                                  # compare the arms round by round in MLflow\n"
        f"  {prefix}cd {short(arm)} && dvc repro     # reproduce an arm ({name})\n"
        f"  {prefix}genloss run -m mixing=replace,accumulate curation=none,dedup rounds=3   # an ablation of your own"
    )


def report(folders: Sequence[Path], metric: str | None, out: Path | None) -> int:
    """`genloss report`."""
    arms = [arm for folder in folders for arm in arms_of(folder)]
    target = out or (folders[0].resolve() if len(folders) == 1 else project_root() / "report")
    if out is None and len(folders) == 1 and not (target / "sweep.json").is_file():
        target = target / "report"
    print(write_report(arms, target, metric))
    print(f"\nwritten: {target}/report.md, rounds.csv, rounds.png")
    return 0
