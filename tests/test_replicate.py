"""The field's main claim, over seeds: `make replicate` (about ten minutes on two idle cores).

Replace ends above accumulate and above retraining on real data; the spread of real-only retraining is at most a tenth
of the effect, so that what is measured is collapse and not luck. The same test on a wrong regime must not pass.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

SEEDS = (0, 1, 2)
ROUNDS = 5
ARMS = ("real_only", "accumulate", "replace")


def paired(worse: np.ndarray, better: np.ndarray) -> tuple[float, float, tuple[float, float]]:
    """(mean difference, one-sided p of the paired t-test, 95 % interval) over seeds."""
    difference = worse - better
    test = stats.ttest_rel(worse, better, alternative="greater")
    interval = stats.t.interval(0.95, len(difference) - 1, difference.mean(), stats.sem(difference))
    return float(difference.mean()), float(test.pvalue), (float(interval[0]), float(interval[1]))


@pytest.mark.replicate
@pytest.mark.timeout(3600)
def test_replace_collapses_and_accumulate_does_not(project: Path, genloss) -> None:
    done = genloss(
        "run",
        "-m",
        f"mixing={','.join(ARMS)}",
        f"seed={','.join(map(str, SEEDS))}",
        f"rounds={ROUNDS}",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "tracking=none",
        timeout=3500,
    )
    assert done.returncode == 0, done.stderr

    def values(arm: str, n: int) -> np.ndarray:
        found = []
        for seed in SEEDS:
            (folder,) = (project / "runs").glob(f"text-{arm}-none-s{seed}-*")
            found.append(json.loads((folder / f"rounds/{n:02d}/metrics.json").read_text())["heldout_bits_per_byte"])
        return np.array(found)

    real, accumulate, replace = (values(arm, ROUNDS) for arm in ARMS)
    for name, other in (("accumulate", accumulate), ("real_only", real)):
        mean, p, interval = paired(replace, other)
        print(f"replace - {name}: {mean:+.3f} bits per byte, 95 % [{interval[0]:.3f}, {interval[1]:.3f}], p = {p:.4f}")
        assert p < 0.05 and mean > 0

    effect = float((replace - real).mean())
    spread = float(np.concatenate([values("real_only", n) for n in range(ROUNDS + 1)]).std(ddof=1))
    print(f"sd of real-only retraining over seeds and rounds: {spread:.3f} = {spread / effect:.3f} of the effect")
    assert spread <= 0.1 * effect

    # the wrong regime: retraining on real data, compared with itself one round earlier, is no collapse
    mean, p, _ = paired(real, values("real_only", ROUNDS - 1))
    print(f"negative control: {mean:+.3f} bits per byte, p = {p:.4f}")
    assert not (p < 0.05 and mean > 0.1 * effect)
