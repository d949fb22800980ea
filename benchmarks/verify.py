"""Answers verified per second, and the time of 100,000.

    python benchmarks/verify.py            # a minute

Bound: 100,000 answers in 60 s on two cores: integers, texts, spectra, and expressions that are numerals or come from
few problems. Of expressions that are neither, each compared by math-verify, fewer are timed. Half of the responses are
right, a quarter wrong, a quarter no answer at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa

from common import table
from genloss.domains.reasoning.checks import Checked, expressions, integers, spectra, texts

N = 100_000


def answers(kind: str, n: int) -> tuple[pa.Array, pa.Array]:
    """(responses, answers) of n problems."""
    rng = np.random.default_rng(0)
    values = rng.integers(-10_000, 10_000, n)
    if kind == "spectra":
        numbers = np.sort(rng.normal(0, 10, (n, 5)), axis=1)[:, ::-1]
        truth = [" ".join(f"{v:.1f}" for v in row) for row in numbers]
        wrong = [" ".join(f"{v + 5:.1f}" for v in row) for row in numbers]
    elif kind == "numerals":
        truth = [rf"\frac{{{v}}}{{7}}" for v in values]
        wrong = [rf"\frac{{{v + 1}}}{{7}}" for v in values]
    elif kind in ("few problems", "all different"):
        which = np.arange(n) if kind == "all different" else rng.integers(0, 500, n)
        truth = [rf"\frac{{{v}+\sqrt{{2}}}}{{7}}" for v in which]
        same = [rf"\frac{{{v}}}{{7}}+\frac{{\sqrt{{2}}}}{{7}}" for v in which]
        wrong = [rf"\frac{{{v + 1}+\sqrt{{2}}}}{{7}}" for v in which]
        return pa.array(
            [(t, s, w, "?")[i % 4] for i, (t, s, w) in enumerate(zip(truth, same, wrong, strict=True))]
        ), pa.array(truth)
    else:
        truth = [str(v) for v in values]
        wrong = [str(v + 1) for v in values]
    said = [(t, t, w, "?")[i % 4] for i, (t, w) in enumerate(zip(truth, wrong, strict=True))]
    return pa.array(said), pa.array(truth)


def main() -> None:
    checks: list[tuple[str, int, Callable[..., Checked]]] = [
        ("integers", N, integers),
        ("texts", N, texts),
        ("spectra", N, partial(spectra, tolerance=0.05)),
        ("numerals", N, expressions),
        ("few problems", N, expressions),
        ("all different", 4000, expressions),
    ]
    rows = []
    for kind, n, check in checks:
        said, truth = answers(kind, n)
        check(said[:4], truth[:4])  # imports
        began = time.perf_counter()
        right, parsed = check(said, truth)
        seconds = time.perf_counter() - began
        assert kind == "texts" or (abs(right.mean() - 0.5) < 0.01 and abs(parsed.mean() - 0.75) < 0.01), kind
        name = f"expressions, {kind}" if check is expressions else kind
        rows.append([name, str(n), f"{seconds:.3f}", f"{n / seconds:,.0f}", f"{N * seconds / n:.2f}"])
    cores = len(os.sched_getaffinity(0))
    table(f"Verification, {cores} cores", ["answers", "n", "seconds", "a second", "seconds for 100,000"], rows)


if __name__ == "__main__":
    main()
