"""Selection by reward: each curator on points, and the loop against the exact iteration of endless samples."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from genloss.core.contracts import LAST, Inputs
from genloss.core.errors import UserError
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.curate import Context
from genloss.domains.lab import load, save
from genloss.domains.lab.gaussian import Gaussian
from genloss.domains.lab.rewards import Adversarial, BestOfK, BradleyTerry, TopReward, Truncate
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.theory.curation import bradley_terry, tilt, verifier_odds
from genloss.workflow.compose import compose

SIX = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
TOKENS = (
    "domain=categorical",
    "tracking=none",
    "domain.distribution=uniform",
    "domain.vocabulary=6",
    "domain.chains=60",
)


def run(folder: Path, *overrides: str) -> np.ndarray:
    """p [chains, V] (or the variance [chains]) of the last round's models."""
    experiment = Experiment(compose([*overrides]))
    Loop(experiment, RunDir(folder / "run", Store(folder / "store"))).run()
    metrics = json.loads((folder / f"run/rounds/{experiment.rounds:02d}/metrics.json").read_text())
    assert not any(k.startswith("theory/") and not k.endswith("_limit") for k in metrics)
    model = load(folder / f"run/rounds/{experiment.rounds:02d}/model/model.safetensors")
    return model["p"] if "p" in model else model["covariance"][:, 0, 0]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Gaussian(chains=2), 1, 17, tmp_path, Inputs({LAST: (tmp_path,)}))


def best_of_k(p: list[float] | np.ndarray, reward: list[float], k: int) -> np.ndarray:
    """The best of k draws from p; among equally good ones, any. The chance of the top level of reward is
    1 - (1 - P(top))^k, and so on down."""
    weights = np.asarray(p)
    _, level = np.unique(reward, return_inverse=True)
    mass = np.bincount(level, weights=weights)
    below = np.concatenate([[0.0], np.cumsum(mass)]) ** k
    return weights * (np.diff(below) / mass)[level]


# -- the exact laws ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 4])
def test_bradley_terry_is_the_sum_over_groups(k: int) -> None:
    """Every group of k outcomes, by its chance, and softmax within it."""
    rng = np.random.default_rng(k)
    p, r = rng.dirichlet(np.ones(5)), rng.normal(size=5) * 3
    soft, best = np.zeros(5), np.zeros(5)
    for group in itertools.product(range(5), repeat=k):
        chance, weight = np.prod(p[list(group)]), np.exp(r[list(group)])
        np.add.at(soft, list(group), chance * weight / weight.sum())
        best[max(group, key=lambda i: r[i])] += chance
    assert bradley_terry(p, r, k) == pytest.approx(soft, abs=1e-13)
    assert best_of_k(p, list(r), k) == pytest.approx(best, abs=1e-13)


def test_limits() -> None:
    """Ferbach et al. 2024: two of six outcomes five times; endlessly many candidates tilt by e^r. Feng et al. 2025:
    odds."""
    p = np.full(6, 1 / 6)
    for _ in range(5):
        p = bradley_terry(p, SIX, 2)
    assert p @ SIX == pytest.approx(0.7497, abs=5e-5)
    start = np.full(6, 1 / 6)
    assert bradley_terry(start, SIX, 20_000) == pytest.approx(tilt(start, SIX), abs=1e-4)
    assert tilt(tilt(start, SIX), SIX) == pytest.approx(tilt(start, SIX, 2))
    # the mean of e^r rises by at least (K - 1)/K Var(e^r)/e^max
    before, after = start @ np.exp(SIX), bradley_terry(start, SIX, 4) @ np.exp(SIX)
    assert after - before >= 0.75 * (start @ np.exp(SIX) ** 2 - before**2) / np.e
    assert bradley_terry([0.2, 0.8], [0.0, 1.0], 2, flipped=0.5) == pytest.approx([0.2, 0.8])
    assert best_of_k([0.5, 0.25, 0.25], [0.0, 1.0, 1.0], 2) == pytest.approx([0.25, 0.375, 0.375])
    assert verifier_odds(0.4, 0.9, 0.3, rounds=3) == pytest.approx(0.9474, abs=5e-5)
    assert verifier_odds(0.25, 0.9, 0.3) == pytest.approx(0.5)  # breakdown at 1 - q = 1/(1 + psi/phi) = 0.75


# -- the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bradley_terry", "best_of_k", "adversarial"])
def test_loop_follows_the_exact_iteration(tmp_path: Path, name: str) -> None:
    """10 000 records of six tokens: chance moves p by less than 1/N a round, which 60 chains do not see."""
    size, rounds = 10_000, 5 if name != "best_of_k" else 2
    options: tuple[str, ...] = (f"size={size}", f"recipe.n={2 * size}", f"rounds={rounds}", f"curation={name}")
    options += (f"curation.{name}.values={SIX}".replace(" ", ""),)
    if name == "adversarial":
        options += ("curation.adversarial.epsilon=0.2",)
    found = run(tmp_path, *TOKENS, *options) @ np.array(SIX)
    p = np.full(6, 1 / 6)
    for _ in range(rounds):
        if name == "best_of_k":
            p = best_of_k(p, SIX, 2)
        else:
            p = bradley_terry(p, SIX, 2, flipped=0.2 if name == "adversarial" else 0.0)
    assert abs(found.mean() - p @ SIX) < 4 * found.std(ddof=1) / np.sqrt(len(found)) + 1e-4


