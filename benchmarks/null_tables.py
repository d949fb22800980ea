"""How often the scoreboard would fail though every claim is true: 10,000 null tables.

    genloss replicate                       # first: the arms
    python benchmarks/null_tables.py        # four minutes on one core

Of every claim the chains that were measured are resampled, as many as there are, and held against their own mean, which
is true of them: what |z| exceeds the bound in is a false rejection, of the skewed and heavy-tailed samples as they are.
Stated: 1 % of tables. The bootstrap cannot see tails beyond the chains' own, so that a claim whose sample is ruled by a
few chains (skew / sqrt(n) in the second table) has no place on the scoreboard."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from common import table
from genloss.core.places import project_root
from genloss.replicate.case import CLAIM, Results
from genloss.replicate.cases import CASES
from genloss.replicate.scoreboard import bound, run_arm

TABLES = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
AT_ONCE = 500  # tables


def samples() -> Iterator[tuple[str, np.ndarray]]:
    """(the claim, its number of every chain) of all claims; arms that are not there are run."""
    root = project_root() / ".genloss" / "replicate"
    for case in CASES:
        results = Results({arm: run_arm(case.name, arm, options, root)[0] for arm, options in case.arms.items()})
        for check in case.checks():
            if check.kind == CLAIM:
                yield f"{case.name}: {check.states}", check.measured(results)


def main() -> None:
    rng, limit = np.random.default_rng(0), bound()
    failed = np.zeros(TABLES, dtype=bool)
    rows = []
    for name, sample in samples():
        centred = (sample - sample.mean()) / sample.std()
        n, wrong = len(sample), 0
        for at in range(0, TABLES, AT_ONCE):
            drawn = centred[rng.integers(0, n, (min(AT_ONCE, TABLES - at), n), dtype=np.int32)]
            far = np.abs(drawn.mean(axis=1)) > limit * drawn.std(axis=1, ddof=1) / n**0.5
            failed[at : at + AT_ONCE] |= far
            wrong += int(far.sum())
        rows.append((wrong, abs(float((centred**3).mean())) / n**0.5, name, n))
    rate = float(failed.mean())
    error = 1.96 * (rate * (1 - rate) / TABLES) ** 0.5
    stated = ["tables with a false rejection", f"{rate:.2%} ± {error:.2%}", "1 %"]
    table(f"{TABLES} null tables of {len(rows)} claims, |z| < {limit:.2f}", ["", "simulated", "stated"], [stated])
    worst = sorted(rows)[:-9:-1]
    cells = [[name[:70], f"{wrong / TABLES:.3%}", f"{skew:.3f}", str(n)] for wrong, skew, name, n in worst]
    table("Most often wrong (a claim's share of 1 % is 0.010 %)", ["claim", "wrong", "skew/√n", "chains"], cells)


if __name__ == "__main__":
    main()
