"""The lab's speed against a straightforward loop over chains: replace with Gaussians, N = 100.

    python benchmarks/lab.py                # about a minute

Bounds: 15 times where every point is drawn, 200 times where sufficient statistics are enough. The loop over chains keeps
nothing; genloss is shown with its stages alone, and with all that makes a run (records, hashes, manifests, metrics).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from common import scratch, table
from genloss.config import Experiment, compose
from genloss.domains import Fit
from genloss.domains.lab import Lab, in_blocks
from genloss.loop import Loop
from genloss.rundir import RunDir
from genloss.store import Store, release_memory

N, ROUNDS = 100, 20


def one_by_one(chains: int) -> float:
    """Chain-rounds a second of the plain loop."""
    rng = np.random.default_rng(0)
    diversity = np.empty((chains, ROUNDS))
    drift = np.empty((chains, ROUNDS))
    began = time.perf_counter()
    for chain in range(chains):
        mean, variance = 0.0, 1.0
        for n in range(ROUNDS):
            points = rng.normal(mean, np.sqrt(variance), N)
            mean, variance = points.mean(), points.var()
            diversity[chain, n], drift[chain, n] = variance, mean**2
    return chains * ROUNDS / (time.perf_counter() - began)


def experiment(chains: int, sums: bool) -> Experiment:
    size = ["size=1", f"domain.batch={N}"] if sums else [f"size={N}"]
    return Experiment(
        compose(["domain=gaussian", f"domain.chains={chains}", f"rounds={ROUNDS}", "tracking=none", *size])
    )


def stages(chains: int, sums: bool) -> float:
    """Chain-rounds a second of sampling, fitting and measuring."""
    x = experiment(chains, sums)
    domain: Any = x.domain
    assert isinstance(domain, Lab)
    fit = Fit(x.model, x.trainer, Path(), [], [], None, 0, Path())
    points = domain.real(np.random.default_rng(0), x.size, {})
    model = domain.estimate(points, np.broadcast_to(1.0, points.shape[:2]), fit, {})
    began = time.perf_counter()
    for n in range(ROUNDS):
        points = in_blocks(x.size, n, lambda rng, count, last=model: domain.draw(last, rng, count, x.recipe, {}))
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
    plain = max(one_by_one(500) for _ in range(3))
    rows = [["a loop over chains", f"{plain:,.0f}", "1"]]
    for sums, chains in ((False, 4000), (True, 100_000)):
        name = "sufficient statistics" if sums else "every point drawn"
        fast = max(stages(chains, sums) for _ in range(3))
        rows.append([f"{name}: stages", f"{fast:,.0f}", f"{fast / plain:.1f}"])
        with scratch() as folder:
            full = whole(chains, sums, Path(folder))
        rows.append([f"{name}: a whole run", f"{full:,.0f}", f"{full / plain:.1f}"])
    table(f"The lab: chain-rounds per second, N = {N}", ["", "chains x rounds / s", "ratio"], rows)
    print("\nbounds for the stages: 15 where every point is drawn, 200 with sufficient statistics")


if __name__ == "__main__":
    main()
