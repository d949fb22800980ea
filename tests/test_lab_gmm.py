"""Mixtures of Gaussians: EM finds what is there, and modes get lost under replace and stay under accumulate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from genloss.core.errors import UserError
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.domains.lab import stream
from genloss.domains.lab.draw import Draw
from genloss.domains.lab.gmm import Gmm, GmmModel
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.workflow.compose import compose
from support import fit_of

GMM = ("domain=gmm", "tracking=none")


def run(folder: Path, *overrides: str) -> list[dict[str, float]]:
    """Metrics of every round of an arm."""
    experiment = Experiment(compose([*GMM, *overrides]))
    Loop(experiment, RunDir(folder / "run", Store(folder / "store"))).run()
    rounds = range(experiment.rounds + 1)
    return [json.loads((folder / f"run/rounds/{n:02d}/metrics.json").read_text()) for n in rounds]


def test_modes(tmp_path: Path) -> None:
    small = ("domain.modes=9", "model.components=9", "model.iterations=20", "size=100", "domain.chains=8", "rounds=15")
    replace = run(tmp_path / "replace", "mixing=replace", *small)
    accumulate = run(tmp_path / "accumulate", "mixing=accumulate", *small)
    assert replace[0]["modes"] >= 8.5 and accumulate[15]["modes"] >= 8.5
    assert replace[15]["modes"] < 7 and replace[15]["recall"] < 0.5 < accumulate[15]["recall"]
    assert replace[15]["log_likelihood"] < accumulate[15]["log_likelihood"] - 5
    assert not any(k.startswith("theory/") for k in replace[15])


def test_em_finds_the_truth() -> None:
    """25 modes from 1000 points each: weights, centres, covariances, and the likelihood of the real law."""
    domain = Gmm(chains=4)
    truth = domain.truth()
    points = domain.real(stream(0, "points"), 4000, truth)
    model = domain.estimate(points, np.ones((4000, 4)), fit_of(GmmModel(components=25, iterations=30)), truth)
    found = domain.measure(model, truth)
    assert (found["modes"] == 25).all() and found["recall"].min() > 0.97
    assert model["weights"] == pytest.approx(np.full((4, 25), 1 / 25), abs=0.015)
    assert model["covariances"] == pytest.approx(np.tile(0.01 * np.eye(2), (4, 25, 1, 1)), abs=0.005)
    x = truth["test"][:, None] - truth["centres"]
    real = np.log(np.exp(-(x**2).sum(axis=2) / 0.02).mean(axis=1) / (2 * np.pi * 0.01)).mean()
    assert found["log_likelihood"] == pytest.approx(np.full(4, real), abs=0.05)
    drawn = domain.draw(model, stream(1, "drawn"), 20_000, Draw(), truth)
    assert np.var(drawn, axis=0).sum(axis=1) == pytest.approx(found["diversity"], rel=0.03)
    assert drawn.mean(axis=0) == pytest.approx(np.einsum("ck,ckd->cd", model["weights"], model["means"]), abs=0.05)


def test_absent_points_do_not_count() -> None:
    """A point of weight 0 is as if it were not there."""
    domain = Gmm(chains=2, modes=4)
    points = domain.real(stream(0, "points"), 60, domain.truth())
    weights = np.ones((80, 2))
    weights[60:] = 0
    more = np.concatenate([points, np.zeros((20, 2, 2))])
    fit = fit_of(GmmModel(components=4, iterations=10))
    one = domain.measure(domain.estimate(points, weights[:60], fit, {}), domain.truth())
    two = domain.measure(domain.estimate(more, weights, fit, {}), domain.truth())
    assert one["log_likelihood"] == pytest.approx(two["log_likelihood"], rel=1e-6)


def test_more_components_than_places() -> None:
    """Points on one spot: components without a point have weight 0, and nothing is nan."""
    domain = Gmm(chains=2, modes=1)
    model = domain.estimate(np.ones((10, 2, 2)), np.ones((10, 2)), fit_of(GmmModel(components=3, iterations=5)), {})
    assert all(np.isfinite(v).all() for v in domain.measure(model, domain.truth()).values())
    assert np.isfinite(domain.draw(model, stream(0, "x"), 50, Draw(), {})).all()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["domain.modes=26"], "domain.modes=26: must be 1 to 25"),
        (["domain.std=0"], "domain.std=0"),
        (["domain.threshold=2"], "domain.threshold=2"),
        (["model.floor=0"], "model.floor=0.*close on one point"),
        (["size=20"], "model.components=25: must be at most size=20"),
        (["recipe.temperature=0.5"], "recipe.temperature=0.5: is no option of the domain gmm"),
    ],
)
def test_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Experiment(compose([*GMM, *overrides]))
