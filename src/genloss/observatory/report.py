"""Reports: verdicts, a table of arm by round, the figure and a CSV, from the metrics.json of finished rounds.

genloss report runs/sweep-1234abcd                      # writes report.md, rounds.csv, rounds.png there
genloss report runs/text-replace-* --metric distinct_2  # any metric, any runs
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from genloss.core.capabilities import Texts
from genloss.core.contracts import Domain
from genloss.core.errors import UserError
from genloss.core.files import keep
from genloss.core.places import load_params, project_root
from genloss.core.plugin import locate
from genloss.observatory import verdict
from genloss.observatory.figures import PANELS, rounds_figure
from genloss.observatory.results import Arm, measured, read, rounds_of, sweep_entries, turned, without_rounds
from genloss.observatory.tables import rounds_csv, table

SUMMARY = "summary.json"


def write_report(
    arms: Sequence[Arm], out: Path, metric: str | None = None, redraw: bool = True, control: str | None = None
) -> str:
    """Write rounds.csv, report.md and rounds.png to `out`, and verdicts.json if there are several arms; returns the
    table and the verdicts as text.

    metric: of the table and the first panel; None: the headline of the first arm's domain, if it was measured. redraw:
    whether a figure of the same numbers is drawn again. control: what verdicts compare with (verdict.control_of). Arms
    without a finished round are left out; UserError if there is no other.
    """
    found = [(folder, run) for (_, folder), run in zip(arms, read(arms), strict=True) if run[1]]
    if not found:
        raise without_rounds(arms[0][1]) if arms else UserError(str(out), None, "no arm to report on")
    runs = [run for _, run in found]
    panels = measured(found[0][0] / "params.yaml", runs)
    metric = metric or panels[0]
    said = {name: turned(folder, rounds) for folder, (name, rounds) in found}
    warnings = "".join(f"\n\nwarning: {name}: {why}" for name, why in said.items() if why)
    text = table(runs, metric) + warnings
    rows = verdict.verdicts(verdict.groups(arms), control)
    if len(found) > 1:
        verdict.write(rows, out, control)
    numbers, words, figure = (out / name for name in ("rounds.csv", "report.md", "rounds.png"))
    shown_table = table(runs, metric, markdown=True) + warnings
    keep(numbers, rounds_csv(runs))
    said_first = f"# Verdicts\n\n{verdict.shown(rows, markdown=True)}"
    keep(words, f"{said_first}\n\n# {metric}\n\n{shown_table}\n\n![{metric} by round](rounds.png)\n")
    drawn = figure.is_file() and figure.stat().st_mtime >= max(p.stat().st_mtime for p in (numbers, words))
    if redraw or not drawn:
        rounds_figure(runs, figure, [metric, *(m for m in panels if m != metric)][:PANELS])
    return f"{metric}\n\n{text}\n\n{verdict.shown(rows)}"


def write_summary(folder: Path) -> None:
    """Write summary.json of a run, which DVC compares: what its domain is about, after the last round; no times."""
    rounds = rounds_of(folder)
    last = max(rounds)
    about = [name for name in measured(folder / "params.yaml", [("run", rounds)]) if name in rounds[last]]
    text = json.dumps({"round": last} | {name: rounds[last][name] for name in about[:PANELS]}, indent=1) + "\n"
    keep(folder / SUMMARY, text)


def next_commands(folder: Path) -> str:
    """What a user may do after a sweep that has a finished arm: where its figure is, and three commands to paste."""
    finished = [entry for entry in sweep_entries(folder) if entry["state"] == "finished"][-1]
    arm = (folder / finished["dir"]).resolve()
    domain = load_params(arm / "params.yaml").domain
    curator = "dedup" if issubclass(locate(domain._target_, Domain, "domain"), Texts) else "random"
    sweep = f"domain={domain.name} mixing=replace,accumulate curation=none,{curator} rounds=3"
    root = project_root()

    def short(path: Path) -> str:
        return os.path.relpath(path, Path.cwd()) if path.is_relative_to(root) else str(path)

    prefix = "" if os.environ.get("VIRTUAL_ENV") or not (root / ".venv").is_dir() else ". .venv/bin/activate; "
    return (
        f"\nfigure: {folder / 'rounds.png'}\n\nnext:\n"
        f"  {prefix}genloss ui {short(folder)}     # compare the arms round by round in MLflow\n"
        f"  {prefix}cd {short(arm)} && dvc repro     # reproduce an arm ({finished['name']})\n"
        f"  {prefix}genloss run -m {sweep}   # an ablation of your own"
    )


def target_of(folders: Sequence[Path], out: Path | None) -> Path:
    """Where what is said of `folders` is written: `out`, if it is given; a sweep's own folder; below a single run
    directory, report/; else report/ beside the runs (that of the project is an output of its DVC pipeline)."""
    if out is not None:
        return out
    if len(folders) > 1:
        return project_root() / "runs" / "report"
    folder = folders[0].resolve()
    return folder if (folder / "sweep.json").is_file() else folder / "report"


def report(
    folders: Sequence[Path], arms: Sequence[Arm], metric: str | None, out: Path | None, control: str | None = None
) -> int:
    """`genloss report`: one report of the arms of `folders` (run directories or sweeps), printed and written where
    `target_of` says."""
    target = target_of(folders, out)
    own = len(arms) == 1 and (target.resolve().parent == arms[0][1])
    if own and arms[0][1].parent.name != "runs":  # the same wherever it is made: DVC runs copies of the project
        arms = [("run", arms[0][1])]
    print(write_report(arms, target, metric, control=control))
    if own:
        write_summary(arms[0][1])
    more = f", {verdict.FILE}" if (target / verdict.FILE).is_file() else ""
    print(f"\nwritten: {target}/report.md, rounds.csv, rounds.png{more}")
    return 0
