"""The lab's speed against a straightforward loop over chains: replace with Gaussians, N = 100.

    python benchmarks/lab.py                # about a minute

Bounds: 15 times where every point is drawn, 200 times where sufficient statistics are enough. The loop over chains
keeps nothing; genloss is shown with its stages alone, and with all that makes a run (records, hashes, manifests,
metrics)."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

from common import scratch, table
from genloss.core.capabilities import able
from genloss.core.contracts import Fit
from genloss.core.machine import release_memory
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.domains.lab import Lab
from genloss.domains.lab.draw import Draw
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.workflow.compose import compose

N, ROUNDS, REPEATS = 100, 20, 7


def one_by_one(chains: int) -> float:
    """Chain-rounds a second of the plain loop."""
    rng = np.random.default_rng(0)
    measured = np.empty((4, chains, ROUNDS))  # the numbers that the domain measures
    began = time.perf_counter()
    for chain in range(chains):
        mean, variance = 0.0, 1.0
        for n in range(ROUNDS):
            points = rng.normal(mean, np.sqrt(variance), N)
            mean, variance = points.mean(), points.var()
            drift = mean**2
            measured[:, chain, n] = variance, drift, drift + (np.sqrt(variance) - 1) ** 2, np.log(variance)
    return chains * ROUNDS / (time.perf_counter() - began)


def experiment(chains: int, sums: bool) -> Experiment:
    size = ["size=1", f"domain.batch={N}"] if sums else [f"size={N}"]
    return Experiment(
        compose(["domain=gaussian", f"domain.chains={chains}", f"rounds={ROUNDS}", "tracking=none", *size])
    )


def stages(chains: int, sums: bool) -> float:
    """Chain-rounds a second of sampling, fitting and measuring."""
    x = experiment(chains, sums)
    domain, recipe = able(x.domain, Lab), able(x.recipe, Draw)
    fit = Fit(x.model, x.trainer, Path(), [], [], None, 0, Path())
    points = domain.real(np.random.default_rng(0), x.size, {})
    model = domain.estimate(points, np.broadcast_to(1.0, points.shape[:2]), fit, {})
    began = time.perf_counter()
    for n in range(ROUNDS):
        points = domain.points(model, x.size, n, recipe, {})
        model = domain.estimate(points, np.broadcast_to(1.0, points.shape[:2]), fit, {})
        domain.measure(model, {})
    return chains * ROUNDS / (time.perf_counter() - began)


def whole(chains: int, sums: bool, folder: Path) -> float:
    """Chain-rounds a second of a run."""
    loop = Loop(experiment(chains, sums), RunDir(folder / "run", Store(folder / "store")))
    began = time.perf_counter()
    loop.run()
    return chains * ROUNDS / (time.perf_counter() - began)


def main() -> None:
    release_memory()  # the allocator's settings, for both
    rows = []
    for sums, chains in ((False, 4000), (True, 100_000)):
        name = "sufficient statistics" if sums else "every point drawn"
        # in turn, so that what else the machine does falls on both; the median of the ratios
        pairs = [(one_by_one(500), stages(chains, sums)) for _ in range(REPEATS)]
        plain, fast = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        with scratch() as folder:
            full = whole(chains, sums, Path(folder))
        rows += [
            [f"{name}: a loop over chains", f"{plain:,.0f}", "1"],
            [f"{name}: stages", f"{fast:,.0f}", f"{ratio:.1f}"],
            [f"{name}: a whole run", f"{full:,.0f}", f"{full / plain:.1f}"],
        ]
    table(f"The lab: chain-rounds per second, N = {N}", ["", "chains x rounds / s", "ratio"], rows)
    print("\nbounds for the stages: 15 where every point is drawn, 200 with sufficient statistics")


if __name__ == "__main__":
    main()
