"""Metrics of words against sacrebleu, nltk, scipy and plain Python."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from genloss.core.errors import UserError
from genloss.evaluate import SampleMetric
from genloss.evaluate.copies import Copies
from genloss.evaluate.forms import Loops
from genloss.evaluate.lexical import (
    NgramKL,
    OfWords,
    Rarefaction,
    SelfBleu,
    TailExponent,
    chosen_x_min,
    divergence,
    rarefied,
    self_bleu,
    tail_exponent,
)
from genloss.experiment import Experiment
from genloss.workflow.compose import compose
from test_metrics import evidence


def made_texts(n: int, longest: int, kinds: int = 12) -> list[list[str]]:
    """Short texts of few words, which share n-grams; some of one or two words, and copies."""
    rng = np.random.default_rng(n)
    texts = [[f"w{i}" for i in rng.integers(0, kinds, rng.integers(1, longest))] for _ in range(n)]
    return [*texts, texts[0], ["alone"]]


def test_self_bleu_is_that_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    texts = made_texts(40, 14)
    found = self_bleu(texts)
    for i, text in enumerate(texts):
        references = [" ".join(other) for j, other in enumerate(texts) if j != i]
        score = sacrebleu.sentence_bleu(" ".join(text), references, tokenize="none").score / 100
        assert found[i] == pytest.approx(score, abs=1e-9), (i, text)


def test_self_bleu_is_that_of_nltk_for_texts_of_every_order() -> None:
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    texts = [text for text in made_texts(40, 20) if len(text) >= 4]
    smooth = bleu.SmoothingFunction().method3
    for i, value in enumerate(self_bleu(texts)):
        others = texts[:i] + texts[i + 1 :]
        assert value == pytest.approx(bleu.sentence_bleu(others, texts[i], smoothing_function=smooth), abs=1e-9)


def test_self_bleu_of_copies_is_one_and_of_strangers_nothing(tmp_path: Path) -> None:
    copies, strangers = ["the same five words here"] * 16, [f"a{i} b{i} c{i} d{i}" for i in range(16)]
    found = SelfBleu().measure(evidence(tmp_path, ["x"], strangers, copies))
    assert found == {"self_bleu": pytest.approx(1), "self_bleu_floor": 0}


@pytest.mark.parametrize(("alpha", "x_min"), [(2.0, 1), (2.5, 4)])
def test_tail_exponent_finds_that_of_a_power_law(alpha: float, x_min: int) -> None:
    draws = stats.zipf.rvs(alpha, size=200_000, random_state=1)
    tail = draws[draws >= x_min]
    found = tail_exponent(draws, x_min)
    assert found == pytest.approx(alpha, abs=4 * (alpha - 1) / math.sqrt(len(tail)) + 0.01)
    # no other exponent of a grid is likelier
    grid = [
        stats.zipf.logpmf(tail, a).sum() - len(tail) * stats.zipf.logsf(x_min - 1, a)
        for a in (found - 0.02, found, found + 0.02)
    ]
    assert np.argmax(grid) == 1


def test_x_min_is_where_the_law_begins() -> None:
    law = stats.zipf.rvs(2.5, size=60_000, random_state=3)
    broken = np.concatenate([law[law >= 5], np.repeat([1, 2, 3, 4], 300)])  # flat below 5
    assert 4 <= chosen_x_min(broken, 50) <= 8


def test_tail_exponent_of_a_small_tail_says_nothing(tmp_path: Path) -> None:
    texts = [f"a a a b{i}" for i in range(40)]
    found = TailExponent(x_min=2).measure(evidence(tmp_path, ["x"], texts, texts))
    assert found == {"tail_types": 1, "tail_x_min": 2, "tail_types_floor": 1, "tail_x_min_floor": 2}


def test_rarefaction_is_the_hypergeometric_expectation(tmp_path: Path) -> None:
    counts = np.array([50, 20, 5, 1, 1, 1])
    for size in (1, 7, 40, 77, 78):
        exact = sum(1 - stats.hypergeom.pmf(0, counts.sum(), c, size) for c in counts)
        assert rarefied(counts, size) == pytest.approx(exact, rel=1e-9)
    assert rarefied(counts, 78) == pytest.approx(6)
    held_out, made = [f"a{i} b{i} c{i} d{i} e{i}" for i in range(20)], ["a " * 10] * 19 + ["a " * 9 + "b"]
    found = Rarefaction(n_words=1000).measure(evidence(tmp_path, ["x"], held_out, made))
    assert found["types_words"] == 100 and found["types_rarefied_floor"] == pytest.approx(100)
    assert found["types_rarefied"] == pytest.approx(1.5)  # the one b of 200 words is drawn in half of the cases


def test_x_min_is_the_same_whatever_was_generated(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    real, held = ([" ".join(f"w{i}" for i in rng.zipf(2.0, 60)) for _ in range(80)] for _ in range(2))
    shorter = [text[: len(text) // 3] for text in held]
    found = [
        TailExponent(types=10).measure(evidence(tmp_path, real, held, made)) for made in (None, held, shorter[:20])
    ]
    assert len({numbers["tail_x_min_floor"] for numbers in found}) == 1 < found[0]["tail_x_min_floor"]
    assert found[1]["tail_x_min"] == found[2]["tail_x_min"] and found[2]["tail_types"] < found[1]["tail_types"]


def test_a_reference_that_is_shorter_is_compared_with_as_many_words(tmp_path: Path) -> None:
    real, held_out, made = ["a b a d " * 7] * 16, ["a b a b " * 7] * 40, ["a b a c " * 7] * 90
    found = NgramKL().measure(evidence(tmp_path, real, held_out, made, size=16))
    many = Counter(a=224, b=112, d=112)
    assert found["ngram_kl_1"] == pytest.approx(divergence(many, Counter(a=224, b=112, c=112)))
    assert found["ngram_kl_1_floor"] == pytest.approx(divergence(many, Counter(a=224, b=224)))
    fewer = NgramKL().measure(evidence(tmp_path, real[:4], held_out, made, size=16))  # 112 words
    many = Counter(a=56, b=28, d=28)
    assert fewer["ngram_kl_1"] == pytest.approx(divergence(many, Counter(a=56, b=28, c=28)))


@pytest.mark.parametrize("metric", [SelfBleu(), TailExponent(), Rarefaction(), NgramKL(), Loops(), Copies()])
def test_a_sample_that_is_too_small_says_nothing(
    tmp_path: Path, metric: SampleMetric, capsys: pytest.CaptureFixture[str]
) -> None:
    name, enough = type(metric).__name__, ["one two three four five six seven"] * 16
    assert metric.measure(evidence(tmp_path, enough, enough, enough))
    with pytest.raises(UserError, match=f"its real data have 15 records, and {name} needs 16"):
        metric.measure(evidence(tmp_path, enough, enough[:15], None))
    assert metric.measure(evidence(tmp_path, enough, enough, enough[:15])) == {}
    assert f"round 1 has a sample of 15 records, and {name} needs 16; it is left out" in capsys.readouterr().err
    if isinstance(metric, NgramKL):  # of which the training data may have too little
        with pytest.raises(UserError, match=f"its real data have 48 words, and {name} needs 100"):
            metric.measure(evidence(tmp_path, ["one two three"] * 16, enough, None))
    if isinstance(metric, OfWords):
        assert metric.measure(evidence(tmp_path, enough, enough, ["one two three"] * 16)) == {}
        assert f"round 1 has a sample of 48 words, and {name} needs 100" in capsys.readouterr().err
        with pytest.raises(UserError, match="n_words=99: must be at least 100"):
            type(metric)(n_words=99)


@pytest.mark.parametrize("name", ["self_bleu", "tail_exponent", "rarefaction", "ngram_kl", "loops", "copies"])
def test_a_config_that_asks_for_too_small_a_sample_is_refused(name: str) -> None:
    Experiment(compose([f"metrics=[{name}]", "size=16"]))
    with pytest.raises(UserError, match=r"size=15: \w+ needs a sample of 16 records"):
        Experiment(compose([f"metrics=[{name}]", "size=15"]))


def test_few_records_are_no_sample_of_self_bleu() -> None:
    with pytest.raises(UserError, match="n=15: must be at least 16"):
        SelfBleu(n=15)


def test_divergence_by_hand(tmp_path: Path) -> None:
    real, made = Counter(a=3, b=1), Counter(a=1, c=2, d=1)
    p, q = np.array([3.5, 1.5, 0.5]) / 5.5, np.array([1.5, 0.5, 3.5]) / 5.5
    assert divergence(real, made) == pytest.approx(stats.entropy(p, q))
    assert divergence(real, real) == 0
    text = [f"w{i % 7} w{i % 5} w{i % 3}" for i in range(60)]
    found = NgramKL().measure(evidence(tmp_path, text, text[:40], ["w0 w0 w0"] * 40))
    assert 0 <= found["ngram_kl_1_floor"] < 0.1 < 1 < found["ngram_kl_1"]
