"""curation=diverse: against plain definitions, against the best of all choices, on texts and on images."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genloss.core import records
from genloss.core.contracts import Inputs
from genloss.core.errors import UserError
from genloss.curate import Context, curate
from genloss.curate.diverse import Diverse, entropy, farthest
from genloss.domains.images import Images, features
from genloss.domains.images.pictures import encode
from genloss.domains.text import Text
from genloss.experiment import Experiment
from genloss.workflow.compose import compose

CLOUDS = st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 4)
IMAGES = Images(corpus={"_target_": "genloss.domains.images.corpora.Digits"})


def cloud(seed: int, n: int, d: int) -> np.ndarray:
    """Some of its vectors are there twice."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d))[rng.integers(0, n, n)]


def bits(vectors: np.ndarray, noise: float = 1.0) -> float:
    return float(0.5 * np.linalg.slogdet(np.eye(len(vectors)) + vectors @ vectors.T / noise)[1])


@given(*CLOUDS)
def test_farthest_is_the_plain_rule_and_twice_as_good_at_most_is_the_best(seed: int, n: int, d: int) -> None:
    vectors = cloud(seed, n, d)
    apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    for count in range(1, n + 1):
        chosen, score = farthest(vectors, count)
        plain = [int(((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).argmin())]
        for _ in range(count - 1):
            rest = [i for i in range(n) if i not in plain]
            nearest = apart[rest][:, plain].min(axis=1)
            plain.append(rest[int(nearest.argmax())])
        assert len(set(chosen.tolist())) == count
        np.testing.assert_allclose(  # of equal ones any may come first, so not the numbers but what they are at
            np.diag(apart[chosen][:, chosen].cumsum(axis=0)), np.diag(apart[plain][:, plain].cumsum(axis=0)), atol=1e-6
        ) if len(np.unique(vectors, axis=0)) == n else None
        for place, i in enumerate(chosen):
            before = apart[i, chosen[:place]].min() if place else np.nan
            np.testing.assert_allclose(score[i], before, atol=1e-9)
        others = np.setdiff1d(np.arange(n), chosen)
        np.testing.assert_allclose(score[others], apart[others][:, chosen].min(axis=1), atol=1e-9)
        choices = [list(some) for some in itertools.combinations(range(n), count)]
        if count > 1:
            spread = [min(apart[i, j] for i, j in itertools.combinations(some, 2)) for some in choices]
            mine = min(apart[i, j] for i, j in itertools.combinations(chosen, 2))
            assert mine >= max(spread) / 2 - 1e-9
        assert apart[:, chosen].min(axis=1).max() <= 2 * min(apart[:, s].min(axis=1).max() for s in choices) + 1e-9


@given(*CLOUDS, st.sampled_from([0.1, 1.0, 10.0]))
def test_entropy_is_the_greedy_determinant_and_near_the_best(seed: int, n: int, d: int, noise: float) -> None:
    vectors = cloud(seed, n, d)
    scaled = vectors - vectors.mean(axis=0)
    scaled = scaled / max(np.sqrt(scaled.var(axis=0).mean()), 1e-12)
    for count in range(1, n + 1):
        chosen, score = entropy(vectors, count, noise)
        assert len(set(chosen.tolist())) == count
        held: list[int] = []
        for i in chosen:
            gains = {j: bits(scaled[[*held, j]], noise) - bits(scaled[held], noise) for j in range(n) if j not in held}
            assert gains[i] == pytest.approx(max(gains.values()), abs=1e-6)
            assert score[i] == pytest.approx(gains[i], abs=1e-6)
            held.append(int(i))
        for j in np.setdiff1d(np.arange(n), chosen):
            assert score[j] == pytest.approx(bits(scaled[[*held, j]], noise) - bits(scaled[held], noise), abs=1e-6)
        best = max(bits(scaled[list(some)], noise) for some in itertools.combinations(range(n), count))
        assert bits(scaled[held], noise) >= (1 - 1 / np.e) * best - 1e-6


@given(st.integers(0, 10_000), st.sampled_from(["farthest", "entropy"]))
def test_of_three_places_one_each_is_kept_and_order_says_nothing(seed: int, by: str) -> None:
    rng = np.random.default_rng(seed)
    places = np.array([[0.0, 0], [9, 0], [0, 9]])
    vectors = np.repeat(places, [20, 3, 1], axis=0) + rng.normal(0, 1e-3, (24, 2))
    order = rng.permutation(24)
    choose = {"farthest": farthest, "entropy": lambda v, n: entropy(v, n, 1.0)}[by]
    assert set(choose(vectors, 3)[0]) == set(order[choose(vectors[order], 3)[0]])
    if by == "farthest":
        assert {int(np.abs(places - vectors[i]).sum(axis=1).argmin()) for i in choose(vectors, 3)[0]} == {0, 1, 2}


def test_images_and_their_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twenty copies of one digit and four others, the four are kept and one copy; the control keeps as many."""
    monkeypatch.setattr(features, "STEPS", 40)
    features._network.cache_clear()
    IMAGES.prepare(tmp_path)
    real = IMAGES.pixels(records.read(tmp_path / "train.parquet"))
    images = np.concatenate([np.repeat(real[:1], 20, axis=0), real[1:5]])
    made = records.make_table(
        {"image": pa.array(encode(images), pa.binary()), "label": pa.array([0] * 24, pa.int32())},
        origin="synthetic",
        generation=1,
        recipe="diffusion",
    )
    context = Context(IMAGES, 1, 3, tmp_path, Inputs({}), store=tmp_path / "store")
    vectors = IMAGES.embed(made, tmp_path, tmp_path / "store")
    assert vectors.shape == (24, features.WIDTH)
    for by in ("farthest", "entropy"):
        done = curate(made, {"diverse": Diverse(fraction=5 / 24, by=by)}, "none", context)
        kept = IMAGES.pixels(done.kept)
        assert len(np.unique(kept, axis=0)) == 5 == len(kept), by
        assert done.reasons == {"diverse: like others": 19, "kept": 5}
        control = curate(made, {"diverse": Diverse(fraction=5 / 24, by=by)}, "random", context)
        assert len(control.kept) == 5 and len(np.unique(IMAGES.pixels(control.kept), axis=0)) < 5
    assert list((tmp_path / "store/stages/features").iterdir())  # kept for the next process


def test_texts(tmp_path: Path) -> None:
    domain = Text(corpus={"_target_": "genloss.language.corpus.Sotu"})
    said = [f"the {a} of {b}" for a in ("tax", "war", "peace", "land") for b in ("men", "ships", "trade", "law")]
    records.write(
        records.make_table({"text": said}, origin="real", generation=0, recipe="x"), tmp_path / "train.parquet"
    )
    texts = ["the tax of men"] * 9 + ["the war of ships", "the land of law"]
    made = records.make_table({"text": texts}, origin="synthetic", generation=1, recipe="sample")
    done = curate(made, {"diverse": Diverse(fraction=3 / 11)}, "none", Context(domain, 1, 0, tmp_path, Inputs({})))
    assert sorted(done.kept["text"].to_pylist()) == sorted(set(texts))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["curation.diverse.fraction=0"], r"fraction.*0: must be in \(0, 1\]"),
        (["curation.diverse.by=dpp"], r"by.*dpp"),
        (["curation.diverse.noise=2"], r"noise.*2.*has no effect with curation.diverse.by=farthest; leave it at 1"),
        (["domain=gaussian"], r"needs|records"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Experiment(compose(["curation=diverse", *overrides]))
