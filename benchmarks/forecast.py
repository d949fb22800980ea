"""Forecasts: how often their intervals cover what then happens, on arms of the lab.

    python benchmarks/forecast.py               # some minutes on one core

Arms are forecast from their first K rounds and held against the rounds up to 20. Conformal intervals are made of the
errors of ten other seeds: of the same regime (exchangeable: 90 to 91 %, stated), or of all regimes of the domain.
Uncalibrated ones are those of least squares. No arm that is forecast calibrates another: of arms that do so in turn the
share is 90 % by arithmetic."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common import scratch, table
from genloss.core.files import write_atomic
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.observatory.forecast import LEVEL, Fitted, fitted, foretold
from genloss.observatory.results import rounds_of
from genloss.workflow.compose import compose, to_yaml

SEEDS, CALIBRATE, LAST, SEEN = 24, 10, 20, (5, 8, 12)
ARMS = {
    ("gaussian", "diversity"): ("domain=gaussian", "size=50", "domain.chains=200"),
    ("categorical", "lost_mass"): ("domain=categorical", "size=200", "domain.vocabulary=200", "domain.chains=50"),
    ("regression", "risk"): ("domain=regression", "domain.chains=200"),
}
REGIMES = ("replace", "accumulate", "fresh")


def share(arms: Sequence[Fitted], others: Sequence[Fitted]) -> str:
    """Of the arms' later rounds, how many lie in the intervals that others calibrate."""
    seen = [one.covered for arm in arms for one in foretold(arm, others, LAST)]
    return f"{sum(map(bool, seen)) / len(seen):.0%}"


def main() -> None:
    rows = []
    with scratch() as folder:
        for (domain, metric), options in ARMS.items():
            runs = {}
            for regime in REGIMES:
                for seed in range(SEEDS):
                    own = [*options, f"mixing={regime}", f"seed={seed}", f"rounds={LAST}"]
                    cfg = compose([*own, "tracking=none", "runtime.workers=1"])
                    arm = Path(folder) / f"{domain}-{regime}-{seed}"
                    write_atomic(arm / "params.yaml", to_yaml(cfg))
                    Loop(Experiment(cfg), RunDir(arm, Store(Path(folder) / "store"))).run()
                    runs[regime, seed] = rounds_of(arm)
                print(domain, regime, file=sys.stderr, flush=True)
            for seen in SEEN:
                arms = {key: fitted(str(key), rounds, metric, seen) for key, rounds in runs.items()}
                curves = {key: arm for key, arm in arms.items() if arm}
                for regime in REGIMES:
                    test = [c for (name, seed), c in curves.items() if name == regime and seed >= CALIBRATE]
                    if any(arm.still for arm in test):
                        continue
                    shapes = [arm.curve.shape for arm in test]
                    common = max(sorted(set(shapes)), key=shapes.count)
                    pooled = [c for (_, seed), c in curves.items() if seed < CALIBRATE]
                    same = [c for (name, seed), c in curves.items() if name == regime and seed < CALIBRATE]
                    cells = [share(test, others) for others in (same, pooled, [])]
                    rows.append([domain, metric, regime, str(seen), f"{common} ({shapes.count(common)})", *cells])
    head = [
        "domain",
        "metric",
        "regime",
        "K",
        f"shape (of {SEEDS - CALIBRATE})",
        "same regime",
        "all regimes",
        "uncalibrated",
    ]
    table(f"Later rounds in their {LEVEL:.0%} intervals, {SEEDS - CALIBRATE} seeds", head, rows)


if __name__ == "__main__":
    main()
