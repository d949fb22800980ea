"""The lab: theory against the loop itself, for the presets and for regimes drawn at random from the schema."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from genloss.core import records
from genloss.core.errors import UserError
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.domains.lab import in_blocks
from genloss.domains.lab.chains import choose, compact, distinct, present, slots
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.mix import Mixing
from genloss.theory import weight
from genloss.workflow.compose import compose
from support import Project, Result, hashes
from test_theory import cases

GAUSSIAN = ("domain=gaussian", "tracking=none")
PRESETS = [p.stem for p in sorted((Path(__file__).parents[1] / "conf" / "mixing").glob("*.yaml"))]


def run(folder: Path, *overrides: str, mixings: list[Mixing] | None = None) -> list[dict[str, float]]:
    """Metrics of every round of an arm. mixings: of every round, through the schedule where it is not the first's."""
    cfg = compose(
        [*(o for o in GAUSSIAN if o.partition("=")[0] not in {p.partition("=")[0] for p in overrides}), *overrides]
    )
    for n, mixing in enumerate(mixings or []):
        if n == 0:
            cfg.mixing = OmegaConf.create({"_target_": "genloss.mix.Mixing", **asdict(mixing)})
        elif mixings and mixing != mixings[0]:
            cfg.schedule = OmegaConf.merge(cfg.schedule, {str(n): {"mixing": asdict(mixing)}})
    experiment = Experiment(cfg)
    Loop(experiment, RunDir(folder / "run", Store(folder / "store"))).run()
    rounds = range(experiment.rounds + 1)
    return [json.loads((folder / f"run/rounds/{n:02d}/metrics.json").read_text()) for n in rounds]


def distances(metrics: list[dict[str, float]], expected: list[dict[str, float]] | None = None) -> list[float]:
    """z of every prediction of every round."""
    found = []
    for n, values in enumerate(metrics):
        theory = {k.removeprefix("theory/"): v for k, v in (expected or metrics)[n].items() if k.startswith("theory/")}
        found += [(values[k] - v) / values[f"{k}_se"] for k, v in theory.items() if values[f"{k}_se"] > 1e-12]
    return found


# -- the loop does what the theory says --------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(tmp_path: Path, preset: str) -> None:
    z = distances(run(tmp_path, f"mixing={preset}", "size=12", "rounds=5", "domain.chains=2000"))
    assert len(z) == 12 and max(map(abs, z)) < 4


SMALL = {
    "categorical": ("domain.vocabulary=20", "domain.chains=300"),
    "regression": ("domain.dimension=3", "domain.chains=300"),
    "classification": ("domain.dimension=3", "domain.chains=50"),
    "gmm": ("domain.modes=4", "model.components=4", "model.iterations=3", "domain.chains=4"),
}


