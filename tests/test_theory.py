"""Theory: the published closed forms are special cases, and a literal simulation agrees for any regime."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from genloss.core.errors import UserError
from genloss.experiment import Experiment
from genloss.mix import Budget, Mixing, Part, Real, Regime, Synthetic
from genloss.theory import NoPrediction, categorical, gaussian, limit, optimal, predict, schedule, weight
from genloss.workflow.compose import compose
from hydra_plugins.genloss import golden

REPOSITORY = Path(__file__).resolve().parents[1]
REPLACE = Mixing(real=Real("none", 100))


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-9)


def accumulate(size: int) -> Mixing:
    return Mixing(real=Real("fixed", size), window="all")


# -- closed forms: n fits are rounds 0..n-1 ------------------------------------------------------------------------


def test_replace() -> None:
    """(1 - 1/N)^n for the biased estimator; n/N of drift for the unbiased one (Shumailov et al. 2024)."""
    for n, (biased, fair) in enumerate(
        zip(
            predict(REPLACE, 49, 100, 100, gaussian()),
            predict(REPLACE, 49, 100, 100, gaussian("unbiased")),
            strict=True,
        ),
        1,
    ):
        assert biased.diversity == close(0.99**n) and biased.drift == close(1 - 0.99**n)
        assert fair.diversity == close(1) and fair.drift == close(n / 100)
    assert biased.diversity == pytest.approx(0.6050, abs=5e-5)


@pytest.mark.parametrize("estimator", ["mle", "unbiased"])
def test_sampling_bias(estimator: str) -> None:
    """lambda^n, and drift (1/N) sum lambda^i (Alemohammad et al. 2024). A biased estimator adds its own factor."""
    own = 0.99 if estimator == "mle" else 1.0
    found = predict(REPLACE, 10, 100, 100, gaussian(estimator, bias=0.8))
    for n, prediction in enumerate(found):
        assert prediction.diversity == close(own * (0.8 * own) ** n)
        assert prediction.drift == close(sum((0.8 * own) ** i for i in range(n + 1)) / 100)
    if estimator == "unbiased":
        assert found[10].diversity == pytest.approx(0.10737, abs=5e-6)


@pytest.mark.parametrize(("size", "bound"), [(10, 0.84344), (100, 0.98363)])
def test_accumulate(size: int, bound: float) -> None:
    """The product over 1 - 1/(N i^2), for numbers and for tokens, with the limit sin(x)/x at x = pi/sqrt(N)."""
    x = math.pi / size**0.5
    assert math.sin(x) / x == pytest.approx(bound, abs=5e-6)
    number = predict(accumulate(size), 199, size, size, gaussian())
    token = predict(accumulate(size), 199, size, size, categorical(0.3))
    product = 1.0
    for i, (a, b) in enumerate(zip(number, token, strict=True), 1):
        product *= 1 - 1 / (size * i * i)
        assert a.diversity == close(product) and b.diversity == close(0.7 * product)
        assert a.drift == close(1 - product)
    left = math.exp(-1 / (size * 200.5))  # the factors of the rounds after, to first order
    assert product * left == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize(("size", "bound"), [(10, 0.73899), (100, 0.97100)])
def test_accumulate_subsample(size: int, bound: float) -> None:
    """(1 - 1/N) times the product over 1 - (3N - 1)/(iN (iN - 1)), from i = 2."""
    mixing = Mixing(real=Real("fixed", size), window="all", budget=Budget("fixed", size))
    found = predict(mixing, 199, size, size, gaussian())
    product = 1 - 1 / size
    for i, prediction in enumerate(found, 1):
        if i > 1:
            product *= 1 - (3 * size - 1) / (i * size * (i * size - 1))
        assert prediction.diversity == close(product) and prediction.points == size
    left = math.exp(-(3 * size - 1) / size**2 / 200.5)
    assert product * left == pytest.approx(bound, rel=2e-5)


def test_categorical_replace() -> None:
    """H_0 (1 - 1/N)^n (Seddik et al. 2024) for Zipf's law over 1000 tokens."""
    p = 1 / np.arange(1, 1001)
    collision = float(((p / p.sum()) ** 2).sum())
    found = predict(Mixing(real=Real("none", 1000)), 49, 1000, 1000, categorical(collision))
    for n, prediction in enumerate(found, 1):
        assert prediction.diversity == close((1 - collision) * 0.999**n)
        assert prediction.drift == close((1 - collision) * (1 - 0.999**n))


