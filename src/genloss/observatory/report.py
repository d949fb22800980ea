"""Reports: arm × round tables, the figure, a CSV, from the metrics.json of finished rounds.

    genloss report runs/sweep-1234abcd                      # writes report.md, rounds.csv, rounds.png there
    genloss report runs/text-replace-* --metric distinct_2  # any metric, any runs

Also rebuilds the MLflow view of what it reads: files are the truth.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genloss.core.contracts import Domain
from genloss.core.errors import UserError, nearest
from genloss.core.plugin import locate
from genloss.core.store import write_atomic
from genloss.workflow.compose import load_params, project_root

TITLES = {
    "heldout_bits_per_byte": "held-out real text, bits per byte",
    "coverage_d1": "share of the commonest real words (first decile)\nthat generated text still uses",
    "loss_under_round0": "generated text's loss under the round-0 model,\nnats per token",
    "diversity": "diversity of the model",
    "drift": "squared distance of its mean from the real one",
    "log_diversity": "log diversity",
    "risk": "excess test risk",
    "support": "tokens that are left",
    "lost_mass": "real mass of lost tokens",
    "modes": "modes that are left",
    "log_likelihood": "log-likelihood of real points",
}  # of panels; others have their metric's name
PANELS = 3
COLUMNS = 10  # rounds that a table shows
Arm = tuple[str, Path]  # name, folder


def rounds_of(folder: Path) -> dict[int, dict[str, float]]:
    """{round: metrics} of a run directory; without rounds that an earlier, longer config left there."""
    params = folder / "params.yaml"
    last = load_params(params).get("rounds") if params.is_file() else None
    found = {}
    for path in sorted((folder / "rounds").glob("[0-9]*/metrics.json")):
        if last is not None and int(path.parent.name) > last:
            continue
        try:
            found[int(path.parent.name)] = json.loads(path.read_text())
        except ValueError:
            raise UserError(str(path), None, "is damaged; delete it and run again (nothing computed is lost)") from None
    return found


def arms_of(folder: Path) -> list[Arm]:
    """The arms of a sweep, or the one of a run directory."""
    folder = folder.resolve()
    if (folder / "sweep.json").is_file():
        from genloss.workflow.hydra_app import sweep_entries

        return [(e["name"], (folder / e["dir"]).resolve()) for e in sweep_entries(folder)]
    if not (folder / "params.yaml").is_file():
        raise UserError(str(folder), None, "is neither a run directory (params.yaml) nor a sweep (sweep.json)")
    return [(folder.name, folder)]


def shown(params: Path) -> list[str]:
    """The metrics that the domain of a run is about, the most important one first."""
    domain = locate(str(load_params(params).domain._target_), Domain, "domain")  # type: ignore[type-abstract]
    return [domain.headline, *domain.panels]


def columns(last: int) -> list[int]:
    """The rounds that a table has room for: all, or 0, 1, 2, 5, 10, 20, 50 ... and the last."""
    if last < COLUMNS:
        return list(range(last + 1))
    steps = [m * 10**e for e in range(6) for m in (1, 2, 5)]
    return [0, *(n for n in steps if n < last), last]


def table(arms: Sequence[Arm], metric: str, markdown: bool = False) -> str:
    """arm × round, and the change of the last round against round 0."""
    data = [(name, rounds_of(folder)) for name, folder in arms]
    known = {k for _, rounds in data for values in rounds.values() for k in values}
    if known and metric not in known:
        raise UserError("metric", metric, f"unknown; {nearest(metric, known)}")
    last = max((n for _, rounds in data for n in rounds), default=0)
    shown = columns(last)
    head = ["arm", *(f"round {n}" for n in shown), "change"]
    rows = []
    for name, rounds in data:
        values = [rounds.get(n, {}).get(metric) for n in shown]
        present = [v for v in values if v is not None]
        change = f"{present[-1] - present[0]:+.3f}" if len(present) > 1 else ""
        rows.append([name, *("" if v is None else f"{v:.3f}" for v in values), change])
    if markdown:
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        lines = [head, ["---"] + ["---:"] * (len(head) - 1), *escaped]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    plain_lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *rows]
    ]
    return "\n".join([plain_lines[0], "-" * len(plain_lines[0]), *plain_lines[1:]])


def rounds_csv(arms: Sequence[Arm]) -> str:
    """One row an arm and round, one column a metric; without what differs between two runs of the same thing (time)."""
    rows = [
        {"arm": name, "round": n, **{k: v for k, v in values.items() if "second" not in k}}
        for name, folder in arms
        for n, values in rounds_of(folder).items()
    ]
    columns = ["arm", "round", *sorted({k for row in rows for k in row} - {"arm", "round"})]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def figure(arms: Sequence[Arm], path: Path, panels: Sequence[str]) -> None:
    """Lines over rounds, one colour an arm; arms that differ in their seed alone are one line with its range. Where theory has an
    expectation, it is dashed, in a band of two standard errors: so far off may a measured point lie by chance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    groups: dict[str, list[dict[int, dict[str, float]]]] = {}
    for name, folder in arms:
        words = name.split()
        group = " ".join(words[: words.index("seed")]) if "seed" in words else name
        groups.setdefault(group or "all", []).append(rounds_of(folder))
    known = {k for runs in groups.values() for run in runs for values in run.values() for k in values}
    panels = [m for m in panels if m in known]
    colours = [
        "#0072B2",
        "#009E73",
        "#E69F00",
        "#D55E00",
        "#CC79A7",
        "#56B4E9",
        "#000000",
        "#999999",
    ]  # Okabe & Ito
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        chart, axes = plt.subplots(
            1, len(panels), figsize=(3.6 * len(panels), 3.3), layout="constrained", squeeze=False
        )
        for axis, panel in zip(axes[0], panels, strict=True):
            floors = []
            for i, (name, runs) in enumerate(groups.items()):
                rounds = sorted({n for run in runs for n, values in run.items() if panel in values})
                if not rounds:
                    continue
                values = [[run[n][panel] for run in runs if panel in run.get(n, {})] for n in rounds]
                colour = colours[i % len(colours)]
                size = 3.5 if len(rounds) <= 20 else 1.8
                expected = [n for n in rounds if f"theory/{panel}" in runs[0].get(n, {})]
                line = "o" if expected else "o-"
                axis.plot(rounds, [np.mean(v) for v in values], line, ms=size, lw=1.6, color=colour, label=name)
                if expected:
                    theory = np.array([runs[0][n][f"theory/{panel}"] for n in expected])
                    error = 2 * np.array([runs[0][n].get(f"{panel}_se", 0.0) for n in expected])
                    axis.plot(expected, theory, "--", lw=1, color=colour)
                    axis.fill_between(expected, theory - error, theory + error, color=colour, alpha=0.25, lw=0)
                if len(runs) > 1:
                    axis.fill_between(
                        rounds,
                        [min(v) for v in values],
                        [max(v) for v in values],
                        color=colour,
                        alpha=0.18,
                        lw=0,
                    )
                floors += [
                    run[n][f"{panel}_floor"] for run in runs for n in rounds if f"{panel}_floor" in run.get(n, {})
                ]
            if floors:
                axis.axhline(float(np.mean(floors)), color="#666666", lw=1, ls=":", label="real text")
            axis.set_title(TITLES.get(panel, panel), fontsize=9)
            axis.set_xlabel("round")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles: dict[str, Any] = {}
        if any(k.startswith("theory/") for k in known):
            handles["theory ± 2 standard errors"] = Line2D([], [], ls="--", lw=1, color="#666666")
        for axis in axes[0]:
            for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
                handles.setdefault(name, handle)
        chart.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=min(5, len(handles)),
            frameon=False,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{os.getpid()}-{path.name}")
        chart.savefig(aside, dpi=150, metadata={"Software": None})
        plt.close(chart)
    os.replace(aside, path)


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
    from genloss.workflow import tracking as track

    arms = [arm for folder in folders for arm in arms_of(folder)]
    target = out or (folders[0].resolve() if len(folders) == 1 else project_root() / "report")
    if out is None and len(folders) == 1 and not (target / "sweep.json").is_file():
        target = target / "report"
    print(write_report(arms, target, metric))
    print(f"\nwritten: {target}/report.md, rounds.csv, rounds.png")
    for folder in folders:
        sweep = folder.resolve() if (folder / "sweep.json").is_file() else None
        for _, arm in arms_of(folder):
            track.rebuild(arm, load_params(arm / "params.yaml"), sweep)
    return 0
