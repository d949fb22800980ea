"""Figures, written as PNG or SVG: the same numbers give the same bytes.

rounds_figure(groups, Path("rounds.png"), ["distinct_2"])                    lines over rounds, a panel a metric
panels_figure(study.panels, arms, Path("study.png"))                         bars and lines over seeds, of a study
with drawing(path, heights=[3.3], columns=2) as (figure, axes): ...          any other; axes [rows, columns]
"""

from __future__ import annotations

import contextlib
import itertools
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genloss.core.files import aside_of
from genloss.observatory.compare import Arms, Panel, interval
from genloss.observatory.groups import Group, unit
from genloss.observatory.results import Rounds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREEN, ORANGE, RED = "#0072B2", "#009E73", "#E69F00", "#D55E00"
GREY = "#999999"  # what others published
COLOURS = (BLUE, GREEN, ORANGE, RED, "#CC79A7", "#56B4E9", "#000000", GREY)  # Okabe & Ito, and a grey
MARKERS = "os^Dv"  # of the first eight lines, the next eight ...
NEUTRAL = "#666666"  # what stands for all arms at once

TIMELESS: dict[str, dict[str, None]] = {".png": {"Software": None}, ".svg": {"Creator": None, "Date": None}}
HEIGHT = 3.3  # inches of a panel
LEGEND = 0.5  # inches of a legend that it has room for
WRAP = 24  # characters of a bar's name in a line
PANELS = 4  # metrics that a report draws
TITLES = {
    "heldout_bits_per_byte": "loss of held-out real text",
    "coverage_d1": "share of the commonest real words (first decile)\nthat generated text still uses",
    "loss_under_round0": "generated text's loss under the round-0 model",
    "denoising_loss": "loss of held-out real images",
    "feature_frechet": "Fréchet distance from real images,\nin a network trained on these",
    "manifold_recall": "recall: share of real records\nnear generated ones",
    "manifold_precision": "precision: share of generated records\nnear real ones",
    "sprite_tail": "rare sprites, over what is real",
    "sprite_entangled": "information that independent factors share",
    "sprite_outside": "pictures of no real sprite",
    "diversity": "diversity of the model",
    "drift": "squared distance of its mean from the real one",
    "log_diversity": "log diversity",
    "risk": "excess test risk",
    "support": "tokens that are left",
    "lost_mass": "real mass of lost tokens",
    "modes": "modes that are left",
    "log_likelihood": "log-likelihood of real points",
}  # of panels; others have their metric's name
THEORY = {  # by what a prediction's name adds to the metric's: what the legend says, and how it is drawn
    "": ("theory ± 2 standard errors", "--"),
    "_asymptotic": ("theory, leading order in the number of points", "-."),
    "_limit": ("theory, infinitely many points", ":"),
}


@contextlib.contextmanager
def drawing(
    path: Path, heights: Sequence[float], columns: int, width: float = 3.6, also: Sequence[Path] = ()
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure and its axes [rows, columns]; when the block ends, it is written aside and renamed to `path`.

    heights: inches of each row. width: inches of each column. also: other files of it, in the format of their names.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    asides = {each: aside_of(each) for each in (path, *also)}
    spines = dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)
    style: dict[Any, Any] = {"font.size": 9, "svg.hashsalt": "genloss", **spines}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            len(heights),
            columns,
            figsize=(width * columns, sum(heights)),
            layout="constrained",
            squeeze=False,
            gridspec_kw={"height_ratios": heights},
        )
        try:
            yield figure, axes
            for each, aside in asides.items():
                each.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(aside, dpi=150, format=each.suffix[1:], metadata=TIMELESS[each.suffix])
        finally:
            plt.close(figure)
    for each, aside in asides.items():
        os.replace(aside, each)