@pytest.mark.parametrize(("m", "bound"), [(1, 0.6656), (5, 0.9078), (20, 0.9743)])
def test_fresh(m: int, bound: float) -> None:
    """m fresh real records among 200: about 2m/(2m + 1) of the diversity stays, whatever the training set's size."""
    rounds, start, real, made = 900, 0.1, m, 200 - m
    found = predict(Mixing(real=Real("fresh", m)), rounds, m * (rounds + 1), made, categorical(start))
    share, f = real / 200, 1 / m + (1 - 1 / m) * start  # round 0 has the real records alone
    for prediction in found:
        assert prediction.diversity == close(1 - f)
        f = (
            share**2 * (1 / real + (1 - 1 / real) * start)
            + 2 * share * (1 - share) * start
            + (1 - share) ** 2 * (1 / made + (1 - 1 / made) * f)
        )
    assert found[-1].diversity / (1 - start) == pytest.approx(bound, abs=1e-4)
    assert bound == pytest.approx(2 * m / (2 * m + 1), abs=0.002)


@pytest.mark.parametrize(("c", "factor"), [(1.5, 0.55152), (2.0, 0.77374)])
def test_truncation(c: float, factor: float) -> None:
    found = predict(REPLACE, 5, 100, 100, gaussian("unbiased", truncation=c))
    for n, prediction in enumerate(found):
        assert prediction.diversity == pytest.approx(factor**n, rel=1e-4)
    late = predict(REPLACE, 3, 100, 100, lambda n: gaussian("unbiased", truncation=c if n == 2 else None))
    assert [p.diversity for p in late] == pytest.approx([1, 1, factor, factor], rel=1e-4)


def test_batch() -> None:
    """Records that stand for many points each are as many points, where whole rounds are used."""
    for mixing, b in itertools.product((Mixing(real=Real("none", 20)), accumulate(20)), ("mle", "unbiased")):
        many = predict(mixing, 5, 20, 20, gaussian(b, batch=50))
        points = predict(Mixing(real=Real(mixing.real.kind, 1000), window=mixing.window), 5, 1000, 1000, gaussian(b))
        for a, c in zip(many, points, strict=True):
            assert (a.diversity, a.drift) == close((c.diversity, c.drift))


def test_kernel_density() -> None:
    """Under replace every round adds h^2 and takes the share 1/N of the training set's variance."""
    v, total = 0.0, 1.0
    for prediction in predict(REPLACE, 9, 100, 100, gaussian("kde", bandwidth=0.2)):
        v = 0.99 * total + 0.04
        assert prediction.diversity == close(v)
        total = v
    with pytest.raises(NoPrediction, match="no single variance"):
        gaussian("kde", bias=0.9)
    assert gaussian("mle", bandwidth=0.2) == gaussian("mle")


# -- optimal mixing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("real", "made"), [(50, 50), (20, 80), (90, 30)])
def test_golden(real: int, made: int) -> None:
    """The recursion ends in the published limit; its best weights end in the published weight, where V n_r = w."""
    mixing = Mixing(real=Real("fresh", real), by="weight", value=0.5)
    available = real * 201
    for w in (0.3, weight(real, made), 0.9):
        found = predict(
            Mixing(real=Real("fresh", real), by="weight", value=w), 200, available, made, gaussian("known")
        )[-1]
        assert found.drift == pytest.approx(limit(w, real, made), rel=1e-8) and found.diversity == 1
    weights, predictions = schedule(mixing, 200, available, made, gaussian("known"))
    assert weights[-1] == close(weight(real, made))
    assert predictions[-1].drift == close(weights[-1] / real)
    drift = 1 / real
    for w, prediction in zip(weights, predictions[1:], strict=True):  # a Kalman filter: precisions add
        drift = 1 / (real + 1 / (drift + 1 / made))
        assert prediction.drift == close(drift) and w == close(drift * real)
    around = [limit(weight(real, made) + step, real, made) for step in (-1e-3, 0, 1e-3)]
    assert min(around) == around[1]


