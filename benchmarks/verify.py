"""Answers verified per second, and the time of 100,000.

    python benchmarks/verify.py            # a minute

Bound: 100,000 integers in 60 s on one core. Half of the responses are right, a quarter wrong, a quarter no answer at all.
Expressions go through math-verify one by one, so fewer of them are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa

from common import table
from genloss.domains.reasoning.verify import Checked, expressions, integers, spectra, texts

N = 100_000


def answers(kind: str, n: int) -> tuple[pa.Array, pa.Array]:
    """(responses, answers) of n problems."""
    rng = np.random.default_rng(0)
    values = rng.integers(-10_000, 10_000, n)
    if kind == "spectra":
        numbers = np.sort(rng.normal(0, 10, (n, 5)), axis=1)[:, ::-1]
        truth = [" ".join(f"{v:.1f}" for v in row) for row in numbers]
        wrong = [" ".join(f"{v + 5:.1f}" for v in row) for row in numbers]
    elif kind == "expressions":
        truth = [rf"\frac{{{v}}}{{7}}" for v in values]
        wrong = [rf"\frac{{{v + 1}}}{{7}}" for v in values]
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
        ("expressions", 400, expressions),
    ]
    rows = []
    for kind, n, check in checks:
        said, truth = answers(kind, n)
        check(said[:4], truth[:4])  # imports
        began = time.perf_counter()
        right, parsed = check(said, truth)
        seconds = time.perf_counter() - began
        assert kind == "texts" or (abs(right.mean() - 0.5) < 0.01 and abs(parsed.mean() - 0.75) < 0.01), kind
        rows.append([kind, str(n), f"{seconds:.3f}", f"{n / seconds:,.0f}", f"{N * seconds / n:.2f}"])
    table("Verification, one core", ["answers", "n", "seconds", "a second", "seconds for 100,000"], rows)


if __name__ == "__main__":
    main()