def test_truncation_of_a_gaussian(tmp_path: Path) -> None:
    """The variance shrinks by 1 - 2cφ(c)/(2Φ(c) - 1) a round: 0.55152 for c = 1.5."""
    options = ("domain=gaussian", "tracking=none", "size=4000", "domain.chains=50", "rounds=3", "curation=truncate")
    found = run(tmp_path, *options, "curation.truncate.c=1.5")
    assert found.mean() == pytest.approx(0.55152**3, rel=0.01)


def test_a_quadratic_reward_narrows(tmp_path: Path) -> None:
    """r = -b x²/2 of many candidates adds b to the precision: 1/2 after a round with b = 1 (a tilt of N(0, 1))."""
    reward = ("curation.bradley_terry.k=40", "curation.bradley_terry.linear=0", "curation.bradley_terry.quadratic=-0.5")
    options = ("domain=gaussian", "tracking=none", "size=500", "recipe.n=20000", "domain.chains=20", "rounds=1")
    assert run(tmp_path, *options, "curation=bradley_terry", *reward).mean() == pytest.approx(0.5, rel=0.05)


# -- the curators alone ----------------------------------------------------------------------------------------------

POINTS = np.array([[3, -1], [1, 2], [0, 0], [-5, 1]], dtype=float)[..., None]
ALL = np.ones((4, 2), dtype=bool)


def test_best_of_each_group(context: Context) -> None:
    assert BestOfK().decide_points(POINTS, ALL, context).tolist() == [
        [True, False],
        [False, True],
        [True, False],
        [False, True],
    ]
    lowest = BestOfK(linear=0, quadratic=-1.0).decide_points(POINTS, ALL, context)
    assert lowest.tolist() == [[False, True], [True, False], [True, True], [False, False]]
    left = ALL.copy()
    left[0, 0] = left[2:, 1] = False  # what an earlier curator dropped is no candidate
    kept = BestOfK().decide_points(np.where(left[..., None], POINTS, np.nan), left, context)
    assert kept.tolist() == [[False, False], [True, True], [True, False], [False, False]]


def test_a_strong_preference_is_the_best(context: Context) -> None:
    best = BestOfK().decide_points(POINTS, ALL, context)
    assert (BradleyTerry(linear=1e6).decide_points(POINTS, ALL, context) == best).all()
    worst = Adversarial(linear=1e6, epsilon=1.0).decide_points(POINTS, ALL, context)
    assert (worst == ~best).all()
    assert (Adversarial(linear=1e6, epsilon=0.0).decide_points(POINTS, ALL, context) == best).all()


def test_top_and_truncate(context: Context) -> None:
    assert TopReward(fraction=0.25).decide_points(POINTS, ALL, context).tolist() == [
        [True, False],
        [False, True],
        [False, False],
        [False, False],
    ]
    model = {"mean": np.array([[0.0], [1.0]]), "covariance": np.array([[[4.0]], [[1.0]]])}
    save(model, context.inputs[LAST] / "model.safetensors")
    kept = Truncate(c=1.5).decide_points(POINTS, ALL, context)
    assert kept.tolist() == [[False, False], [True, True], [True, True], [False, True]]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["curation=best_of_k", "curation.best_of_k.k=1"], "curation.best_of_k.k=1: must be at least 2"),
        (
            ["curation=bradley_terry", "curation.bradley_terry.linear=0"],
            "curation.bradley_terry.linear=0.*prefers nothing",
        ),
        (["curation=top_reward", "curation.top_reward.fraction=0"], "curation.top_reward.fraction=0"),
        (["curation=truncate", "curation.truncate.c=0"], "curation.truncate.c=0"),
        (["curation=adversarial", "curation.adversarial.epsilon=2"], "curation.adversarial.epsilon=2"),
        (
            ["domain=categorical", "curation=truncate"],
            "curation.truncate=Truncate: needs models with one mean.*domain=categorical has none; use domain=gaussian",
        ),
        (
            ["domain=text", "curation=top_reward"],
            "curation.top_reward=TopReward: needs records that are points.*domain=text has none; use domain=.*gaussian",
        ),
    ],
)
def test_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Experiment(compose(["domain=gaussian", "tracking=none", *overrides]))


def test_refused_in_the_loop(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"curation.best_of_k.values=\[2 numbers\]: must be as long as"):
        run(tmp_path / "a", *TOKENS, "size=10", "rounds=1", "curation=best_of_k", "curation.best_of_k.values=[0,1]")
    with pytest.raises(UserError, match=r"curation\.best_of_k\.k=4: must be a divisor of recipe.n=10"):
        run(tmp_path / "b", *TOKENS, "size=10", "rounds=1", "curation=best_of_k", "curation.best_of_k.k=4")