@pytest.mark.parametrize("domain", SMALL)
def test_every_preset_in_every_domain(tmp_path: Path, domain: str) -> None:
    """It runs, and where the domain has a theory of the regime, the theory is right."""
    predicted = 0
    for preset in PRESETS:
        metrics = run(tmp_path / preset, f"domain={domain}", f"mixing={preset}", "size=30", "rounds=3", *SMALL[domain])
        z = distances(metrics)
        predicted += len(z)
        assert not z or max(map(abs, z)) < 4.5, preset
    assert predicted > 0 or domain in ("gmm", "classification")


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.estimator=unbiased", "recipe.bias=0.8"),
        ("model.estimator=kde", "model.bandwidth=0.3", "mixing=accumulate_subsample"),
        ("recipe.truncation=1.5", "model.estimator=unbiased"),
        ("domain.dimension=3", "mixing=weighted_fresh"),
        ("curation=random", "mixing=sliding_window"),
        ("+schedule.2.recipe.bias=0.5", "mixing=accumulate"),
        ("size=2", "recipe.n=2", "domain.batch=10", "mixing=accumulate_subsample"),
        ("model.estimator=known", "mixing=weighted_fresh", "recipe.n=30"),
        ("model.estimator=known", "size=1", "recipe.n=1", "domain.batch=5", "domain.dimension=1"),
    ],
)
def test_options(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    z = distances(run(tmp_path, "size=12", "rounds=4", "domain.chains=4000", *overrides))
    assert len(z) >= (5 if "model.estimator=known" in overrides else 10) and max(map(abs, z)) < 4


@pytest.mark.parametrize("count", [60, pytest.param(400, marks=[pytest.mark.replicate, pytest.mark.timeout(3600)])])
def test_random_regimes(tmp_path: Path, count: int) -> None:
    """What the engine says of any regime, and of any schedule of regimes, is what the loop's own mixing gives, chain by
    chain."""
    z = []
    for i, (mixings, available, kept) in enumerate(cases(count)):
        overrides = [f"rounds={len(kept)}", f"domain.slots={available}", f"recipe.n={kept[0]}", "domain.chains=2000"]
        overrides += [f"+schedule.{n}.recipe.n={k}" for n, k in enumerate(kept, 1)]
        size = mixings[0].real.n or available
        found = distances(run(tmp_path / str(i), *overrides, f"size={size}", f"seed={i}", mixings=mixings))
        assert found, mixings
        z += found
        shutil.rmtree(tmp_path / str(i))
    bound = NormalDist().inv_cdf(1 - 1e-3 / len(z) / 2)
    worst, at = max((abs(v), i) for i, v in enumerate(z))
    print(f"{count} regimes, {len(z)} checks, worst |z| {worst:.2f} of {bound:.2f}, rms {np.std(z):.3f}")
    assert worst < bound and 0.85 < np.std(z) < 1.15, at


@pytest.mark.parametrize("regime", ["accumulate", "replace"])
def test_a_schedule_that_turns_to_fresh_data_gets_fresh_data(tmp_path: Path, regime: str) -> None:
    turn = ("+schedule.3.mixing.real.kind=fresh", "+schedule.4.mixing.real.kind=fixed+fresh")
    found = run(tmp_path, f"mixing={regime}", "size=12", "rounds=5", "domain.chains=4000", *turn)
    z = distances(found)
    assert len(z) >= 10 and max(map(abs, z)) < 4
    points = [slots(records.read(p)) for p in sorted((tmp_path / "run/rounds").glob("*/train/*-fresh.parquet"))]
    real = slots(records.read(tmp_path / "run/data/train.parquet"))
    assert len(points) == 2 and len(real) == 36
    assert np.array_equal(points[0], real[12:24]) and np.array_equal(points[1], real[24:])


VERIFIED = (
    "domain=classification",
    "curation=verifier",
    "curation.verifier.psi=0.2",
    "domain.generator=fixed",
    "rounds=1",
    "domain.chains=400",
)


@pytest.mark.parametrize(
    ("mixing", "share"),
    [
        (("mixing=replace_keep", "mixing.budget={kind: grow, n: null, power: 0.0}", "mixing.value=0.5"), 0.5),
        (("mixing=prev_ratio", "mixing.value=0.25"), 0.8),
    ],
)
def test_every_chain_gets_the_share_that_was_asked_for(tmp_path: Path, mixing: tuple[str, ...], share: float) -> None:
    """Behind a verifier chains keep different numbers of records, and each has its own plan."""
    metrics = run(tmp_path, *VERIFIED, "size=100", "recipe.n=100", "domain.error=0.4", *mixing)[1]
    folder = tmp_path / "run/rounds/01"
    there = {}
    for shard in json.loads((folder / "train/mix.json").read_text())["shards"]:
        there[shard["origin"]] = present(slots(records.read(folder / "train" / shard["file"]))).sum(axis=0)
        assert shard["realised"] == there[shard["origin"]].mean() == shard["requested"]
    real, synthetic = there["real"], there["synthetic"]
    kept = present(slots(records.read(folder / "kept.parquet"))).sum(axis=0)
    assert np.ptp(kept) > 0
    assert np.abs(real - share * (real + synthetic)).max() <= 1  # rounding
    if share == 0.5:  # as large as the scarcer side allows, in every chain
        assert (np.abs(synthetic - np.minimum(kept, 100)) <= 1).all()
    assert metrics["train_requested"] == pytest.approx(metrics["train_records"])
    assert metrics.get("train_records_sd", 0.0) == pytest.approx((real + synthetic).std(ddof=1))


def test_slots_that_do_not_suffice_are_refused_first() -> None:
    with pytest.raises(UserError, match=r"domain\.slots=9: fewer than the 12 real points a chain that all rounds take"):
        Experiment(compose([*GAUSSIAN, "size=4", "mixing=fresh", "rounds=2", "domain.slots=9"]))


def test_a_chain_that_cannot_have_what_was_asked_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs 50 synthetic records in round 1, and \d+ are in reach.* of 400 chains"):
        run(
            tmp_path,
            *VERIFIED,
            "size=100",
            "recipe.n=80",
            "domain.error=0.4",
            "mixing=replace_keep",
            "mixing.value=0.5",
        )


def test_counts_of_chains_are_means(tmp_path: Path) -> None:
    metrics = run(tmp_path, *VERIFIED, "size=100", "recipe.n=100", "domain.error=0.4", "mixing=synthetic_augmentation")[
        1
    ]
    kept = present(slots(records.read(tmp_path / "run/rounds/01/kept.parquet"))).sum(axis=0)
    assert len(slots(records.read(tmp_path / "run/rounds/01/kept.parquet"))) == kept.max() > kept.mean()
    assert metrics["n_kept"] == pytest.approx(kept.mean()) and metrics["n_rejected"] == pytest.approx(100 - kept.mean())
    assert metrics["n_kept_sd"] == pytest.approx(kept.std(ddof=1)) == metrics["n_rejected_sd"]
    assert metrics["train_requested"] == pytest.approx(100 + kept.mean()) == metrics["train_records"]


GIVEN = ("domain=categorical", "domain.distribution=given", "domain.probabilities=[0.4,0.3,0.2,0.1]", "rounds=3")


@pytest.mark.parametrize(
    "overrides",
    [
        ("curation=bradley_terry", "curation.bradley_terry.values=[0,0.5,1,1.5]"),
        ("curation=adversarial", "curation.adversarial.values=[0,0.5,1,1.5]", "mixing=accumulate"),
        ("recipe.temperature=0.8", "+schedule.2.recipe.temperature=1.3"),
    ],
)
def test_many_records_do_what_endlessly_many_would(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """The limit is logged beside what is measured, and what is left between them falls with the number of records."""
    gaps = []
    for size in (100, 2000):
        found = run(
            tmp_path / str(size), *GIVEN, f"size={size}", f"recipe.n={2 * size}", "domain.chains=300", *overrides
        )
        gaps.append([m["diversity"] - m["theory/diversity_limit"] for m in found])
        assert all("theory/entropy_limit" in m and "theory/diversity" not in m for m in found)
    few, many = np.abs(gaps)
    assert many.max() < 0.003 and (many < few / 5).all()


def test_weights_of_unequal_counts() -> None:
    for real, made in ((10, 10), (10, 30), (30, 10)):
        x = Experiment(compose([*GAUSSIAN, "mixing=weighted_fresh", f"size={real}", f"recipe.n={made}"]))
        assert x.mixing.value == pytest.approx(weight(real, made))


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_a_penalty_of_generated_points(tmp_path: Path, kind: str) -> None:
    """A penalty that counts other points is one of another size: here half as many are kept, and none is lost twice."""
    common = ["domain=classification", f"model.kind={kind}", "size=60", "recipe.n=60", "rounds=1", "domain.chains=20"]
    common += ["curation=random", "curation.random.fraction=0.5"]
    same = run(tmp_path / "a", *common, "model.ridge=0.2")[1]["accuracy"]
    counted = run(tmp_path / "b", *common, "model.ridge=0.1", "+schedule.1.model.ridge_points=60")[1]["accuracy"]
    assert counted != run(tmp_path / "c", *common, "model.ridge=0.1")[1]["accuracy"]
    again = run(tmp_path / "d", *common, "model.ridge=0.1", "+schedule.1.model.ridge=0.2")[1]["accuracy"]
    assert counted == pytest.approx(again) and same > 0


def test_a_wrong_regime_fails(tmp_path: Path) -> None:
    right = run(tmp_path / "a", "mixing=replace", "size=12", "rounds=5")
    wrong = run(tmp_path / "b", "mixing=accumulate", "size=12", "rounds=5")
    assert max(map(abs, distances(right, wrong))) > 10


def test_sums_are_points_in_distribution(tmp_path: Path) -> None:
    """N points, or one record of N: the same law, for the metrics that theory says nothing of too."""
    for mixing in ("replace", "accumulate"):
        points = run(tmp_path / f"p-{mixing}", f"mixing={mixing}", "size=30", "rounds=6", "domain.chains=4000")
        sums = run(
            tmp_path / f"s-{mixing}", f"mixing={mixing}", "size=1", "domain.batch=30", "rounds=6", "domain.chains=4000"
        )
        for name in ("diversity", "drift", "log_diversity", "w2"):
            for n in (1, 6):
                error = np.hypot(points[n][f"{name}_se"], sums[n][f"{name}_se"])
                assert abs(points[n][name] - sums[n][name]) < 4 * error


# -- chains ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(0, 40), st.booleans(), st.integers(0, 2**32))
def test_choose(size: int, take: int, replacement: bool, seed: int) -> None:
    """Every chain chooses among its own points; without replacement never the same one twice."""
    rng = np.random.default_rng(seed)
    there = rng.random((size, 7)) < rng.random()
    there[rng.integers(size)] = True
    take = min(take, size)
    rows = choose(rng, there, take, replacement)
    for c in range(7):
        own = rows[:, c]
        count = min(take, there[:, c].sum()) if not replacement else take
        assert (own >= 0).sum() == count and there[own[own >= 0], c].all()
        assert replacement or len(set(own[own >= 0])) == count


@pytest.mark.parametrize(("size", "take"), [(5, 3), (40, 3)])
def test_distinct_is_uniform(size: int, take: int) -> None:
    chains = 40_000
    rows = distinct(np.random.default_rng(0), size, take, chains)
    assert all(len(set(column)) == take for column in rows[:, :200].T)
    hits = np.bincount(rows.ravel(), minlength=size)
    expected = chains * take / size
    assert abs(hits - expected).max() < 5 * np.sqrt(expected)


def test_compact_keeps_order() -> None:
    points = np.arange(12.0).reshape(4, 3, 1)
    keep = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
    packed = compact(points, keep)
    assert packed[:, :, 0].tolist()[0] == [0.0, 4.0, 11.0] and packed[1, :2, 0].tolist() == [6.0, 7.0]
    assert present(packed).sum() == keep.sum()


def test_nothing_is_lost(tmp_path: Path) -> None:
    run(tmp_path, "curation=random", "rounds=1", "size=20", "domain.chains=50")
    folder = tmp_path / "run/rounds/01"
    made, kept, rejected = (slots(records.read(folder / f"{k}.parquet")) for k in ("generated", "kept", "rejected"))
    for c in range(50):
        parts = np.concatenate([kept[:, c, 0], rejected[:, c, 0]])
        assert sorted(parts[~np.isnan(parts)]) == sorted(made[:, c, 0])


# -- like any other domain ---------------------------------------------------------------------------------------------


def test_same_bytes_through_dvc(tmp_path: Path) -> None:
    """`genloss run`, on one core and on all, and `dvc repro` in the arm's folder."""
    arguments = ("run", *GAUSSIAN, "mixing=accumulate_subsample", "rounds=2", "size=100", "domain.chains=20")
    found = []
    for workers in (2, 1):
        home = Project.make(tmp_path / f"project{workers}")
        folder = home.ok(*arguments, f"runtime.workers={workers}").folder
        found.append(hashes(folder))
    assert found[0] == found[1] and any("kept" in name for name in found[0])
    for path in [*folder.glob("rounds/*/*.parquet"), home.store]:
        path.unlink() if path.is_file() else shutil.rmtree(path)
    home.dvc("repro", "--force", cwd=folder)
    assert hashes(folder) == found[0]


def test_figure_shows_theory(main: Callable[..., Result], project: Path) -> None:
    done = main("run", "-m", *GAUSSIAN, "mixing=replace,accumulate", "rounds=12", "size=10", "domain.chains=100")
    assert done.code == 0, done.err
    assert (done.folder / "rounds.png").stat().st_size > 20_000
    table = (done.folder / "report.md").read_text()
    assert table.startswith("# Verdicts\n") and "\n# diversity" in table and "| round 10 | round 12 |" in table


@pytest.mark.parametrize(
    ("domain", "overrides", "says"),
    [
        ("gaussian", "trainer.start=previous", "trainer.start=previous: must be base"),
        ("gaussian", "model.estimator=kde +schedule.1.trainer.start=previous", "schedule.1.trainer.start=previous"),
        (
            "gaussian",
            "model.bandwidth=0.5",
            "model.bandwidth=0.5: has no effect with model.estimator=mle; leave it at 0.1",
        ),
        ("categorical", "trainer.start=previous", "domain=gmm continues"),
        ("categorical", "domain.distribution=uniform domain.exponent=2", "domain.exponent=2.0: has no effect"),
        ("regression", "trainer.start=previous", "trainer.start=previous: must be base"),
        ("regression", "model.ridge_points=9", "model.ridge_points=9: has no effect with model.ridge=0"),
        ("classification", "trainer.start=previous", "trainer.start=previous: must be base"),
        ("classification", "model.ridge=0.1", "model.ridge=0.1: has no effect with model.kind=ols; leave it at 0.01"),
        ("classification", "model.kind=mean model.ridge_points=9", "model.ridge_points=9: has no effect"),
        ("classification", "model.kind=ridge model.steps=9", "model.steps=9: has no effect with model.kind=ridge"),
        ("classification", "domain.geometry=halfspace domain.separation=3", "domain.separation=3.0: has no effect"),
    ],
)
def test_what_has_no_effect_is_refused(domain: str, overrides: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        Experiment(compose([f"domain={domain}", "rounds=1", *overrides.split()]))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.bandwidth=0", "model.bandwidth=0"),
        ("recipe.bias=1.5", "recipe.bias=1.5"),
        ("recipe.temperature=0.5", "no option of the domain gaussian"),
        ("domain.dimension=100", "domain.dimension=100"),
        ("domain.chains=1", "domain.chains=1"),
        ("curation=dedup", "curation.dedup=Deduplicate: needs records that hold a text, and domain=gaussian has none"),
        ("metrics=[heldout]", "metrics.heldout"),
        ("recipe=sample", "recipe.max_tokens"),
        ("model=llama", "model=Scratch"),
        ("mixing=one_shot_mix mixing.value=1.2", "mixing.value=1.2"),
    ],
)
def test_bad_input(main: Callable[..., Result], override: str, says: str) -> None:
    done = main("run", *GAUSSIAN, *override.split(), "size=50", "rounds=1")
    assert done.code == 2 and says in done.err and len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize("n", [7, 25, 60])
def test_points_written_in_place_are_those_that_are_drawn(n: int) -> None:
    x = Experiment(compose(["domain=gaussian", "domain.chains=20", "size=30", "recipe.bias=0.9"]))
    domain: Any = x.domain
    rng = np.random.default_rng(0)
    model = {"mean": rng.standard_normal((20, 1)), "covariance": rng.random((20, 1, 1))}
    drawn = in_blocks(n, 3, lambda stream, count: domain.draw(model, stream, count, x.recipe, {}))
    assert domain.fill(model, x.recipe, {}) is not None
    assert (domain.points(model, n, 3, x.recipe, {}) == drawn).all()