def over_rounds(axis: Axes) -> None:
    """An axis whose x is the round: a whole number."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("round")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


# -- lines over rounds, of any arms ------------------------------------------------------------------------------------


def rounds_figure(arms: Sequence[Group], path: Path, metrics: Sequence[str], also: Sequence[Path] = ()) -> None:
    """One panel for each of `metrics` that an arm has, over rounds; one colour an arm. also: as `drawing` takes it.

    Arms that differ in their seed alone are one line, their mean, with their range. Where theory has an expectation, it
    is drawn as THEORY says, in a band of two standard errors: so far off may a measured point lie by chance. A dotted
    grey line is what real data give where generated ones are measured (the metric's floor).
    """
    groups = [(group.name, [m.rounds for m in group.members]) for group in arms]
    known = {metric for _, seeds in groups for rounds in seeds for values in rounds.values() for metric in values}
    metrics = [m for m in metrics if m in known]
    with drawing(path, [HEIGHT], len(metrics), also=also) as (figure, axes):
        for axis, metric in zip(axes[0], metrics, strict=True):
            for i, (name, seeds) in enumerate(groups):
                marker = MARKERS[i // len(COLOURS) % len(MARKERS)]
                _line(axis, metric, name, seeds, COLOURS[i % len(COLOURS)], marker)
            _floor(axis, metric, itertools.chain.from_iterable(seeds for _, seeds in groups))
            axis.set_title(TITLES.get(metric, metric), fontsize=9)
            axis.set_ylabel(unit(metric, arms))
            over_rounds(axis)
        drawn = [kind for kind in THEORY if any(f"theory/{metric}{kind}" in known for metric in metrics)]
        _legend(figure, axes[0], drawn)


def _line(axis: Axes, metric: str, name: str, seeds: Sequence[Rounds], colour: str, marker: str) -> None:
    """The mean over seeds, what theory expects of it, and the range over seeds."""
    at = sorted({n for rounds in seeds for n, values in rounds.items() if metric in values})
    if not at:
        return
    values = [[rounds[n][metric] for rounds in seeds if metric in rounds.get(n, {})] for n in at]
    expected = {
        kind: [(n, seeds[0][n][key]) for n in at if (key := f"theory/{metric}{kind}") in seeds[0].get(n, {})]
        for kind in THEORY
    }
    marks, size = marker if any(expected.values()) else f"{marker}-", 3.5 if len(at) <= 20 else 1.8
    axis.plot(at, [np.mean(v) for v in values], marks, ms=size, lw=1.6, color=colour, label=name)
    for kind, points in expected.items():
        if points:
            rounds, theory = (np.array(side) for side in zip(*points, strict=True))
            axis.plot(rounds, theory, THEORY[kind][1], lw=1, color=colour)
            if not kind:  # exact
                error = 2 * np.array([seeds[0][n].get(f"{metric}_se", 0.0) for n in rounds])
                axis.fill_between(rounds, theory - error, theory + error, color=colour, alpha=0.25, lw=0)
    if len(seeds) > 1:
        axis.fill_between(at, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.18, lw=0)


def _floor(axis: Axes, metric: str, runs: Iterable[Rounds]) -> None:
    """The mean of the metric's floor over arms and rounds."""
    floor = f"{metric}_floor"
    found = [values[floor] for rounds in runs for values in rounds.values() if floor in values]
    if found:
        axis.axhline(float(np.mean(found)), color=NEUTRAL, lw=1, ls=":", label="real data")


def _legend(figure: Figure, axes: Sequence[Axes], theory: Sequence[str]) -> None:
    """One legend below all panels, with every name once, in as many columns as are wide enough; of many names the
    figure becomes higher, and not the panels lower."""
    from matplotlib.lines import Line2D

    handles: dict[str, Any] = {}
    for kind in theory:
        says, style = THEORY[kind]
        handles[says] = Line2D([], [], ls=style, lw=1, color=NEUTRAL)
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    for columns in range(max(1, min(5, len(handles))), 0, -1):
        legend = figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False
        )
        needed = legend.get_window_extent()
        if needed.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    more = max(0.0, needed.height / figure.dpi - LEGEND)
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + more)


