"""What a sample spans in an embedding (genloss.language.embedding)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core.capabilities import Texts
from genloss.core.contracts import Plugin
from genloss.core.errors import require
from genloss.core.plugin import build
from genloss.evaluate import Evidence, SampleMetric
from genloss.language.embedding import Embedding, check_topics, likeness


@dataclass
class Embedded(SampleMetric):
    """A metric of the vectors of a sample: implement `numbers`."""

    embedding: Any = field(default_factory=lambda: {"_target_": "genloss.language.embedding.Ngrams"})
    least = 16

    def __post_init__(self) -> None:
        self._embedding = build(self.embedding, Embedding, "embedding")

    def parts(self) -> Mapping[str, Plugin]:
        return {"embedding": self._embedding}

    def vectors(self, table: pa.Table, evidence: Evidence) -> np.ndarray:
        """float64 [n, d] of a table's texts."""
        return self.embed(evidence.texts(table), evidence)

    def embed(self, texts: Sequence[str], evidence: Evidence) -> np.ndarray:
        """float64 [n, d] of n texts."""

        def real(n: int) -> Iterable[str]:
            return evidence.texts(evidence.some_real(n))

        return self._embedding.embed(texts, real)

    @abstractmethod
    def numbers(self, vectors: np.ndarray, evidence: Evidence) -> dict[str, float]:
        """What is said of the vectors [n, d] of some records."""

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        return self.numbers(self.vectors(table, evidence), evidence)


def vendi(vectors: np.ndarray) -> float:
    """Vendi score of vectors of length 1 [n, d]: the exponential of the entropy of the eigenvalues of their cosines
    over n (Friedman & Dieng 2023). n equal vectors have 1, n orthogonal ones n; none has more than d. The eigenvalues
    other than 0 are those of the d x d matrix, so that the work grows with n and not with n³."""
    gram = vectors.T @ vectors if vectors.shape[1] < len(vectors) else vectors @ vectors.T
    values = np.linalg.eigvalsh(gram)
    p = values[values > 1e-12 * max(1.0, values.max())]
    p = p / p.sum()
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 1.0


def mean_distance(vectors: np.ndarray) -> float:
    """Mean cosine distance between two different ones of n vectors of length 1 [n, d], over all pairs."""
    n = len(vectors)
    total = vectors.sum(axis=0)
    pairs = float(total @ total) - float((vectors * vectors).sum())
    return 1 - pairs / (n * (n - 1))


@dataclass
class Vendi(Embedded):
    """vendi: effective number of different records by the cosines of an embedding, between 1 and its dimensions or the
    number of records, whichever is less; it saturates there. Of what records are compared by: documents, problems,
    what a conversation asks."""

    needs = (Texts,)

    def numbers(self, vectors: np.ndarray, evidence: Evidence) -> dict[str, float]:
        return {"vendi": vendi(vectors)}


@dataclass
class Spread(Embedded):
    """embedding_distance: mean cosine distance between two different records of the sample, over all pairs (0: all the
    same; 1: orthogonal). Of what records are compared by, as `Vendi`."""

    panels = ("embedding_distance",)
    needs = (Texts,)

    def numbers(self, vectors: np.ndarray, evidence: Evidence) -> dict[str, float]:
        return {"embedding_distance": mean_distance(vectors)}


@dataclass
class OnTopic(Embedded):
    """on_topic: share of the records with a cosine of at least `similarity` with one of the topics, which is what
    curation=topics keeps; topic_cosine: mean over records of the highest cosine with a topic."""

    panels = ("on_topic",)
    topics: list[str] = field(default_factory=list)
    similarity: float = 0.3
    least = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.topics), "topics", self.topics, "one text or more")
        check_topics(self.topics, self.similarity)

    def numbers(self, vectors: np.ndarray, evidence: Evidence) -> dict[str, float]:
        highest = likeness(vectors, self.topics, lambda some: self.embed(some, evidence))
        return {"on_topic": float((highest >= self.similarity).mean()), "topic_cosine": float(highest.mean())}
