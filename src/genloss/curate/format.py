"""Control of formats and contents: keep what checks accept, each of which is the reason for what it rejects.

    genloss run curation=format
    C=genloss.language.checkers
    genloss run curation=format "+curation.format.checks.json={_target_: $C.Json, schema: {type: object}}"
    genloss run curation=format 'curation.format.topics=["taxes and the budget", "war and peace"]'

What this prevents and what not was measured: docs/format_control.md. A backend that can make such texts alone is told
so by `recipe.constraint`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Texts, able
from genloss.core.contracts import Plugin
from genloss.core.errors import check_name, require
from genloss.core.plugin import build, without_effect
from genloss.curate import Context, Decision, RecordCurator, blank, decision
from genloss.language.checkers import Checker
from genloss.language.embedding import Embedding, check_topics, likeness

TOPIC = "topic"  # the reason of what is of none


@dataclass
class Format(RecordCurator):
    """Keep the records that all `checks` accept, in their order: the first that does not is the reason. With `topics`,
    a record must also have a cosine of at least `similarity`, in an embedding, with one of these texts, or its reason
    is `topic`; the score is the highest of them."""

    checks: dict[str, Any] = field(default_factory=dict)  # a `Checker` and its fields, by the name of its reason
    topics: list[str] = field(default_factory=list)
    similarity: float = 0.3
    embedding: Any = field(default_factory=lambda: {"_target_": "genloss.language.embedding.Ngrams"})
    needs = (Texts,)

    def __post_init__(self) -> None:
        require(bool(self.checks or self.topics), "checks", self.checks, "one or more, or give topics")
        check_topics(self.topics, self.similarity)
        if not self.topics:
            without_effect(self, ["similarity", "embedding"], "without topics")
        for name in self.checks:
            check_name("checks", name)
            require(
                not (self.topics and name == TOPIC), "checks", name, "named otherwise: this is the reason of topics"
            )
        self._checks = {name: build(each, Checker, f"checks.{name}") for name, each in self.checks.items()}
        self._embedding = build(self.embedding, Embedding, "embedding")

    def parts(self) -> Mapping[str, Plugin]:
        embedding = {"embedding": self._embedding} if self.topics else {}
        return {**{f"checks.{name}": check for name, check in self._checks.items()}, **embedding}

    def decide(self, table: pa.Table, context: Context) -> Decision:
        domain = able(context.domain, Texts)
        reason, score, at = blank(len(table)), np.full(len(table), np.nan), 0

        def embed(some: Sequence[str]) -> np.ndarray:
            return self._embedding.embed(some, lambda n: _real(context, n))

        for part in records.parts(table):
            texts = domain.texts(part)
            said = blank(len(texts))
            for name, check in self._checks.items():
                left = np.flatnonzero(said == "")
                accepted = check.valid([texts[i] for i in left])
                said[left[~accepted]] = name
            if self.topics:
                alike = likeness(embed(texts), self.topics, embed)
                said[(said == "") & (alike < self.similarity)] = TOPIC
                score[at : at + len(texts)] = alike
            reason[at : at + len(texts)] = said
            at += len(texts)
        return decision(reason == "", score, reason)


def _real(context: Context, n: int) -> list[str]:
    """Texts of so many real records."""
    path = context.data / "train.parquet"
    return able(context.domain, Texts).texts(records.read(path, rows=(0, min(n, records.count(path)))))
