"""Sprites: the distribution that is stated is the one that is drawn, and the reader reads what was drawn."""

import numpy as np
import pytest

from genloss.domains.images import sprites
from genloss.domains.images.sprites import BLOCKS, FACTORS, KIND, draw, impossible, probability, read, sample


def rng(seed=0):
    return np.random.default_rng(seed)


def everything():
    cells = np.indices([len(v) for v in FACTORS.values()]).reshape(len(FACTORS), -1)
    return dict(zip(FACTORS, cells, strict=True))


def test_probabilities_are_a_distribution_with_a_long_tail():
    p = probability(everything())
    assert p.sum() == pytest.approx(1, abs=1e-12)
    kinds = sprites.kind_probabilities()
    assert kinds.sum() == pytest.approx(1, abs=1e-12)
    assert (kinds > 0).sum() == 30 * 8  # 6 of 36 pairs of shape and colour, 1 of 9 of size and texture are impossible
    assert impossible(everything()).sum() == (36 * 9 - 30 * 8) * 27
    ranked = np.sort(kinds[kinds > 0])
    assert ranked[:120].sum() < 0.1 < ranked[-1]  # half of the modes have less than a tenth


def test_samples_have_these_probabilities():
    n = 200_000
    found = np.bincount(sprites.kinds(sample(n, rng())), minlength=len(sprites.kind_probabilities())) / n
    p = sprites.kind_probabilities()
    assert (found[p == 0] == 0).all()
    error = (found - p)[p > 0] / np.sqrt(p * (1 - p) / n)[p > 0]
    assert np.abs(error).max() < 4.5 and 0.8 < error.std() < 1.2


def test_factors_of_different_blocks_are_independent():
    p = probability(everything()).reshape([len(v) for v in FACTORS.values()])
    axes = {name: i for i, name in enumerate(FACTORS)}
    for one, other in [(a, b) for a in BLOCKS for b in BLOCKS if a < b]:
        for f in one:
            for g in other:
                joint = p.sum(axis=tuple(i for name, i in axes.items() if name not in (f, g)))
                np.testing.assert_allclose(joint, np.outer(joint.sum(axis=1), joint.sum(axis=0)), atol=1e-12)


def test_every_ideal_picture_is_read_exactly_and_looks_like_no_other():
    every = everything()
    pictures = draw(every)
    found = read(pictures)
    for name in FACTORS:
        np.testing.assert_array_equal(found.factors[name], every[name])
    assert found.readable.all() and found.alike.min() > 0.9999
    assert len(np.unique(pictures.reshape(len(pictures), -1), axis=0)) == len(pictures)


@pytest.mark.parametrize(("noise", "accuracy", "readable"), [(0, 1.0, 1.0), (0.05, 0.999, 0.99), (0.2, 0.99, 0.0)])
def test_the_reader_is_right_on_pictures_that_vary(noise, accuracy, readable):
    factors = {name: rng(1).integers(0, len(v), 1500) for name, v in FACTORS.items()}  # rare ones as often as any
    pictures = draw(factors, rng(2)) + 255 * rng(3).normal(0, noise, (1500, 32, 32, 3))
    found = read(np.clip(pictures, 0, 255))
    right = np.all([found.factors[name] == factors[name] for name in FACTORS], axis=0)
    assert right.mean() >= accuracy
    assert found.readable.mean() >= readable - (0.002 if noise == 0 else 0)
    if noise == 0.2:
        assert found.readable.mean() < 0.1  # too noisy to be called a sprite, though its factors would be right


def test_what_is_no_sprite_is_not_read():
    pictures = np.stack(
        [
            np.zeros((32, 32, 3)),
            np.full((32, 32, 3), 255),
            rng().integers(0, 256, (32, 32, 3)),
            np.eye(32)[..., None] * [255, 0, 0],
        ]
    )
    assert not read(pictures).readable.any()


def test_pictures_do_not_depend_on_how_many_are_drawn():
    factors = sample(3000, rng())
    first = {name: values[:700] for name, values in factors.items()}
    np.testing.assert_array_equal(draw(factors, rng(1))[:700], draw(first, rng(1)))
    np.testing.assert_array_equal(read(draw(factors))[1][:700], read(draw(first))[1])


def test_same_factors_do_not_give_the_same_picture():
    same = {name: np.zeros(50, int) for name in FACTORS}
    assert len(np.unique(draw(same, rng()).reshape(50, -1), axis=0)) == 50
    assert len(np.unique(draw(same).reshape(50, -1), axis=0)) == 1


def test_kinds_name_a_combination_each():
    every = everything()
    kinds = sprites.kinds(every)
    own = np.stack([every[name] for name in KIND], axis=1)
    assert len(np.unique(np.column_stack([own, kinds]), axis=0)) == len(np.unique(kinds)) == 6 * 6 * 3 * 3
    np.testing.assert_allclose(sprites.kind_probabilities()[kinds], probability({k: every[k] for k in KIND}))
