"""What a narrow model can do outside of its task, and at a task whose answers are labels.

genloss run experiment=data_simulation metrics=[following,response_loss,elsewhere]
genloss run experiment=data_simulation/real metrics=[labelled]
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Verifies, able
from genloss.core.contracts import Experiment
from genloss.core.errors import UserError, require
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.domains.instruct.world import World
from genloss.evaluate import Evidence, Metric
from genloss.evaluate.selected import OfAnswers, answers


@dataclass
class Elsewhere(Metric):
    """elsewhere: share of right greedy answers of model n to requests about the world's other topics than those of
    `domain.corpus.about`; elsewhere_se (binomial). The requests are the same in every run of a world."""

    max_records: int = 256
    chunk: int = 256
    needs = (Instruct,)

    def __post_init__(self) -> None:
        require(self.max_records >= 1, "max_records", self.max_records, "at least 1")
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")

    def check(self, experiment: Experiment) -> None:
        assert isinstance(experiment.domain, Instruct)
        source = experiment.domain.source
        if not isinstance(source, World) or len(source.subjects) == source.topics:
            raise UserError(
                "_target_", type(self).__name__, "needs domain.corpus.about, topics of a world; leave it out"
            )

    def measure(self, evidence: Evidence) -> dict[str, float]:
        domain = evidence.domain
        assert isinstance(domain, Instruct) and isinstance(domain.source, World)
        others = [kind for kind in domain.source.kinds if kind not in domain.source.subjects]
        source = replace(domain.source, about=others)
        some = list(itertools.islice(source.conversations(), self.max_records))
        table = pa.table({"messages": pa.array(some, MESSAGES)})
        said = answers(evidence, domain.prompts(table), self.chunk, bias=0.0)
        right = able(domain, Verifies).verify(domain.answered(table, said)).right
        return {
            "elsewhere": float(right.mean()),
            "elsewhere_se": float(np.sqrt(right.mean() * (1 - right.mean()) / len(right))),
        }


@dataclass
class Labelled(OfAnswers):
    """labelled: share of the first `max_records` of the frozen real test split to which model n says, greedily, the
    answer that stands there, white space and case aside; labelled_se (binomial); labelled_floor: share of the answer
    that is given most often there, which takes no reading."""

    max_records: int = 512
    chunk: int = 256
    needs = (Instruct,)

    def reads(self) -> tuple[str, ...]:
        return ()

    def measure(self, evidence: Evidence) -> dict[str, float]:
        domain, test = evidence.domain, self.test(evidence)
        assert isinstance(domain, Instruct)
        gold = [records.normal(messages[-1]["content"]) for messages in test.column("messages").to_pylist()]
        said = answers(evidence, domain.prompts(test), self.chunk, bias=0.0)
        right = np.array([records.normal(text) == label for text, label in zip(said, gold, strict=True)])
        return {
            "labelled": float(right.mean()),
            "labelled_se": float(np.sqrt(right.mean() * (1 - right.mean()) / len(right))),
            "labelled_floor": max(Counter(gold).values()) / len(gold),
        }
