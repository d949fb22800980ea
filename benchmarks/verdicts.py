"""Verdicts: how often they are wrong where nothing collapses, what they find, and whether they are right by theory.

    python benchmarks/verdicts.py               # 20 minutes on one core
    python benchmarks/verdicts.py 100           # with 100 simulated sweeps a cell in place of 1,000
    python benchmarks/verdicts.py runs/sweep-HASH   # false alarms on runs: seeds of one arm, split at random

Null sweeps have four groups of seeds of one law, one of which is called the control: any "yes" in one is a false alarm.
Stated: at most 5 % of sweeps. Power is that of one arm of three whose four metrics get worse by so many standard
deviations (of a paired difference) at the last round, in a straight line. The theory grid runs the lab,
with so many chains that seeds hardly differ, and with few."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from common import scratch, table
from genloss.core.files import write_atomic
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.observatory.controls import Group, compared
from genloss.observatory.definitions import DEFINITIONS
from genloss.observatory.groups import grouped
from genloss.observatory.verdict import NO, NONE, OPEN, UNTESTABLE, YES, verdicts
from genloss.workflow.compose import compose, to_yaml
from genloss.workflow.identity import differing
from genloss.workflow.sweep import true_arms

ASKED = sys.argv[1] if len(sys.argv) > 1 else "1000"
SWEEPS = int(ASKED) if ASKED.isdigit() else 1000  # simulated, or drawn, a cell
SEEDS = (3, 5, 10)
ROUNDS = 8
SD = 0.02  # of a metric over seeds, on its scale
METRICS = {"heldout_bits_per_byte": (2.5, 1), "entropy_1": (8.0, -1), "loss_under_round0_p99": (6.0, 1)}
TAIL = ("coverage_d10", 0.5)


def noise(rng: np.random.Generator, shape: tuple[int, ...], memory: float, skewed: bool) -> np.ndarray:
    """Unit variance [..., rounds], an autoregression over rounds; memory 1: a random walk of unit variance at its
    end."""
    drawn = rng.exponential(size=shape) - 1 if skewed else rng.standard_normal(shape)
    if memory == 1:
        return drawn.cumsum(axis=-1) / np.sqrt(shape[-1])
    for n in range(1, shape[-1]):
        drawn[..., n] = memory * drawn[..., n - 1] + np.sqrt(1 - memory**2) * drawn[..., n]
    return drawn


def sweep(rng: np.random.Generator, seeds: int, memory: float, skewed: bool, effect: float = 0.0) -> list[Group]:
    """A control and three arms, of which the last gets worse. effect: in standard deviations of a paired difference at
    the last round."""
    made = []
    for arm in range(4):
        away = noise(rng, (len(METRICS) + 1, seeds, ROUNDS + 1), memory, skewed) * SD
        rise = effect * np.sqrt(2) * SD * np.arange(ROUNDS + 1) / ROUNDS if arm == 3 else np.zeros(ROUNDS + 1)
        rounds: dict[int, dict[int, dict[str, float]]] = {s: {} for s in range(seeds)}
        for s in range(seeds):
            for n in range(ROUNDS + 1):
                found = {
                    name: float(level * np.exp(away[i, s, n] + worse * rise[n]))
                    for i, (name, (level, worse)) in enumerate(METRICS.items())
                }
                rounds[s][n] = found | {TAIL[0]: float(TAIL[1] + away[-1, s, n] - rise[n])}
        known = {"domain.name": "text", "mixing.name": "replace" if arm else "real_only"}
        made.append(Group(f"arm {arm}", known, rounds, (f"arm {arm}",), f"arm {arm}"))
    return made


def alarms() -> None:
    rows = []
    laws = [("independent rounds", 0.0, False), ("autocorrelation 0.8", 0.8, False)]
    laws += [("random walks", 1.0, False), ("skewed, autocorrelation 0.8", 0.8, True)]
    for name, memory, skewed in laws:
        cells = [name]
        for seeds in SEEDS:
            rng = np.random.default_rng(seeds)
            wrong = sum(
                any(
                    row["verdict"] == YES
                    for row in verdicts(sweep(rng, seeds, memory, skewed))
                    if row["definition"] != NONE
                )
                for _ in range(SWEEPS)
            )
            cells.append(f"{wrong / SWEEPS:.1%}")
        rows.append(cells)
        print(cells, file=sys.stderr, flush=True)
    head = ["null sweeps with a false alarm", *(f"{s} seeds" for s in SEEDS)]
    table(f"{SWEEPS} null sweeps a cell, 3 arms and a control, nominal 5 %", head, rows)


def power() -> None:
    rows = []
    for effect in (2.0, 4.0, 8.0, 16.0):
        held: dict[str, list[str]] = {}
        for seeds in SEEDS:
            rng = np.random.default_rng(seeds)
            found: Counter[str] = Counter()
            for _ in range(max(SWEEPS // 5, 20)):
                said = verdicts(sweep(rng, seeds, 0.8, False, effect))
                found.update(row["definition"] for row in said if row["arm"] == "arm 3" and row["verdict"] == YES)
            for name in ("any_rise", "tail", "diverging", "variance"):
                held.setdefault(name, []).append(f"{found[name] / max(SWEEPS // 5, 20):.0%}")
        rows += [[f"{effect:g} sd", name, *cells] for name, cells in held.items()]
        print(rows[-4:], file=sys.stderr, flush=True)
    head = ["effect", "definition", *(f"{s} seeds" for s in SEEDS)]
    table(f"Power, {max(SWEEPS // 5, 20)} sweeps a cell, autocorrelation 0.8", head, rows)


# -- the lab, where theory knows ---------------------------------------------------------------------------------------

REGIMES = ("replace", "accumulate", "accumulate_subsample", "fresh")
GRID = {
    "gaussian": ("domain=gaussian", "rounds=20", "size=50", "domain.chains=1000"),
    "categorical": ("domain=categorical", "rounds=20", "size=200", "domain.vocabulary=200", "domain.chains=200"),
    "regression": ("domain=regression", "rounds=20", "domain.chains=200"),
}
LENGTHS = (4, 5, 8, 12, 20)  # rounds after round 0; verdicts on a trend need five rounds with round 0
FEW = 10  # chains: seeds differ then
# What theory says of the excess over retraining on the same real data (docs/verdicts.md has the sources). Definitions
# of which it says nothing exact are left out.
THEORY = {
    ("gaussian", "replace"): {"any_rise": YES, "variance": YES},
    ("gaussian", "accumulate"): {"any_rise": YES, "variance": NO, "diverging": NO},
    ("gaussian", "accumulate_subsample"): {"any_rise": YES, "diverging": NO},
    ("gaussian", "fresh"): {"variance": NO, "diverging": NO},
    ("categorical", "replace"): {"any_rise": YES, "variance": YES, "tail": YES},
    ("categorical", "accumulate"): {"variance": NO, "tail": NO},
    ("categorical", "fresh"): {"variance": NO},
    ("regression", "replace"): {"any_rise": YES, "diverging": YES},
    ("regression", "accumulate"): {"any_rise": YES, "diverging": NO},
    ("regression", "fresh"): {"diverging": NO},
}


def lab(folder: Path, chains: int | None = None) -> None:
    """Verdicts of all rounds as a table, and how many are right of those that only the first rounds would give.

    chains: in place of the grid's own, which leave no noise to speak of."""
    rows: list[list[str]] = []
    count: dict[int, Counter[str]] = {last: Counter() for last in LENGTHS}
    wrong: list[list[str]] = []
    for domain, options in GRID.items():
        if chains:
            options = (*(option for option in options if "chains" not in option), f"domain.chains={chains}")
        arms = []
        for regime in ("real_only", *REGIMES):
            for seed in range(5):
                cfg = compose([*options, f"mixing={regime}", f"seed={seed}", "tracking=none", "runtime.workers=1"])
                arm = folder / f"{domain}-{regime}-{seed}"
                write_atomic(arm / "params.yaml", to_yaml(cfg))
                Loop(Experiment(cfg), RunDir(arm, Store(folder / "store"))).run()
                arms.append((f"{regime} seed {seed}", arm))
            print(domain, regime, file=sys.stderr, flush=True)
        found = compared(grouped(arms, differing(arms)))
        for last in LENGTHS:
            cut = [replace(g, seeds={s: {n: r[n] for n in r if n <= last} for s, r in g.seeds.items()}) for g in found]
            said = {(row["arm"], row["definition"]): row["verdict"] for row in verdicts(cut)}
            for regime in REGIMES:
                expected = THEORY.get((domain, regime), {})
                cells = []
                for name in DEFINITIONS:
                    word, wanted = said[regime, name], expected.get(name)
                    kind = "right" if word == wanted else "open" if word in (OPEN, UNTESTABLE) else "wrong"
                    mark = "" if wanted is None else {"right": " ✓", "open": " ?", "wrong": f" ✗ {wanted}"}[kind]
                    count[last][kind] += wanted is not None
                    if wanted is not None and kind == "wrong":
                        wrong.append([str(last), domain, regime, name, word])
                    cells.append("" if word == UNTESTABLE and wanted is None else word + mark)
                if last == LENGTHS[-1]:
                    rows.append([domain, regime, *cells])
    few = f", {chains} chains" if chains else ""
    title = f"The lab, 5 seeds{few}, against theory (✓ as it says, ✗ not, ? open)"
    table(title, ["domain", "regime", *DEFINITIONS], rows)
    kinds = ("right", "wrong", "open")
    lengths = [[str(last), *(str(told[kind]) for kind in kinds)] for last, told in count.items()]
    table("Verdicts of which theory says something, after fewer rounds", ["up to round", *kinds], lengths)
    if wrong:
        table("Not as theory says", ["up to round", "domain", "regime", "definition", "verdict"], wrong)