def test_golden_is_the_preset() -> None:
    assert weight(50, 50) == pytest.approx(golden(), rel=1e-12)
    assert weight(50, 50) == pytest.approx(0.61803, abs=5e-6)
    assert limit(weight(50, 50), 50, 50) * 50 == pytest.approx(0.61803, abs=5e-6)
    assert limit(0.5, 50, 50) * 50 == close(2 / 3)  # both pooled
    assert limit(1, 50, 50) * 50 == 1  # real records alone

    def drawn(value: float) -> Mixing:
        return Mixing(real=Real("fresh", 10), by="weight", value=value, budget=Budget("fixed", 4))

    weights, predictions = schedule(drawn(0.5), 3, 40, 10, gaussian())
    for n, step in itertools.product((1, 2, 3), (-0.01, 0.01)):
        values = [0.5, *weights]
        values[n] += step
        mixings = [drawn(value) for value in values]
        other = predict(mixings.__getitem__, n, 40, 10, gaussian())
        assert other[n].drift > predictions[n].drift


@pytest.mark.parametrize("cost", [0.05, 0.3, 1.0])
def test_optimal_split(cost: float) -> None:
    """The split is the best of all; records that cost as much as real ones are not worth buying."""
    best = optimal(40, 1.0, cost, 12)
    drifts = {}
    for real in range(1, 41):
        drift, made = 1 / real, int((40 - real) / cost)
        for _ in range(12):
            drift = 1 / (real + (1 / (drift + 1 / made) if made else 0))
        drifts[real] = drift
    assert best.predictions[-1].drift == close(min(drifts.values()))
    assert best.real + cost * best.synthetic <= 40 + 1e-9 and len(best.weights) == 12
    assert (best.real == 40) == (cost == 1)


# -- invariants and limits of the theory -------------------------------------------------------------------------------

KINDS, WINDOWS = ("none", "fixed", "fresh", "fixed+fresh"), ("none", "last", "all", 1, 2, 7)
BY, BUDGETS = ("counts", "fraction", "ratio", "weight"), ("grow", "fixed", "schedule")


def build(pick: Callable, number: Callable[[int, int], int], share: Callable[[], float]) -> Mixing:
    """A mixing of drawn fields. Raises UserError where the schema refuses it."""
    kind, by, budget = pick(KINDS), pick(BY), pick(BUDGETS)
    real = number(1, 10) if "fresh" in kind or pick((True, True, False)) else None
    return Mixing(
        real=Real(kind, real),
        window=pick(WINDOWS),
        synthetic=Synthetic(pick((None, number(1, 15)))),
        by=by,
        value=None if by == "counts" else (2 if by == "ratio" else 1) * pick((share(), share(), share(), 0.0, 1.0)),
        budget=Budget(
            budget, number(2, 20) if budget != "grow" else None, 1.2 * share() if budget == "schedule" else 0.0
        ),
        replacement=budget != "grow" and pick((True, False)),
    )


@settings(max_examples=300)
@given(data=st.data())
def test_conservation(data: st.DataObject) -> None:
    """Drift and variance add up to the real variance: every record of an uncurated run has its second moment."""
    try:
        mixing = build(
            lambda options: data.draw(st.sampled_from(options)),
            lambda low, high: data.draw(st.integers(low, high)),
            lambda: data.draw(st.floats(0, 1)),
        )
        kept = data.draw(st.lists(st.integers(1, 15), min_size=4, max_size=4))
        found = predict(mixing, 4, 60, lambda n: kept[n - 1], gaussian(variance=2.0))
    except (UserError, NoPrediction):
        assume(False)
    for prediction in found:
        assert prediction.diversity + prediction.drift == pytest.approx(2, rel=1e-12)
        assert prediction.diversity > -1e-12 and prediction.drift > -1e-12


