"""Tokens: extinction and diversity against exact theory, through the loop; text, sequences, decoding; bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from genloss.core.errors import UserError
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.domains.lab import load, stream
from genloss.domains.lab.categorical import Categorical, CategoricalModel
from genloss.domains.lab.draw import Draw
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.theory.curation import extinct
from genloss.workflow.compose import compose
from support import fit_of

CATEGORICAL = ("domain=categorical", "tracking=none")
Metrics = list[dict[str, float]]


def run(folder: Path, *overrides: str) -> Metrics:
    """Metrics of every round of an arm."""
    experiment = Experiment(compose([*CATEGORICAL, *overrides]))
    Loop(experiment, RunDir(folder / "run", Store(folder / "store"))).run()
    rounds = range(experiment.rounds + 1)
    return [json.loads((folder / f"run/rounds/{n:02d}/metrics.json").read_text()) for n in rounds]


def distances(metrics: Metrics, *names: str) -> list[float]:
    """z of the predictions of every round."""
    found = [(m[k] - m[f"theory/{k}"]) / m[f"{k}_se"] for m in metrics for k in names if m[f"{k}_se"] > 1e-12]
    assert len(found) > len(metrics) * (len(names) - 1)
    return found


# -- extinction -----------------------------------------------------------------------------------------------------


def test_support_of_zipf(tmp_path: Path) -> None:
    """Tokens that are left of 1000 when 1000 are drawn a round: the exact absorption of a binomial chain. The n-th fit
    is round n-1."""
    metrics = run(tmp_path, "mixing=replace", "rounds=9")
    for fits, expected in ((1, 333.75), (5, 150.63), (10, 96.48)):
        values = metrics[fits - 1]
        assert values["theory/support"] == pytest.approx(expected, abs=0.01)
        assert abs(values["support"] - expected) < 4 * values["support_se"]
    z = distances(metrics, "diversity", "drift", "support", "lost_mass")
    assert max(map(abs, z)) < 4
    # Gini-Simpson diversity shrinks by 1 - 1/N a fit (Seddik et al. 2024)
    real = 1 - float((load(tmp_path / "run/data/truth.safetensors")["p"] ** 2).sum())
    assert [m["theory/diversity"] for m in metrics] == pytest.approx([real * 0.999**n for n in range(1, 11)], rel=1e-9)
    # a token that was lost never comes back
    support = [m["support"] for m in metrics]
    assert support == sorted(support, reverse=True)


def test_extinction_is_that_of_a_literal_chain() -> None:
    p, rng = np.array([0.5, 0.3, 0.15, 0.05, 0.0]), np.random.default_rng(0)
    copies = rng.multinomial(7, p, size=40_000)
    exact = extinct(p, first=7, then=11, rounds=4)
    size = 7
    for gone in exact:
        assert (copies == 0).mean(axis=0) == pytest.approx(gone, abs=4 * 0.5 / 200)
        copies, size = rng.multinomial(11, copies / size), 11


def test_other_counts(tmp_path: Path) -> None:
    """More records than real ones, of which a random half is kept and 30 are used."""
    options = ("size=20", "recipe.n=100", "curation=random", "mixing.synthetic.n=30", "rounds=3", "domain.chains=2000")
    metrics = run(tmp_path, "mixing=replace", "domain.vocabulary=30", *options)
    assert metrics[3]["train_records"] == 30
    assert max(map(abs, distances(metrics, "diversity", "drift", "support", "lost_mass"))) < 4


@pytest.mark.parametrize(
    "overrides",
    [
        ("mixing=accumulate",),
        ("mixing=accumulate_subsample",),
        ("mixing=fresh", "mixing.value=0.25"),
        ("mixing=replace", "domain.distribution=uniform"),
        ("mixing=weighted_fresh",),
    ],
)
def test_regimes(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    metrics = run(tmp_path, *overrides, "size=40", "rounds=4", "domain.vocabulary=50", "domain.chains=1500")
    assert max(map(abs, distances(metrics, "diversity", "drift"))) < 4
    known = overrides[0] in ("mixing=replace", "mixing=accumulate")
    assert ("theory/support" in metrics[2]) == known
    if known:
        assert max(map(abs, distances(metrics, "support", "lost_mass"))) < 4


def test_one_fresh_record_a_round_keeps_diversity() -> None:
    """The limit 2m/(2m + 1) for m fresh real records among N, whatever N is (to 1/N)."""
    for m, limit in ((1, 0.6656), (5, 0.9078), (20, 0.9743)):
        options = ["mixing=fresh", f"mixing.value={m / 200}", "mixing.real.n=200", "mixing.budget.kind=fixed"]
        x = Experiment(compose([*CATEGORICAL, *options, "mixing.budget.n=200", "size=200", "rounds=400"]))
        theory = x.domain.theory(x)
        assert theory[-1]["diversity"] / x.domain.theory(x)[0]["diversity"] == pytest.approx(limit, abs=0.02)


# -- decoding ------------------------------------------------------------------------------------------------------


def fitted(p: list[list[float]]) -> tuple[Categorical, dict[str, np.ndarray]]:
    domain = Categorical(chains=len(p), vocabulary=len(p[0]))
    return domain, {"p": np.array(p)}


def test_temperature_and_nucleus() -> None:
    """p^(1/T), and the smallest set of the likeliest tokens with top_p of the mass; every chain its own."""
    domain, model = fitted([[0.5, 0.3, 0.2, 0.0], [0.0, 0.1, 0.0, 0.9]])
    for temperature, top_p, expected in (
        (1.0, 1.0, model["p"]),
        (0.5, 1.0, [[0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38, 0], [0, 0.01 / 0.82, 0, 0.81 / 0.82]]),
        (1.0, 0.6, [[0.625, 0.375, 0, 0], [0, 0, 0, 1]]),
    ):
        options = Draw(temperature=temperature, top_p=top_p)
        found = domain.draw(model, stream(1, "test"), 40_000, options, {})[..., 0]
        for chain in range(2):
            share = np.bincount(found[:, chain].astype(int), minlength=4) / 40_000
            assert share == pytest.approx(np.array(expected[chain]), abs=0.01)
            assert ((share == 0) == (np.array(expected[chain]) == 0)).all()


def test_temperature_has_no_exact_prediction(tmp_path: Path) -> None:
    """Any temperature but 1 degenerates (Marchi et al. 2024), and the engine knows its limit alone."""
    cold = run(tmp_path, "recipe.temperature=0.7", "rounds=3", "domain.vocabulary=20", "size=500", "domain.chains=50")
    assert not any(k.startswith("theory/") and not k.endswith("_limit") for m in cold for k in m)
    assert cold[3]["diversity"] < cold[0]["diversity"] - 0.2


# -- sequences and text --------------------------------------------------------------------------------------------


def text(corpus: Path, *more: str) -> tuple[str, ...]:
    return ("domain/corpus=folder", f"domain.corpus.path={corpus}", "domain.distribution=text", *more)


def test_words(tmp_path: Path, corpus: Path) -> None:
    metrics = run(tmp_path, *text(corpus), "domain.vocabulary=20", "size=50", "rounds=2", "domain.chains=500")
    words = (tmp_path / "run/data/words.txt").read_text().split()
    p = load(tmp_path / "run/data/truth.safetensors")["p"]
    assert words[0] == "the" and words[-1] == "(rest)" and len(words) == len(p) == 20
    # a third of the words in `sentences` of conftest.py is "the", but numbers are no words
    assert p[0] == pytest.approx(2 / 7, abs=1e-9) and p.sum() == pytest.approx(1)
    assert max(map(abs, distances(metrics, "diversity", "drift", "support", "lost_mass"))) < 4


def test_bigrams(tmp_path: Path, corpus: Path) -> None:
    """Replacing loses pairs of words and predicts real text ever worse; accumulating does not."""
    options = (
        "domain.vocabulary=20",
        "domain.length=10",
        "model.order=2",
        "model.smoothing=0.02",
        "size=40",
        "rounds=6",
    )
    found = {
        mixing: run(tmp_path / mixing, f"mixing={mixing}", *text(corpus), *options, "domain.chains=20")
        for mixing in ("replace", "accumulate")
    }
    replace, accumulate = found["replace"][6], found["accumulate"][6]
    error = np.hypot(replace["heldout_loss_se"], accumulate["heldout_loss_se"])
    assert replace["heldout_loss"] - accumulate["heldout_loss"] > 5 * error
    assert found["replace"][0]["heldout_loss"] == found["accumulate"][0]["heldout_loss"]
    assert not any(k.startswith("theory/") for k in replace)


def test_bigram_model() -> None:
    """Counts of pairs, a row without any, and sampling that follows them."""
    domain = Categorical(chains=2, vocabulary=3, length=4)
    points = np.array([[[0, 1, 0, 1], [2, 2, 2, 2]], [[0, 0, 1, 1], [2, 2, 2, 2]]], dtype=float)
    weights = np.array([[1.0, 1.0], [3.0, 1.0]])
    model = domain.estimate(points, weights, fit_of(CategoricalModel(order=2)), {})
    assert model["p"][0] == pytest.approx([0.5, 0.5, 0]) and model["first"].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert model["next"][0, 0] == pytest.approx([3 / 8, 5 / 8, 0]) and model["next"][0, 1] == pytest.approx(
        [0.25, 0.75, 0]
    )
    assert model["next"][0, 2] == pytest.approx(model["p"][0])
    assert model["distinct_pairs"].tolist() == [4, 1]
    drawn = domain.draw(model, stream(0, "t"), 20_000, Draw(), {})
    assert drawn.shape == (20_000, 2, 4) and (drawn[:, 1] == 2).all() and (drawn[:, 0, 0] == 0).all()
    assert (drawn[:, 0, 1] == 1).mean() == pytest.approx(5 / 8, abs=0.02)
    after = drawn[:, 0, 2][drawn[:, 0, 1] == 1]
    assert (after == 1).mean() == pytest.approx(0.75, abs=0.02)


def test_heldout_loss_is_that_of_real_sequences() -> None:
    """The exact expectation, against the mean over sampled real sequences."""
    domain = Categorical(chains=2, vocabulary=3, length=5, distribution="given", probabilities=[0.6, 0.3, 0.1])
    truth = domain.truth()
    truth["next"] = np.array([[0.1, 0.8, 0.1], [0.5, 0.2, 0.3], [0.9, 0.05, 0.05]])
    at, seen = truth["first"], np.zeros(3)
    for _ in range(4):
        seen, at = seen + at, at @ truth["next"]
    truth["pairs"] = seen[:, None] * truth["next"]
    real = domain.real(stream(0, "real"), 4000, truth)
    model = domain.estimate(real, np.ones((4000, 2)), fit_of(CategoricalModel(order=2, smoothing=1.0)), truth)
    test = domain.real(stream(1, "real"), 20_000, truth)[:, 0].astype(int)
    loss = -np.log(model["first"][0, test[:, 0]]) - np.log(model["next"][0, test[:, :-1], test[:, 1:]]).sum(axis=1)
    assert domain.measure(model, truth)["heldout_loss"][0] == pytest.approx(loss.mean() / 5, abs=0.005)


def test_weights_are_counts() -> None:
    domain = Categorical(chains=2, vocabulary=3)
    points = np.array([[0, 1], [1, 1], [2, 0]], dtype=float)[..., None]
    weights = np.array([[2, 1], [1, 1], [0, 1]], dtype=float)
    fit = fit_of(CategoricalModel())
    assert domain.estimate(points, weights, fit, {})["p"] == pytest.approx(np.array([[2, 1, 0], [1, 2, 0]]) / 3)
    fit = fit_of(CategoricalModel(smoothing=1.0))
    assert domain.estimate(points, weights, fit, {})["p"] == pytest.approx(np.array([[3, 2, 1], [2, 3, 1]]) / 6)


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["domain.distribution=zip"], "domain.distribution=zip: unknown; did you mean zipf"),
        (["domain.distribution=given"], r"domain.probabilities=\[\]: must be a list"),
        (
            ["domain.distribution=given", "domain.probabilities=[0.5,0.4]"],
            "domain.probabilities=.*sum 0.9.*sum to 1 within",
        ),
        (["domain.distribution=given", "domain.probabilities=[1.5,-0.5]"], "domain.probabilities=.*at least 0"),
        (["domain.probabilities=[0.5,0.5]"], "domain.probabilities.*absent unless domain.distribution=given"),
        (["domain.vocabulary=1"], "domain.vocabulary=1: must be at least 2"),
        (["domain.exponent=-1"], "domain.exponent=-1"),
        (["model.order=3"], "model.order=3: must be 1"),
        (["model.order=2"], "domain.length=1: must be at least 2"),
        (["domain.length=5"], "domain.length=5: must be 1 with model.order=1"),
        (["model.order=2", "domain.length=5"], "domain.vocabulary=1000: must be at most 353"),
        (["model.smoothing=-1"], "model.smoothing=-1"),
        (["recipe.bias=0.5"], "recipe.bias=0.5: is no option of the domain categorical"),
        (["recipe.temperature=0"], "recipe.temperature=0"),
        (["model=gaussian"], "model=GaussianModel: is no model of domain=categorical, which takes CategoricalModel"),
        (
            ["domain.distribution=text", "domain/corpus=folder", "domain.corpus.path=nowhere"],
            "domain.corpus.path=nowhere",
        ),
    ],
)
def test_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        Experiment(compose([*CATEGORICAL, *overrides]))
    assert "\n" not in str(error.value)


def test_too_few_words(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(UserError, match=r"domain.vocabulary=1000: must be at most \d+, the number of different words"):
        run(tmp_path, *text(corpus))
