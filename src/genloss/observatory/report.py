"""Reports: verdicts, a table of arm by round, the figure and a CSV, from the metrics.json of finished rounds.

genloss report runs/sweep-1234abcd                      # writes report.html, report.md, rounds.csv, rounds.png there
genloss report runs/text-replace-* --metric distinct_2  # any metric, any runs
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from genloss.core.capabilities import Texts
from genloss.core.contracts import Domain
from genloss.core.errors import require
from genloss.core.files import keep
from genloss.core.places import load_params, option_files, options, project_root
from genloss.core.plugin import locate
from genloss.observatory import controls, verdict, verdict_words
from genloss.observatory.figures import PANELS, rounds_figure
from genloss.observatory.groups import Member, finished, grouped, unit
from genloss.observatory.page import page
from genloss.observatory.results import Arm, added_to, asked, measured, rounds_of, sweep_entries, turned
from genloss.observatory.samples import printable
from genloss.observatory.tables import listed, marked_up, rounds_csv, table

SUMMARY = "summary.json"
PAGE = "report.html"


def write_report(
    arms: Sequence[Arm],
    out: Path,
    metric: str | None = None,
    redraw: bool = True,
    differing: Sequence[Mapping[str, Any]] = (),
    sweeps: Sequence[Path] = (),
    html: Path | None = None,
    control: str | None = None,
) -> str:
    """Write rounds.csv, report.md, rounds.png and rounds.svg to `out`, verdicts.json too if there are several arms, and
    the page to `html`; returns the table and the verdicts as text.

    metric: of the table and the first panel; None: the headline of the first arm's domain, if it was measured. redraw:
    whether a figure and a page of the same numbers are made again. differing, sweeps: as `grouped` takes them; without
    the former every arm is a group of its own. control: what verdicts compare with (`control_of`). Arms without a
    finished round are left out of the table; UserError if there is no other.
    """
    groups = grouped(arms, differing or [{}] * len(arms), sweeps)
    members = [m for group in groups for m in group.members]
    found = finished(groups, arms, out)
    shown = [group for group in groups if group.last >= 0]
    runs = [(m.name, m.rounds) for m in found]
    params: dict[str, Path] = {}  # of an arm of each domain, that of the first arm first
    for member in found:
        params.setdefault(member.domain, member.folder / "params.yaml")
    panels = list(dict.fromkeys(name for path in params.values() for name in measured(path, runs)))
    metric = metric or panels[0]
    said = _wrong(found, members)
    rows = verdict.verdicts(controls.compared(groups), control)
    if len(found) > 1:
        verdict.write(rows, out, control)
    else:
        (out / verdict.FILE).unlink(missing_ok=True)  # of more arms than there are now
    text = table(shown, metric) + "".join(f"\n\n{line}" for line in said)
    numbers, words, figure, vectors = (out / name for name in ("rounds.csv", "report.md", "rounds.png", "rounds.svg"))
    shown_table = table(shown, metric, markdown=True) + "".join(f"\n\n{marked_up(line)}" for line in said)
    keep(numbers, rounds_csv(groups))
    said_first = f"# Verdicts\n\n{verdict_words.shown(rows, markdown=True)}"
    named = f"{metric}, {said_unit}" if (said_unit := unit(metric, shown)) else metric
    keep(words, f"{said_first}\n\n# {named}\n\n{shown_table}\n\n![{metric} by round](rounds.png)\n")
    newest = max(p.stat().st_mtime for p in (numbers, words))
    drawn = all(p.is_file() and p.stat().st_mtime >= newest for p in (figure, vectors))
    about = [metric, *(m for m in panels if m != metric)]
    wanted = dict.fromkeys(name for path in params.values() for name in asked(path.parent))
    also = [name for name in wanted if name not in about]
    if redraw or not drawn:
        rounds_figure(shown, figure, [*about[:PANELS], *also[:PANELS]], [vectors])
    if html is not None:
        newest = max(p.stat().st_mtime for p in (numbers, words, out / verdict.FILE) if p.is_file())
        if redraw or not (html.is_file() and html.stat().st_mtime >= newest):
            shown_rows = rows if len(found) > 1 else []
            keep(html, page(groups, [*about, *also], sweeps, "\n".join(said), shown_rows, control))
    return f"{named}\n\n{text}\n\n{verdict_words.shown(rows)}"


def _wrong(found: Sequence[Member], members: Sequence[Member]) -> list[str]:
    """What is wrong with arms, once for all of which it is said; whose loss turned is one line, since that differs by
    seeds in its numbers alone."""
    turns = [(m.name, why) for m in found if (why := turned(m.folder, m.rounds))]
    lines = []
    if turns:
        numbers = " (numbers of the first)" if len({why for _, why in turns}) > 1 else ""
        lines = [f"warning: {listed([name for name, _ in turns])}{numbers}: {turns[0][1]}"]
    unfinished: dict[str, list[str]] = {}
    for member in members:
        if member.unfinished and len(members) > 1:
            unfinished.setdefault(member.unfinished, []).append(member.name)
    return lines + [f"{listed(names)}: {why}" for why, names in unfinished.items()]


def write_summary(folder: Path) -> None:
    """Write summary.json of a run, which DVC compares: what its domain and its metrics are about, and the metrics that
    were added, after the last round; no times."""
    rounds = rounds_of(folder)
    last = max(rounds)
    about = [name for name in measured(folder / "params.yaml", [("run", rounds)]) if name in rounds[last]][:PANELS]
    about += [name for name in [*asked(folder), *added_to(folder, last)] if name not in about and name in rounds[last]]
    text = json.dumps({"round": last} | {name: rounds[last][name] for name in about}, indent=1) + "\n"
    keep(folder / SUMMARY, text)


def next_commands(folder: Path) -> str:
    """What a user may do after a sweep that has a finished arm: where its figure is, and three commands to paste."""
    finished = [entry for entry in sweep_entries(folder) if entry["state"] == "finished"][-1]
    arm = (folder / finished["dir"]).resolve()
    domain = load_params(arm / "params.yaml").domain
    curator = "dedup" if issubclass(locate(domain._target_, Domain, "domain"), Texts) else "random"
    sweep = f"domain={_option(domain)} mixing=replace,accumulate curation=none,{curator} rounds=3"
    root = project_root()

    def short(path: Path) -> str:
        return os.path.relpath(path, Path.cwd()) if path.is_relative_to(root) else str(path)

    prefix = "" if os.environ.get("VIRTUAL_ENV") or not (root / ".venv").is_dir() else ". .venv/bin/activate; "
    return (
        f"\nreport: {folder / PAGE}\nfigure: {folder / 'rounds.png'}\n\nnext:\n"
        f"  {prefix}genloss ui {short(folder)}     # compare the arms round by round in MLflow\n"
        f"  {prefix}cd {short(arm)} && dvc repro     # reproduce an arm ({finished['name']})\n"
        f"  {prefix}genloss run -m {sweep}   # an ablation of your own"
    )


def _option(domain: DictConfig) -> str:
    """The option that makes such a domain: an experiment may give it a name of its own (domain.name=humpback)."""
    if domain.name in options("domain"):
        return str(domain.name)
    made = {path.stem: OmegaConf.load(path) for path in option_files("domain")}
    keys = ("_target_", "domain._target_")  # an option may be of the whole config
    targets = {name: {OmegaConf.select(option, key) for key in keys} for name, option in made.items()}
    return next((name for name, target in targets.items() if domain._target_ in target), str(domain.name))


def target_of(folders: Sequence[Path], out: Path | None) -> Path:
    """Where what is said of `folders` is written: `out`, if it is given; a sweep's own folder; below a single run
    directory, report/; else report/ beside the runs (that of the project is an output of its DVC pipeline)."""
    if out is not None:
        require(out.is_dir() or not out.exists(), "--out", out, "a folder, and this is a file")
        return out
    if len(folders) > 1:
        return project_root() / "runs" / "report"
    folder = folders[0].resolve()
    return folder if (folder / "sweep.json").is_file() else folder / "report"


def report(
    folders: Sequence[Path],
    arms: Sequence[Arm],
    metric: str | None,
    out: Path | None,
    differing: Sequence[Mapping[str, Any]] = (),
    control: str | None = None,
) -> int:
    """`genloss report`: one report of the arms of `folders` (run directories or sweeps), printed and written where
    `target_of` says."""
    target = target_of(folders, out)
    own = len(arms) == 1 and (target.resolve().parent == arms[0][1])
    if own and arms[0][1].parent.name != "runs":  # the same wherever it is made: DVC runs copies of the project
        arms = [("run", arms[0][1])]
    # of a run beside report/, which DVC compares: a page has times; DVC itself wants none
    page_of = None if "DVC_STAGE" in os.environ else (arms[0][1] if own else target) / PAGE
    text = write_report(arms, target, metric, differing=differing, sweeps=folders, html=page_of, control=control)
    print(printable(text))
    if own:
        write_summary(arms[0][1])
    more = f", {verdict.FILE}" if (target / verdict.FILE).is_file() else ""
    print(f"\nwritten: {target}/report.md, rounds.csv, rounds.png and .svg{more}{f'; {page_of}' if page_of else ''}")
    return 0