def splits(sweep: Path) -> None:
    """Seeds of one arm as if they were a control and three arms: nothing tells these apart but chance."""
    arms = true_arms(sweep)
    (found,) = compared(grouped(arms, differing(arms)))
    runs, rows = list(found.seeds.values()), []
    for seeds in (s for s in SEEDS if 4 * s <= len(runs)):
        rng, wrong = np.random.default_rng(seeds), Counter[str]()
        for _ in range(SWEEPS):
            order = iter(rng.permutation(len(runs)))
            parts = [Group(f"arm {i}", found.known, {s: runs[next(order)] for s in range(seeds)}) for i in range(4)]
            parts = [replace(part, arms=(part.name,)) for part in parts]
            said = {row["definition"] for row in verdicts(parts, "arm 0") if row["verdict"] == YES} - {NONE}
            wrong.update([*said, *(["any"] if said else [])])
        rows.append([f"{seeds} seeds", *(f"{wrong[name] / SWEEPS:.1%}" for name in ("any", *DEFINITIONS))])
    head = ["a false alarm", "any", *DEFINITIONS]
    table(f"{SWEEPS} random splits of {len(runs)} seeds into three arms and a control, nominal 5 %", head, rows)


def main() -> None:
    if not ASKED.isdigit():
        splits(Path(ASKED))
        return
    with scratch() as folder:
        lab(Path(folder) / "many")
        lab(Path(folder) / "few", FEW)
    power()
    alarms()


if __name__ == "__main__":
    main()
