"""What a chat model says to held-out requests, and how likely it finds what was said there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.errors import require
from genloss.domains.instruct import Instruct
from genloss.domains.instruct.chats import Checks, Messages
from genloss.domains.instruct.skills import ANSWER
from genloss.domains.instruct.world import World
from genloss.evaluate import Evidence, Metric
from genloss.evaluate.selected import OfAnswers, answers, chosen, selection
from genloss.language.chat import ASSISTANT, said_by

HALF = 0.5  # of a cell's requests have to be followed for it to count


def words(texts: Sequence[str]) -> np.ndarray:
    """int [n]"""
    return np.fromiter((len(text.split()) for text in texts), int, len(texts))


@dataclass
class ResponseLoss(Metric):
    """Mean loss of model n on what the assistant says in the frozen real test split, its ends included: response_loss
    (nats/token), response_bits_per_byte (total bits over the UTF-8 bytes that the assistant says), response_tokens. The
    floor of these is their value in round 0. Where the model's template has no marks of the assistant, all tokens are
    counted."""

    max_records: int = 512
    needs = (Instruct,)
    panels = ()  # response_bits_per_byte is among the domain's

    def __post_init__(self) -> None:
        require(self.max_records >= 1, "max_records", self.max_records, "at least 1")

    def measure(self, evidence: Evidence) -> dict[str, float]:
        domain = evidence.domain
        assert isinstance(domain, Instruct)
        test = records.read(evidence.data / "test.parquet").slice(0, self.max_records)
        nats, tokens = domain.losses(evidence.model, evidence.data, test, evidence.runtime, evidence.report)
        said = [text for messages in test.column("messages").to_pylist() for text in said_by(ASSISTANT, messages)]
        size = sum(len(text.encode()) for text in said)
        return {
            "response_loss": float(nats.sum() / tokens.sum()),
            "response_bits_per_byte": float(nats.sum() / math.log(2) / size),
            "response_tokens": float(tokens.sum()),
        }


@dataclass
class Following(OfAnswers):
    """Model n's greedy answers to the last requests of the frozen real test split. Of any data: distinct_responses
    (different ones, as a share of the answers; floor: of the real ones), response_words (mean; floor: of the real
    ones) and response_length_bias (the first over the second, minus 1). Of data that can be checked: followed (share
    of right answers), followed_se (binomial), unparseable (share that is no answer at all), forgotten (share that the
    model of round 0 answers rightly and this one does not; it may have learned others). Of domain/corpus=world, and of
    those conversations that answer: followed/topic_X, followed/format_X, followed/register_X, followed/steps_N, and
    breadth: the share of (topic, format, steps) in which half of the answers are right. Where the test has several
    skills, followed is of them all, and followed/answer, followed/propose, ... are of each.

    From round 1 on, of the generated records where they can be checked: label_accuracy, label_unparseable,
    kept_accuracy, kept_accuracy_se, phi, psi, p_star (as of the metric `accuracy`), kept_words and rejected_words
    (means of their last answers). Of the world, whose law of requests is known, and of conversations that answer:
    request_unreadable (share that its grammar has not), request_coverage (share of the law's cells, topic, format,
    register and steps, that occur), request_kl (divergence of their cells from the law, in nats),
    request_coverage_floor and request_kl_floor (of equally many held-out real ones). What is undefined is left
    out."""

    max_records: int = 512
    chunk: int = 256  # requests answered together
    needs = (Instruct,)

    def measure(self, evidence: Evidence) -> dict[str, float]:
        domain = evidence.domain
        assert isinstance(domain, Instruct)
        test = self.test(evidence)
        said = answers(evidence, domain.prompts(test), self.chunk, bias=0.0)
        found = self._answers(said, [m[-1]["content"] for m in test.column("messages").to_pylist()])
        if isinstance(domain.source, Checks):
            right, parsed = domain.verify(domain.answered(test, said))
            found |= {"followed": right.mean(), "unparseable": 1 - parsed.mean()}
            found["followed_se"] = np.sqrt(right.mean() * (1 - right.mean()) / len(right))
            found["forgotten"] = self._forgotten(right, test, evidence)
            if isinstance(domain.source, World):
                found |= cells(domain.source, test, right)
            if evidence.generated is not None:
                found |= selection(evidence, domain) | self._generated(domain.source, evidence)
        return {name: float(value) for name, value in found.items()}

    @staticmethod
    def _answers(said: list[str], real: list[str]) -> dict[str, Any]:
        own, wanted = words(said).mean(), words(real).mean()
        return {
            "distinct_responses": len(set(said)) / len(said),
            "distinct_responses_floor": len(set(real)) / len(real),
            "response_words": own,
            "response_words_floor": wanted,
            "response_length_bias": own / wanted - 1,
        }

    def _forgotten(self, right: np.ndarray, test: pa.Table, evidence: Evidence) -> float:
        if evidence.round == 0:
            return 0.0
        domain = evidence.domain
        assert isinstance(domain, Instruct)
        first = answers(evidence, domain.prompts(test), self.chunk, bias=0.0, model=evidence.round0)
        return float((domain.verify(domain.answered(test, first)).right & ~right).mean())

    @staticmethod
    def _generated(source: Any, evidence: Evidence) -> dict[str, Any]:
        """Of the conversations of this round: the length of what was kept, and what they ask."""
        assert evidence.generated is not None
        table = records.read(evidence.generated)
        made: list[Messages] = table.column("messages").to_pylist()
        if not made:
            return {}
        kept, size = chosen(evidence, table.column("id").to_pylist()), words([m[-1]["content"] for m in made])
        found: dict[str, Any] = {
            f"{name}_words": size[mask].mean() for name, mask in (("kept", kept), ("rejected", ~kept)) if mask.any()
        }
        if isinstance(source, World):
            real = records.read(evidence.data / "test.parquet").column("messages").to_pylist()
            made, real = ([m for m in each if source.skill(m) == ANSWER] for each in (made, real))
            n = min(len(made), len(real))
            found |= {f"request_{k}": v for k, v in spread(source, made[:n]).items()}
            floor = spread(source, real[:n])
            found |= {f"request_{k}_floor": v for k, v in floor.items() if k != "unreadable"}
        return found


def cells(world: World, table: pa.Table, right: np.ndarray) -> dict[str, float]:
    """followed/..., and breadth, of conversations whose last answers are right or not."""
    last = [world.read(messages).turns[-1] for messages in table.column("messages").to_pylist()]
    known = [(turn.request, ok) for turn, ok in zip(last, right.tolist(), strict=True) if turn.request is not None]
    groups: dict[str, list[bool]] = {}
    if len({turn.skill for turn in last}) > 1:
        for turn, ok in zip(last, right.tolist(), strict=True):
            groups.setdefault(turn.skill, []).append(ok)
    wide: dict[tuple[str, str, int], list[bool]] = {}
    for r, ok in known:
        for name in (f"topic_{r.topic}", f"format_{r.format}", f"register_{r.register}", f"steps_{r.steps}"):
            groups.setdefault(name, []).append(ok)
        wide.setdefault((r.topic, r.format, r.steps), []).append(ok)
    found = {f"followed/{name}": float(np.mean(oks)) for name, oks in sorted(groups.items())}
    return found | ({"breadth": float(np.mean([np.mean(oks) >= HALF for oks in wide.values()]))} if wide else {})


def spread(world: World, conversations: Sequence[Messages]) -> dict[str, float]:
    """unreadable, coverage and kl of the first requests; nothing of no conversations."""
    if not conversations:
        return {}
    read = [world.read(messages).cell for messages in conversations]
    counts = Counter(cell for cell in read if cell in world.law)
    total = sum(counts.values())
    found = {"unreadable": 1 - total / len(read), "coverage": len(counts) / len(world.law)}
    if total:
        found["kl"] = sum(k / total * math.log(k / total / world.law[cell]) for cell, k in counts.items())
    return found