# -- panels of a study, over seeds -------------------------------------------------------------------------------------


def panels_figure(panels: Sequence[Panel], arms: Arms, path: Path) -> None:
    """Each panel, and before it what was published."""
    drawn = [(panel, published) for panel in panels for published in ((True, False) if panel.published else (False,))]
    across = len(drawn) if len(drawn) <= 3 else 3 if len(drawn) != 4 else 2
    rows = [drawn[i : i + across] for i in range(0, len(drawn), across)]
    heights = [max([HEIGHT, *(_room(panel) for panel, _ in row if not panel.rounds)]) for row in rows]
    named: set[tuple[str, ...]] = set()  # lines of the same names have the same colours: one legend
    with drawing(path, heights, across, width=3.9) as (_, axes):
        for axis in axes.flat[len(drawn) :]:
            axis.axis("off")
        for axis, (panel, published) in zip(axes.flat, drawn, strict=False):
            if published:
                _published(axis, panel)
                title = panel.published_title or f"published: {panel.title}"
            else:
                (_seed_lines if panel.rounds else _seed_bars)(axis, panel, arms)
                if panel.rounds and (names := tuple(panel.values)) not in named:
                    axis.legend(frameon=False, fontsize=7)
                    named.add(names)
                title = f"ours: {panel.title}" if panel.published else panel.title
            axis.set_title(textwrap.fill(title, 30), fontsize=9)


def _named(name: str) -> str:
    """The name of a bar in lines, so that a long one leaves the bar its room."""
    return textwrap.fill(name, WRAP)


def _room(panel: Panel) -> float:
    """Inches that the bars of a panel need, each as many as the longest of their names."""
    lines = max(_named(name).count("\n") + 1 for name in panel.values)
    return max(0.24, 0.16 * lines) * len(panel.values)


def _bars(axis: Axes, values: Mapping[str, tuple[float, float, float]], colour: str) -> None:
    """Bars of {name: (mean, low, high)}, the first on top, with whiskers from low to high."""
    at = np.arange(len(values))[::-1]
    mean, low, high = (np.array(side) for side in zip(*values.values(), strict=True))
    axis.barh(at, mean, color=colour, height=0.6)
    if (low < high).any():
        axis.errorbar(mean, at, xerr=[mean - low, high - mean], fmt="none", ecolor="#222222", capsize=2, lw=1)
    axis.set_yticks(at, [_named(name) for name in values])
    axis.locator_params(axis="x", nbins=5)  # numbers of four digits would run into each other


def _published(axis: Axes, panel: Panel) -> None:
    names = [name for name in panel.values if name in panel.published]
    _bars(axis, {name: (panel.published[name],) * 3 for name in names}, GREY)


def _seed_bars(axis: Axes, panel: Panel, arms: Arms) -> None:
    """Means over seeds, their intervals, and every seed as a point."""
    found = arms.bars(panel)
    _bars(axis, {name: interval(each) for name, each in found.items()}, BLUE)
    for at, each in zip(range(len(found))[::-1], found.values(), strict=True):
        axis.plot(each, [at] * len(each), "o", ms=2.5, color=ORANGE, zorder=3)


def _seed_lines(axis: Axes, panel: Panel, arms: Arms) -> None:
    """Means over seeds and their intervals, over the rounds that all seeds have."""
    if panel.against:
        axis.axhline(0, color=GREY, lw=1)
    for i, (name, known) in enumerate(arms.lines(panel).items()):
        rounds, spread = list(known), np.array([interval(each) for each in known.values()])
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(rounds, spread[:, 0], "o-", ms=3, lw=1.5, color=colour, label=name)
        axis.fill_between(rounds, spread[:, 1], spread[:, 2], color=colour, alpha=0.15, lw=0)
    over_rounds(axis)
