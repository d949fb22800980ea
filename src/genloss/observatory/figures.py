"""Figures: lines over rounds, bars over arms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genloss.observatory.results import Arm, rounds_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


COLOURS = ["#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999"]  # Okabe & Ito


def _bars(axis: Axes, names: Sequence[str], values: Sequence[tuple[float, float, float]], colour: str) -> None:
    at = np.arange(len(names))[::-1]
    mean, low, high = (np.array(side) for side in zip(*values, strict=True))
    axis.barh(at, mean, color=colour, height=0.6)
    if (low < high).any():
        axis.errorbar(mean, at, xerr=[mean - low, high - mean], fmt="none", ecolor="#222222", capsize=2, lw=1)
    axis.set_yticks(at, names)
