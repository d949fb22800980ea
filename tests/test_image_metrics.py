"""Metrics of images: against sprites that are made to have what is measured, prdc and plain definitions."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics.pairwise import polynomial_kernel

from genloss.core import records
from genloss.core.errors import UserError
from genloss.domains.images import Images, features, sprites
from genloss.domains.images.counted import APART, SpriteCounts, expected_modes, shared, tail_of, wilson
from genloss.domains.images.features import network
from genloss.domains.images.metrics import Distance, ImageManifold, Memorisation, flat, kernel_distance, nearest
from genloss.domains.images.pictures import encode
from genloss.evaluate import Evidence, evaluate
from genloss.observatory.definitions import READS
from support import undocumented

N = 800  # held-out and generated records
DOMAIN = Images(corpus={"_target_": "genloss.domains.images.corpora.Sprites"})


def rng(*path: int) -> np.random.Generator:
    return np.random.default_rng(path)


def table(images: np.ndarray, factors: dict[str, np.ndarray] | None, label: np.ndarray, origin: str) -> pa.Table:
    made = {"image": pa.array(encode(images), pa.binary()), "label": pa.array(label, pa.int32())}
    found = records.make_table(made, origin=origin, generation=0, recipe=origin)
    for name, values in (factors or {}).items():
        found = found.append_column(name, pa.array(values, pa.int32()))
    return found


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    for i, (name, n) in enumerate({"train": 1500, "test": N // 2, "validation": N // 2}.items()):
        factors = sprites.sample(n, rng(i))
        images = sprites.draw(factors, rng(i, 1))
        records.write(table(images, factors, factors["shape"], "real"), folder / f"{name}.parquet")
    return folder


def evidence(folder: Path, images: np.ndarray | None, out: Path, label: np.ndarray | None = None) -> Evidence:
    path = None
    if images is not None:
        path = out / "generated.parquet"
        label = sprites.read(images).factors["shape"] if label is None else label
        records.write(table(images, None, label, "synthetic"), path)
    return Evidence(DOMAIN, 0 if path is None else 1, 7, N, 1500, folder, out, out, path)


def fresh(n: int = N, seed: int = 9) -> tuple[dict[str, np.ndarray], np.ndarray]:
    factors = sprites.sample(n, rng(seed))
    return factors, sprites.draw(factors, rng(seed, 1))


# -- counted -----------------------------------------------------------------------------------------------------------


def test_sprites_of_the_real_distribution_lie_at_their_floor(real: Path, tmp_path: Path) -> None:
    factors, images = fresh()
    found = evaluate({"sprites": SpriteCounts()}, evidence(real, images, tmp_path, factors["shape"]))
    assert not undocumented(found)
    for end in ("", "_floor"):
        assert found[f"sprite_reader{end}"] == 1
        assert (
            found[f"sprite_outside{end}"] == found[f"sprite_impossible{end}"] == found[f"sprite_unreadable{end}"] == 0
        )
        assert found[f"sprite_mislabelled{end}"] == 0
        assert found[f"sprite_modes{end}"] == pytest.approx(1, abs=0.1)
        assert found[f"sprite_tail{end}"] == pytest.approx(1, abs=4 * np.sqrt(0.9 / 0.1 / N))
        assert found[f"sprite_tail_low{end}"] < 1 < found[f"sprite_tail_high{end}"]
        assert abs(found[f"sprite_entangled{end}"]) < 0.001
        p = sprites.kind_probabilities()
        assert found[f"sprite_diversity{end}"] == pytest.approx(1 - p @ p, abs=0.02)
    assert 0 == found["sprite_impossible_low"] < found["sprite_impossible_high"] < 0.02
    assert "sprite_modes" not in evaluate({"sprites": SpriteCounts()}, evidence(real, None, tmp_path))


def test_a_lost_tail_is_seen(real: Path, tmp_path: Path) -> None:
    factors, images = fresh(3 * N)
    p = sprites.kind_probabilities()
    keep = np.flatnonzero(~tail_of(p, 0.1)[sprites.kinds(factors)])[:N]
    found = SpriteCounts().measure(evidence(real, images[keep], tmp_path))
    assert found["sprite_tail"] == found["sprite_tail_modes"] == 0
    assert found["sprite_tail_high"] < 0.1 < found["sprite_tail_low_floor"]
    assert found["sprite_modes"] < found["sprite_modes_floor"] - 0.1
    assert found["sprite_impossible"] == 0


def test_impossible_combinations_are_counted(real: Path, tmp_path: Path) -> None:
    factors, _ = fresh()
    factors["shape"][: N // 4] = 0
    factors["colour"][: N // 4] = 5  # a cyan square
    found = SpriteCounts().measure(evidence(real, sprites.draw(factors, rng(1)), tmp_path))
    assert found["sprite_impossible"] == found["sprite_outside"] == 0.25
    assert found["sprite_impossible_low"] < 0.25 < found["sprite_impossible_high"]
    assert found["sprite_impossible_floor"] == 0


def test_what_is_no_sprite_is_outside_and_nothing_else(real: Path, tmp_path: Path) -> None:
    _, images = fresh()
    images[: N // 2] = rng(3).integers(0, 256, images[: N // 2].shape)
    found = SpriteCounts().measure(evidence(real, images, tmp_path))
    assert found["sprite_unreadable"] == found["sprite_outside"] == 0.5 and found["sprite_impossible"] == 0
    nothing = SpriteCounts().measure(evidence(real, np.zeros_like(images), tmp_path))
    assert nothing["sprite_outside"] == 1 and "sprite_tail" not in nothing and np.isfinite(list(nothing.values())).all()


def test_entangled_factors_have_the_information_that_they_share(real: Path, tmp_path: Path) -> None:
    factors, _ = fresh()
    factors["rotation"] = factors["x"].copy()  # all of it: the entropy of x, in one pair of 19
    found = SpriteCounts().measure(evidence(real, sprites.draw(factors, rng(1)), tmp_path))
    share = np.bincount(factors["x"]) / N
    assert found["sprite_entangled"] == pytest.approx(-(share * np.log(share)).sum() / len(APART), abs=2e-3)
    assert abs(found["sprite_entangled_floor"]) < 1e-3
    assert len(APART) == 19


def test_labels_that_are_not_shown_are_counted(real: Path, tmp_path: Path) -> None:
    factors, images = fresh()
    label = factors["shape"].copy()
    label[: N // 2] = (label[: N // 2] + 1) % 6
    assert SpriteCounts().measure(evidence(real, images, tmp_path, label))["sprite_mislabelled"] == 0.5


def test_what_the_reader_gets_wrong_widens_the_interval(real: Path, tmp_path: Path) -> None:
    _, images = fresh()
    clean = SpriteCounts().measure(evidence(real, images, tmp_path))
    noisy = np.clip(images + 255 * rng(2).normal(0, 0.1, images.shape), 0, 255).astype(np.uint8)
    found = SpriteCounts().measure(evidence(real, noisy, tmp_path))
    assert found["sprite_reader"] < 0.95 and found["sprite_reader_floor"] == 1
    # noise that is put on real records as the sample has it: as many of these are unreadable
    assert 1 - found["sprite_reader"] == pytest.approx(found["sprite_unreadable"], abs=0.02)

    def width(numbers: dict[str, float]) -> float:
        return numbers["sprite_tail_high"] - numbers["sprite_tail_low"]

    assert width(found) > width(clean) + (1 - found["sprite_reader"])


@pytest.mark.parametrize("accumulate", [False, True])
def test_counted_modes_follow_theory_where_a_model_draws_what_it_has_seen(accumulate: bool, tmp_path: Path) -> None:
    """Records whose factors are drawn with replacement from those before, as of a categorical model: diversity falls as
    it must (Seddik et al. 2024; Gerstgrasser et al. 2024 for pools), and the tail's mass does not on average."""
    n, chains, rounds = 64, 60, 4
    found = []
    for chain in range(chains):
        pool = sprites.sample(n, rng(chain))
        for r in range(rounds):
            seen = rng(chain, r, 1).integers(0, len(pool["shape"]), n)
            made = {name: values[seen] for name, values in pool.items()}
            pool = {name: np.concatenate([pool[name], made[name]]) for name in pool} if accumulate else made
        images = sprites.draw(made, rng(chain, 3))
        if not chain:  # the real records are the same for all
            factors = sprites.sample(n, rng(1, 2, 3))
            for i, name in enumerate(("test", "validation", "train")):
                half = {k: v[i * n // 2 : (i + 1) * n // 2] if i < 2 else v for k, v in factors.items()}
                shown = sprites.draw(half, rng(i))
                records.write(table(shown, half, half["shape"], "real"), tmp_path / f"{name}.parquet")
        found.append(SpriteCounts().measure(evidence(tmp_path, images, tmp_path, made["shape"])))
    p = sprites.kind_probabilities()
    each = [1 - 1 / (n * i * i) for i in range(1, rounds + 1)] if accumulate else [1 - 1 / n] * rounds
    for name, expected in (("sprite_diversity", (1 - p @ p) * np.prod(each)), ("sprite_tail", 1.0)):
        values = np.array([numbers[name] for numbers in found])
        assert values.mean() == pytest.approx(expected, abs=4 * values.std() / np.sqrt(chains)), name
    assert np.mean([numbers["sprite_tail_modes"] for numbers in found]) < (0.9 if accumulate else 0.75)


def test_mutual_information_is_unbiased_where_factors_are_independent() -> None:
    draws = [shared(rng(i).integers(0, 6, 300), rng(i, 1).integers(0, 3, 300), 6, 3) for i in range(400)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / 20 + 1e-4
    assert np.mean(draws) + 5 * 2 / 600 > 0.01  # the bias that is taken away
    same = rng(0).integers(0, 3, 100_000)
    assert shared(same, same, 3, 3) == pytest.approx(np.log(3), abs=1e-3)


def test_expected_modes_and_tail() -> None:
    p = np.array([0.5, 0.25, 0.2, 0.03, 0.02, 0.0])
    counts = [len(set(rng(i).choice(6, 20, p=p))) for i in range(2000)]
    assert expected_modes(p, 20) == pytest.approx(np.mean(counts), abs=0.06)
    assert tail_of(p, 0.05).tolist() == [False, False, False, True, True, False]
    assert tail_of(p, 0.01).sum() == 0


def test_wilson_is_that_of_scipy() -> None:
    from scipy.stats import binomtest

    for count, n in ((0, 10), (3, 50), (50, 50)):
        expected = binomtest(count, n).proportion_ci(0.95, "wilson")
        assert wilson(count, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_metrics_of_sprites_need_sprites(main, project: Path) -> None:
    outcome = main("run", "domain=images", "domain/corpus=digits", "metrics=[sprites]", "rounds=1")
    assert outcome.code == 2 and "domain/corpus=sprites" in outcome.err and outcome.err.count("\n") == 1


# -- in vectors --------------------------------------------------------------------------------------------------------


def test_distances_rank_what_is_worse(real: Path, tmp_path: Path) -> None:
    factors, images = fresh()
    mixed = {name: rng(4, i).permutation(values) for i, (name, values) in enumerate(factors.items())}
    worse = {
        "real": images,
        "shuffled": sprites.draw(mixed, rng(5)),  # every factor alone is as in real ones
        "noisy": np.clip(images + 255 * rng(2).normal(0, 0.05, images.shape), 0, 255).astype(np.uint8),
        "one mode": np.repeat(images[:1], N, axis=0),
    }
    found = {name: evaluate(METRICS, evidence(real, made, tmp_path)) for name, made in worse.items()}
    assert not undocumented(found["real"])
    assert all(v == found["real"][k] for name in worse for k, v in found[name].items() if k.endswith("_floor"))
    for name in ("feature_frechet", "kernel_distance"):
        numbers = [found[kind][name] for kind in worse]
        assert numbers == sorted(numbers), name
        assert numbers[0] < 2 * abs(found["real"][f"{name}_floor"]) + 0.005 < numbers[2]
    assert found["real"]["feature_spread"] == pytest.approx(1, abs=0.1) and found["one mode"]["feature_spread"] < 1e-6
    assert found["noisy"]["manifold_precision"] < found["real"]["manifold_precision"] - 0.1
    assert found["one mode"]["manifold_recall"] < 0.1 < 0.9 < found["real"]["manifold_recall"]


METRICS = {"a": Distance(fit=1000), "b": ImageManifold(fit=1000)}


def test_manifold_of_images_is_that_of_prdc(real: Path, tmp_path: Path) -> None:
    prdc = pytest.importorskip("prdc")
    x = evidence(real, fresh()[1][:300], tmp_path)
    metric = METRICS["b"]
    sides = [metric.vectors(each, x) for each in (x.reference, x.sample)]
    expected = prdc.compute_prdc(real_features=sides[0], fake_features=sides[1], nearest_k=5)
    found = metric.measure(x)
    assert {k.removeprefix("manifold_"): v for k, v in found.items() if not k.endswith("_floor")} == pytest.approx(
        expected
    )


def test_kernel_distance_is_the_sum_over_pairs() -> None:
    a, b = rng(0).normal(size=(30, 4)), rng(1).normal(0.3, 1, size=(25, 4))
    k = [polynomial_kernel(x, y, degree=3, gamma=1 / 4, coef0=1) for x, y in ((a, a), (b, b), (a, b))]
    pairs = [[m[i, j] for i, j in itertools.permutations(range(len(m)), 2)] for m in k[:2]]
    assert kernel_distance(a, b) == pytest.approx(np.mean(pairs[0]) + np.mean(pairs[1]) - 2 * k[2].mean())
    fair = [kernel_distance(rng(2, i).normal(size=(20, 4)), rng(3, i).normal(size=(20, 4))) for i in range(400)]
    assert abs(np.mean(fair)) < 4 * np.std(fair) / 20  # unbiased: 0 on average


def test_the_network_is_the_same_each_time_and_takes_any_image() -> None:
    _, images = fresh(100)
    first = network(images).vectors(images[:40])
    features._network.cache_clear()
    np.testing.assert_array_equal(network(images).vectors(images[:40]), first)
    np.testing.assert_allclose(network(images).vectors(images[:7]), first[:7], atol=1e-4)
    assert network(images).vectors(images).var(axis=0).mean() == pytest.approx(1)
    grey = rng(0).integers(0, 256, (70, 8, 8, 1), dtype=np.uint8)
    assert network(grey).vectors(grey).shape == (70, features.WIDTH)


def test_the_network_is_trained_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that want it at once train it once, and a third finds it; its vectors are those of who keeps
    none, bit for bit."""
    monkeypatch.setattr(features, "STEPS", 30)
    _, images = fresh(100)
    np.save(tmp_path / "images.npy", images)
    features._network.cache_clear()
    alone = network(images).vectors(images)
    script = """
import sys, numpy as np
from pathlib import Path
from genloss.domains.images import features
features.STEPS, trained = 30, features.Network.trained
def told(real):
    print("trains", flush=True)
    return trained(real)
features.Network.trained = told
images = np.load("images.npy")
np.save(sys.argv[1], features.network(images, Path("store")).vectors(images))
"""
    command = [sys.executable, "-c", script]
    two = [subprocess.Popen([*command, f"{i}.npy"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) for i in range(2)]
    said = [process.communicate(timeout=120)[0] for process in two]
    said.append(subprocess.run([*command, "2.npy"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    assert [process.returncode for process in two] == [0, 0]
    assert "".join(said) == "trains\n"
    for i in range(3):
        np.testing.assert_array_equal(np.load(tmp_path / f"{i}.npy"), alone)
    (kept,) = (tmp_path / "store/stages/features").iterdir()
    work = json.loads(kept.read_text())
    blob = tmp_path / "store/blobs" / work["files"][features.FILE][:2] / work["files"][features.FILE][2:]
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    features._network.cache_clear()
    with pytest.raises(UserError, match="is damaged"):
        network(images, tmp_path / "store")
    other = images.copy()
    other[0, 0, 0] ^= 1
    network(other, tmp_path / "store")
    assert len(list((tmp_path / "store/stages/features").iterdir())) == 2  # other images, another network


# -- memorisation ------------------------------------------------------------------------------------------------------


def test_nearest_is_the_plain_minimum() -> None:
    a, b = rng(0).random((20, 12), np.float32), rng(1).random((33, 12), np.float32)
    plain = np.sqrt(((a[:, None] - b[None]) ** 2).mean(axis=2))
    np.testing.assert_allclose(nearest(a, iter([b[:10], b[10:]])), plain.min(axis=1), rtol=1e-4)
    own = np.sqrt(((a[:, None] - a[None]) ** 2).mean(axis=2)) + np.diag(np.full(20, np.inf))
    np.testing.assert_allclose(nearest(a, iter([a[:7], a[7:]]), itself=True), own.min(axis=1), rtol=1e-4)


def test_copies_of_the_training_set_are_found(real: Path, tmp_path: Path) -> None:
    _, images = fresh()
    found = evaluate({"m": Memorisation()}, evidence(real, images, tmp_path))
    assert not undocumented(found)
    assert found["near_copies_floor"] == pytest.approx(0.01, abs=0.003) and found["near_copies"] < 0.03
    assert found["memorisation"] == pytest.approx(1, abs=0.15) == found["memorisation_floor"]
    train = DOMAIN.pixels(records.read(real / "train.parquet", rows=(0, N)))
    copies = np.clip(train.astype(int) + rng(1).integers(-2, 3, train.shape), 0, 255).astype(np.uint8)
    images[: N // 2] = copies[: N // 2]
    half = Memorisation().measure(evidence(real, images, tmp_path))
    assert half["near_copies"] == pytest.approx(0.5, abs=0.02)
    all_of_them = Memorisation().measure(evidence(real, copies, tmp_path))
    assert all_of_them["near_copies"] > 0.99 and all_of_them["memorisation"] < 0.5
    assert flat(images).dtype == np.float32


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "key", "value"),
    [
        (SpriteCounts, "tail", 1.0),
        (Distance, "fit", 10),
        (Distance, "n", 4),
        (ImageManifold, "k", 0),
        (Memorisation, "closest", 0.7),
        (Memorisation, "n", 1),
    ],
)
def test_settings_that_mean_nothing_are_refused(metric: type, key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{key}={value}"):
        metric(**{key: value})


def test_verdicts_read_them(real: Path, tmp_path: Path) -> None:
    metrics = {"s": SpriteCounts(), **METRICS}
    found = evaluate(metrics, evidence(real, fresh()[1], tmp_path))
    read = {reading.metric for role in READS["images"].values() for reading in role} - {"denoising_loss"}
    assert read <= set(found)
