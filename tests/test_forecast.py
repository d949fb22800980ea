"""Forecasts: shapes are recovered, intervals cover, and what cannot be told is said."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genloss.core.errors import UserError
from genloss.core.files import write_atomic
from genloss.observatory.curves import SHAPES, best, fit
from genloss.observatory.forecast import LEVEL, MINIMUM, Fitted, crossing, fitted, forecast, foretold, least, quantile
from genloss.observatory.report import target_of
from genloss.observatory.results import Arm
from genloss.workflow.compose import compose, to_yaml
from support import Project

N = np.arange(9)
CURVES = {
    "linear": 1 + 0.5 * N,
    "saturating": 1 + 2 * np.concatenate([[0], np.cumsum(1 / np.arange(1.0, 9) ** 2)]),
    "geometric": 2 - 1.5 * 0.7**N,
    "power": 1 + 0.3 * N**1.6,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_curves_are_recovered(shape: str) -> None:
    found = best(N, CURVES[shape])
    assert found.shape == shape
    np.testing.assert_allclose(found(N), CURVES[shape], atol=1e-6)
    ahead = {"linear": 11.0, "saturating": 1 + 2 * sum(1 / i**2 for i in range(1, 21)), "geometric": 2 - 1.5 * 0.7**20}
    assert float(found(20)) == pytest.approx(ahead.get(shape, 1 + 0.3 * 20**1.6), rel=1e-4)


@given(st.floats(-100, 100), st.floats(0.01, 100))
def test_a_fit_follows_shift_and_unit(shift: float, unit: float) -> None:
    values = CURVES["geometric"] + 0.01 * np.sin(N)
    plain, moved = fit("geometric", N, values), fit("geometric", N, shift + unit * values)
    np.testing.assert_allclose(moved([10, 20]), shift + unit * plain([10, 20]), rtol=1e-3, atol=1e-3 * unit)


def arm(rng: np.random.Generator, until: int = 5, last: int = 12, name: str = "a") -> Fitted:
    """A random walk with drift: no curve is right of it."""
    walk = np.cumsum(0.2 + 0.1 * rng.standard_normal(last + 1))
    made = fitted(name, {n: {"m": float(v)} for n, v in enumerate(walk)}, "m", until)
    assert made is not None
    return made


def test_conformal_intervals_cover_as_often_as_they_say() -> None:
    """Of exchangeable arms: LEVEL, at most 1/(n+1) more, within three standard errors. Only the first arm of a trial is
    counted: over all arms, each left out in turn, the share is what it is by arithmetic."""
    rng, n, trials = np.random.default_rng(0), 9, 60
    trial = ([arm(rng) for _ in range(n + 1)] for _ in range(trials))
    hits = np.mean([bool(foretold(first, others, 12)[-1].covered) for first, *others in trial])
    error = 3 * math.sqrt(LEVEL * (1 - LEVEL) / trials)
    assert LEVEL - error <= hits <= LEVEL + 1 / (n + 1) + error


def test_a_quantile_counts_the_one_that_comes() -> None:
    assert MINIMUM == 9
    assert quantile([float(i) for i in range(1, 10)]) == 9.0  # of 9 the greatest
    assert quantile([float(i) for i in range(1, 20)]) == 18.0


def test_few_arms_are_uncalibrated() -> None:
    rng = np.random.default_rng(0)
    arms = [arm(rng) for _ in range(MINIMUM + 1)]
    assert {told.arms for told in foretold(arms[0], arms[1:], 12)} == {MINIMUM}
    assert {told.arms for told in foretold(arms[0], arms[1:-1], 12)} == {0}
    early = arm(rng, until=6)
    assert {told.arms for told in foretold(early, arms, 12)} == {0}  # of arms that saw other rounds nothing is learned
    wide = [told.high - told.low for told in foretold(arms[0], [], 12)]
    assert all(a < b for a, b in itertools.pairwise(wide))


def test_forecasts_stay_in_the_range_of_their_metric() -> None:
    """Of a share, a loss and one that may be anything, all falling in a line; with and without other arms."""

    def falling(metric: str, by: float = 0.1, first: float = 0.5) -> Fitted:
        made = fitted("a", {n: {metric: first - by * n} for n in range(6)}, metric, None)
        assert made is not None
        return made

    for metric, low in (("lost_mass", 0.0), ("risk", 0.0), ("log_likelihood", -0.5), ("mine", -0.5)):
        arm = falling(metric, 0.09)
        others = [falling(metric, 0.09 + 0.001 * i, 0.7) for i in range(MINIMUM)]
        for beside in ([], others):
            told = foretold(arm, beside, 12)
            assert told[-1].value == pytest.approx(max(0.5 - 0.09 * 12, low if low == 0 else -9))
            assert all((one.low >= 0) == (low == 0) or one.round < 8 for one in told)
            assert all(one.low <= one.value <= one.high for one in told)
        assert (crossing(arm, -0.2) is None) == (low == 0)
    rising = fitted("a", {n: {"coverage_d10": 0.1 + 0.15 * n} for n in range(6)}, "coverage_d10", None)
    assert rising is not None and foretold(rising, [], 12)[-1].value == 1.0
    other = fitted("a", {n: {"risk": 0.3 - 0.1 * n} for n in range(6)}, "risk", None)  # of mine, not genloss's
    assert other is not None and foretold(other, [], 12)[-1].value == pytest.approx(-0.9)


def test_crossings() -> None:
    def of(values: np.ndarray) -> Fitted:
        made = fitted("a", {n: {"m": float(v)} for n, v in enumerate(values)}, "m", None)
        assert made is not None
        return made

    assert crossing(of(CURVES["linear"]), 3.0) == 4  # seen
    assert crossing(of(CURVES["linear"]), 8.0) == 14
    assert crossing(of(CURVES["geometric"]), 2.1) is None  # its bound is 2
    assert crossing(of(-CURVES["linear"]), -8.0) == 14


def test_the_least_that_holds() -> None:
    tried = [0.0, 0.1, 0.3]
    assert least("share", tried, [[4.0, 4.2], [2.1], [1.1]], 1.6, 1.0).least == pytest.approx(0.2)
    assert least("share", tried, [[-4.0], [-2.1], [-1.1]], -1.6, -1.0).least == pytest.approx(0.2)
    assert (least("share", tried, [[1.5], [1.2], [1.1]], 1.6, 1.0).bound) == "at most"
    none = least("share", tried, [[4.0], [2.0], [1.8]], 1.6, 1.0)
    assert (none.bound, none.least) == ("more than", 0.3)
    uneven = least("share", tried, [[4.0], [1.0], [2.0]], 1.6, 1.0)  # more real data is taken for no worse
    assert uneven.predicted[1] == uneven.predicted[2] == pytest.approx(1.5)


def write(folder: Path, overrides: list[str], values: list[float], share: float) -> None:
    write_atomic(folder / "params.yaml", to_yaml(compose([*overrides, f"rounds={len(values) - 1}"])))
    for n, value in enumerate(values):
        metrics = {"diversity": value, "train_real_fraction": share if n else 1.0}
        write_atomic(folder / f"rounds/{n:02d}/metrics.json", json.dumps(metrics))


@pytest.fixture
def arms(tmp_path: Path) -> list[Arm]:
    found = []
    for fresh in (5, 20, 50):
        for seed in range(4):
            name = f"fresh n={fresh} seed {seed}"
            kept = 1 - 0.1 / fresh + 0.0005 * seed
            options = ["domain=gaussian", "mixing=fresh", f"mixing.real.n={fresh}", f"seed={seed}"]
            write(tmp_path / f"{fresh}-{seed}", options, [kept**n for n in range(13)], fresh / 100)
            found.append((name, tmp_path / f"{fresh}-{seed}"))
    return found


def test_a_forecast_of_arms(arms: list[Arm], tmp_path: Path) -> None:
    text = forecast(arms, tmp_path, until=5, threshold=0.9)
    whole = json.loads((tmp_path / "forecast.json").read_text())
    assert (whole["schema"], whole["metric"], whole["rounds"], whole["level"]) == (1, "diversity", 5, LEVEL)
    assert whole["unit"] == "variance a dimension" and text.startswith("diversity, variance a dimension\n")
    first = whole["arms"][0]
    assert first["arm"] == "fresh n=5 seed 0" and first["shape"] == "geometric" and first["c"] == pytest.approx(0.98)
    assert first["rounds"][-1]["round"] == 12 and first["rounds"][-1]["arms"] == 11
    assert first["crossing"] == math.ceil(math.log(0.9) / math.log(0.98))
    assert "11 other arms" in text and "uncalibrated" not in text
    (held,) = whole["held"]
    assert held["of"] == "fresh real records a round" and held["tried"] == [5, 20, 50]
    ends = [np.mean([(1 - 0.1 / fresh + 0.0005 * seed) ** 12 for seed in range(4)]) for fresh in (5, 20)]
    assert held["least"] == pytest.approx(float(np.interp(0.9, ends, [5, 20])), rel=0.01) and held["bound"] == ""
    assert f"held at 0.9 until round 12 by: {held['least']:.3g}, fresh" in text


def test_real_data_of_rounds_that_are_not_seen_do_not_count(tmp_path: Path) -> None:
    """Shares that are equal up to the last round that is seen, and differ after it."""
    arms = []
    for i in range(3):
        write(tmp_path / str(i), ["domain=gaussian", f"mixing.real.n={i + 1}"], [0.9**n for n in range(9)], 0.5)
        path = tmp_path / str(i) / "rounds/08/metrics.json"
        path.write_text(json.dumps({"diversity": 0.4, "train_real_fraction": 0.1 * i}))
        arms.append((f"arm {i}", tmp_path / str(i)))
    assert "share of real records (tried: 0, 0.1, 0.2)" in forecast(arms, tmp_path, threshold=0.3)
    assert "what would hold it: not told" in forecast(arms, tmp_path, until=7, threshold=0.3)


@pytest.mark.filterwarnings("error")
def test_numbers_that_are_too_large_are_null(tmp_path: Path) -> None:
    write(tmp_path, ["domain=gaussian"], [2.0**n + n % 2 for n in range(600)], 0.5)
    text = forecast([("a", tmp_path)], tmp_path)
    last = json.loads((tmp_path / "forecast.json").read_text())["arms"][0]["rounds"][-1]
    assert (last["round"], last["low"], last["high"]) == (1198, 0.0, None) and "0 to inf" in text


def test_what_cannot_be_forecast_is_said(arms: list[Arm], tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_atomic(other / "params.yaml", to_yaml(compose(["domain=gaussian"])))
    write_atomic(other / "rounds/00/metrics.json", json.dumps({"drift": 1.0}))
    assert "other: has no diversity; name another metric" in forecast([*arms, ("other", other)], tmp_path)
    (other / "rounds/00/metrics.json").write_text("{")
    assert "other: left out: " in forecast([*arms, ("other", other)], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out=.*file: must be a folder, and this is a file"):
        target_of([other], tmp_path / "file")
    with pytest.raises(UserError, match="--rounds=2: too few rounds: a curve needs 4 with diversity, and an arm has"):
        forecast(arms, tmp_path, until=2)
    with pytest.raises(UserError, match="--metric=diversiti: unknown; did you mean diversity"):
        forecast(arms, tmp_path, metric="diversiti")
    text = forecast(arms[:2], tmp_path, threshold=0.5)
    assert "of 14 later rounds lie in theirs" in forecast(arms[:2], tmp_path, until=5)
    assert "uncalibrated" in text and "what would hold it: not told" in text
    assert "all are seen, the last is 12; name an earlier one" in forecast(arms[:2], tmp_path, until=99)
    assert "round 24" in forecast(arms[:2], tmp_path, until=12) and "all are seen" not in forecast(arms, tmp_path)
    home = Project.make(tmp_path / "project")
    done = home.ok("forecast", str(arms[0][1]), "--rounds", "5")
    assert done.out.strip().endswith(f"{arms[0][1]}/forecast.json") and (arms[0][1] / "forecast.json").is_file()
    assert not (arms[0][1] / "report").exists()  # an output of DVC, which a forecast would change
    assert "is neither a run directory" in home.call("forecast", str(tmp_path)).err
    assert "--rounds=0: must be a whole number" in home.call("forecast", str(arms[0][1]), "--rounds", "0").err