def test_presets() -> None:
    """Every preset has a prediction, and its training sets have the sizes that the plan says."""
    names = [p.stem for p in sorted((REPOSITORY / "conf" / "mixing").glob("*.yaml"))]
    for name in names:
        mixing = Experiment(compose([f"mixing={name}", "size=20"])).mixing
        found = predict(mixing, 4, 200, 20, categorical(0.1))
        assert len(found) == 5 and found[0].points == 20
        assert all(0 < p.diversity < 0.9 for p in found), name


def test_refusals() -> None:
    single = Mixing(real=Real("none", 5), window="last", synthetic=Synthetic(1))
    with pytest.raises(NoPrediction, match="round 1 may train on one record"):
        predict(single, 2, 10, 5, gaussian("unbiased"))
    with pytest.raises(NoPrediction, match="round 1 has no records"):
        predict(REPLACE, 2, 100, 0, gaussian())
    with pytest.raises(NoPrediction, match="asks for 200 records in round 2, and 100"):
        grown = Mixing(real=Real("none", 100), budget=Budget("schedule", 100, power=1.0))
        predict(grown, 2, 100, 100, gaussian())
    with pytest.raises(UserError, match="estimator"):
        gaussian("mean")


# -- a literal simulation ----------------------------------------------------------------------------------------------

TOKENS = np.array([0.5, 0.3, 0.15, 0.05])
CHAINS = 6000
COLLISION = float((TOKENS**2).sum())
FAMILIES: list[dict[str, Any]] = [
    {},
    {"estimator": "unbiased", "bias": 0.8},
    {"estimator": "kde", "bandwidth": 0.3},
    {"estimator": "unbiased", "batch": 3},
    {"estimator": "known"},
]


def simulate(
    mixings: list[Mixing], available: int, kept: list[int], family: dict[str, Any], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Every round of many independent runs as genloss.mix.shards does it; samples [round, chain] of each quantity."""
    chains, batch, bandwidth = CHAINS, family.get("batch", 1), family.get("bandwidth", 0.0)
    estimator = family.get("estimator", "mle")

    def choose(part: Part, replacement: bool) -> np.ndarray:
        """genloss.mix.shards._rows"""
        if replacement or part.take > part.size:
            return part.first + rng.integers(0, part.size, (chains, part.take))
        if part.take < part.size:
            return part.first + rng.random((chains, part.size)).argsort(axis=1)[:, : part.take]
        return np.broadcast_to(np.arange(part.first, part.first + part.size), (chains, part.size))

    tokens = rng.choice(4, (chains, available, 1), p=TOKENS)
    sources = {"real": (rng.normal(size=(chains, available, batch)), tokens)}
    counts = dict(enumerate(kept, 1))
    result: dict[str, list[np.ndarray]] = {"variance": [], "drift": [], "gini": []}
    touched: set[int] = set()  # rows of real data that were in any round's reach
    for n, mixing in enumerate(mixings):
        parts = mixing.plan(n, available, counts, used=0)
        for part in parts:
            if part.source == "real":
                if part.name == "fresh":  # counted here, not where the plan counts it
                    part.first = max(touched, default=-1) + 1
                touched |= set(range(part.first, part.first + part.size))
        bootstrap = mixing.replacement and mixing.by == "fraction" and n > 0
        rows = [choose(p, bootstrap) for p in parts]
        x, c = (
            np.hstack(
                [
                    np.take_along_axis(sources[p.source][i], r[:, :, None], axis=1)
                    for p, r in zip(parts, rows, strict=True)
                ]
            )
            for i in (0, 1)
        )
        real: np.ndarray = np.repeat([p.source == "real" for p in parts], [p.take for p in parts])
        real = np.broadcast_to(real, x.shape[:2])
        total, pool = mixing.budget.records(n), x.shape[1]
        if total is not None and mixing.by != "fraction" and n > 0:
            if mixing.replacement:
                drawn = rng.integers(0, pool, (chains, total))
            else:
                drawn = rng.random((chains, pool)).argsort(axis=1)[:, :total]
            x, c = (np.take_along_axis(a, drawn[:, :, None], axis=1) for a in (x, c))
            real = np.take_along_axis(real, drawn, axis=1)
        w: np.ndarray = np.ones(real.shape)
        if mixing.by == "weight" and n > 0:  # genloss.mix.shards._weigh
            n_real, n_made = real.sum(axis=1, keepdims=True), (~real).sum(axis=1, keepdims=True)
            value, both = mixing.value or 0.0, (n_real > 0) & (n_made > 0)
            share = np.where(real, value / np.maximum(1, n_real), (1 - value) / np.maximum(1, n_made))
            w = np.where(both, share * w.shape[1], w)
        w = w / w.sum(axis=1, keepdims=True)
        mean = (w[:, :, None] * x).sum(axis=(1, 2)) / batch
        variance = (w[:, :, None] * (x - mean[:, None, None]) ** 2).sum(axis=(1, 2)) / batch
        if estimator == "unbiased":
            variance /= 1 - (w**2).sum(axis=1) / batch
        variance = np.ones(chains) if estimator == "known" else variance + bandwidth**2
        p = np.stack([(w * (c[:, :, 0] == k)).sum(axis=1) for k in range(4)], axis=1)
        result["variance"].append(variance)
        result["drift"].append(mean**2)
        result["gini"].append(1 - (p**2).sum(axis=1))
        if n + 1 < len(mixings):
            size = (chains, counts[n + 1], batch)
            if estimator == "kde":
                which = (rng.random(size) > w.cumsum(axis=1)[:, None, :-1]).sum(axis=2)
                made = np.take_along_axis(x, which[:, :, None], axis=1) + bandwidth * rng.normal(size=size)
            else:
                deviation = np.sqrt(family.get("bias", 1.0) * variance)
                made = mean[:, None, None] + deviation[:, None, None] * rng.normal(size=size)
            token = (rng.random((*size[:2], 1)) > p.cumsum(axis=1)[:, None, :3]).sum(axis=2, keepdims=True)
            sources[str(n + 1)] = (made, token)
    return {name: np.array(values) for name, values in result.items()}


def differences(
    predicted: list[Mixing], simulated: list[Mixing], available: int, kept: list[int], family: dict[str, Any], seed: int
) -> list[float]:
    """z of every quantity of every round: how far the mean of many runs is from its expectation."""
    laws = {"variance": gaussian(**family), "drift": gaussian(**family), "gini": categorical(COLLISION)}
    expectations = {
        name: predict(lambda n: predicted[n], len(predicted) - 1, available, lambda n: kept[n - 1], law)
        for name, law in laws.items()
    }
    samples = simulate(simulated, available, kept, family, np.random.default_rng(seed))
    found = []
    for name, values in samples.items():
        for n, prediction in enumerate(expectations[name]):
            want = prediction.drift if name == "drift" else prediction.diversity
            error = values[n].std(ddof=1) / len(values[n]) ** 0.5
            assert error > 1e-9 or want == pytest.approx(values[n].mean(), abs=1e-9), (name, n, predicted[n])
            found.append((values[n].mean() - want) / error if error > 1e-9 else 0.0)
    return found


def possible(mixings: list[Mixing], available: int, kept: list[int]) -> bool:
    """No round that Mixing refuses, or that would train on so few records that means of runs say little."""
    counts = dict(enumerate(kept, 1))
    for n, mixing in enumerate(mixings):
        try:
            Regime(tuple(mixings)).check_available(available, 1)
            parts = Regime(tuple(mixings)).plan(n, available, counts)
        except UserError:
            return False
        pool, total = sum(p.take for p in parts), mixing.budget.records(n) if n > 0 else None
        if (pool if total is None or mixing.by == "fraction" else total) < 3:
            return False
    return True


def cases(count: int) -> list[tuple[list[Mixing], int, list[int]]]:
    """Random regimes; every other one is a random schedule, in which about half of the rounds have one of their own."""
    rng = np.random.default_rng(20)
    result: list[tuple[list[Mixing], int, list[int]]] = []

    def draw() -> Mixing:
        return build(lambda o: o[rng.integers(len(o))], lambda a, b: int(rng.integers(a, b + 1)), rng.random)

    while len(result) < count:
        rounds, scheduled = int(rng.integers(3, 6)), len(result) % 2 == 1
        available, kept = int(rng.integers(8, 61)), [int(k) for k in rng.integers(4, 16, rounds)]
        try:
            mixings = [draw()] * (rounds + 1)
            for n in range(1, rounds + 1):
                if scheduled and rng.random() < 0.5:
                    mixings[n] = draw()
        except UserError:
            continue
        if possible(mixings, available, kept):
            result.append((mixings, available, kept))
    return result


def test_simulation() -> None:
    chosen = cases(400)  # 200 of them random schedules
    used: Counter = Counter()
    found = []
    for seed, (mixings, available, kept) in enumerate(chosen):
        family = FAMILIES[seed % len(FAMILIES)]
        try:
            found += [(z, seed) for z in differences(mixings, mixings, available, kept, family, seed)]
        except NoPrediction:  # all of the loss may be one record's
            assert family.get("estimator") == "unbiased" and any(m.by == "weight" for m in mixings)
            continue
        m = mixings[-1]
        used.update({("real", m.real.kind), ("window", m.window), ("by", m.by), ("budget", m.budget.kind)})
        used.update(
            {
                ("n", m.real.n is None),
                ("synthetic", m.synthetic.n is None),
                ("changes", len({repr(m) for m in mixings[1:]}) > 1),
                ("drawn", m.by, m.replacement, m.budget.kind != "grow"),
            }
        )
    options: list[tuple[Any, ...]] = [("real", k) for k in KINDS] + [("window", w) for w in WINDOWS]
    options += [("by", b) for b in BY] + [("budget", b) for b in BUDGETS]
    options += [(f, b) for f in ("n", "synthetic", "changes") for b in (True, False)]
    options += [("drawn", b, *d) for b in BY for d in ((False, False), (False, True), (True, True))]
    assert not [o for o in options if used[o] < 4], used
    z = np.array([value for value, _ in found])
    bound = NormalDist().inv_cdf(1 - 1e-3 / len(z) / 2)
    worst, seed = max(found, key=lambda item: abs(item[0]))
    print(
        f"{len(chosen)} regimes, {len(z)} checks, worst |z| {abs(worst):.2f} of {bound:.2f}, "
        f"rms {(z**2).mean() ** 0.5:.3f}"
    )
    assert abs(worst) < bound, (worst, chosen[seed])
    assert 0.9 < (z[z != 0] ** 2).mean() ** 0.5 < 1.1  # as standard normal values are, not only within the bound


@pytest.mark.parametrize(
    ("predicted", "simulated"),
    [
        (accumulate(10), Mixing(real=Real("none", 10))),
        (accumulate(10), Mixing(real=Real("fixed", 10), window="all", budget=Budget("fixed", 10))),
        (
            Mixing(real=Real("fixed", 10), window="all", budget=Budget("fixed", 10)),
            Mixing(real=Real("fixed", 10), window="all", budget=Budget("fixed", 10), replacement=True),
        ),
        (Mixing(real=Real("fixed", 10)), Mixing(real=Real("fresh", 10))),
        (
            Mixing(real=Real("fresh", 5), by="weight", value=0.5),
            Mixing(real=Real("fresh", 5), by="weight", value=0.8),
        ),
    ],
)
def test_a_wrong_regime_fails(predicted: Mixing, simulated: Mixing) -> None:
    """The check has the power to tell regimes apart."""
    z = differences([predicted] * 5, [simulated] * 5, 60, [10] * 4, {}, 0)
    assert max(map(abs, z)) > 6


@pytest.mark.parametrize("replacement", [False, True])
def test_unbiased_with_a_drawn_share(replacement: bool) -> None:
    """The correction 1 - sum w^2 is that of the records that a run drew, not its mean over runs."""
    mixing = Mixing(real=Real("fixed", 6), by="weight", value=0.1, budget=Budget("fixed", 6), replacement=replacement)
    z = differences([mixing] * 3, [mixing] * 3, 6, [6, 6], {"estimator": "unbiased", "bias": 0.05}, 0)
    assert max(map(abs, z)) < 4
