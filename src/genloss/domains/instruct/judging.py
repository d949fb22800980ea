"""Selection of conversations by how good a model finds their last answer: a rating, or what the request tells of it.

    genloss run domain=instruct curation=pointwise_information                       # the better half
    genloss run domain=instruct curation=rating curation.rating.least=4.5            # Humpback's A5; 3.5: its A4
    genloss run domain=instruct curation=rating control=random                       # as many at random

A rating is the expected value over the digits 1 to 5, by their probabilities as the next token (Li et al. 2024, arXiv
2308.06259, rate in words, of which a replication could not read 45 %): none is unparseable, and a cut between two
grades means something. In the small world it is asked as the world asks it, else in the words of rating.yaml.

Pointwise information is ln p(answer | request) - ln p(answer | a generic request). Measured with SmolLM2-135M it tells
an answer from that to another request in 16 of 16, where that model's ratings are near chance (docs/instruct.md)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from genloss.backends.author import Author
from genloss.core.contracts import Experiment, Plugin, Prompt
from genloss.core.errors import UserError, require
from genloss.core.plugin import build, plain
from genloss.core.prompts import Told
from genloss.curate import Context, Decision, RecordCurator, decision
from genloss.curate.choose import kept_of, top
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.domains.instruct.world import World
from genloss.language.chat import MARKS, USER
from genloss.language.tokenizer import load_codec

GRADES = ("1", "2", "3", "4", "5")


def chosen(score: np.ndarray, least: float | None, fraction: float | None) -> np.ndarray:
    """Mask of the scores that are at least `least`, or of the top `fraction`."""
    return score >= least if least is not None else top(score, kept_of(fraction or 1.0, len(score)))


def one_of_two(least: float | None, fraction: float | None) -> None:
    require((least is None) != (fraction is None), "least", least, "set, or fraction, and the other null")
    require(fraction is None or 0 < fraction <= 1, "fraction", fraction, "in (0, 1]")


def tell_if_alike(score: np.ndarray, what: str) -> None:
    if len(score) > 1 and np.ptp(score) < 1e-9:
        print(f"genloss: warning: {what} gives all {len(score)} records {score[0]:.3g}", file=sys.stderr)


@dataclass
class Rating(Told, RecordCurator):
    """Keep what the author rates at least `least`, or the top `fraction`; the score is the expected grade, 1 to 5."""

    author: Any = field(default_factory=dict)  # the judge: a model in this process
    least: float | None = 4.5
    fraction: float | None = None
    prompts: str = ""  # another file of words than rating.yaml
    own_prompts: ClassVar[Path] = Path(__file__).with_name("rating.yaml")
    wanted: ClassVar[Mapping[str, Sequence[str]]] = {"asked": ("request", "response")}
    needs = (Instruct,)

    def __post_init__(self) -> None:
        one_of_two(self.least, self.fraction)
        require(self.least is None or 1 <= self.least <= 5, "least", self.least, "a grade from 1 to 5")
        self.judge = build(plain(self.author), Author, "author") if self.author else Author()

    def reads(self) -> tuple[str, ...]:
        return self.judge.reads()

    def parts(self) -> Mapping[str, Plugin]:
        return {"author": self.judge}

    def check(self, experiment: Experiment) -> None:
        _in_process(self.judge)
        self.words()

    def decide(self, table: pa.Table, context: Context) -> Decision:
        domain, words = context.domain, self.words()
        assert isinstance(domain, Instruct)
        asked: list[Prompt] = []
        for messages in table.column("messages").to_pylist():
            said = messages[-1]["content"]
            if isinstance(domain.source, World):
                text = domain.source.ask_rate(messages[-2]["content"], said)
            else:
                text = words.fill("asked", request=_asked(messages), response=said)
            asked.append([{"role": USER, "content": text}])
        logp = self.judge.choices(asked, GRADES, context)
        p = np.exp(logp - logp.max(axis=1, keepdims=True))
        score = (p * np.arange(1, 6)).sum(axis=1) / p.sum(axis=1)
        tell_if_alike(score, "the judge")
        return decision(chosen(score, self.least, self.fraction), score, "low rating")


@dataclass
class PointwiseInformation(RecordCurator):
    """Keep the top `fraction`, or at least `least` nats, by ln p(last answer | what was asked) - ln p(last answer |
    `generic`) under the author, in nats a token of the answer; what is said before the last answer is the request."""

    author: Any = field(default_factory=dict)  # a model in this process
    generic: str = "Say something."
    least: float | None = None
    fraction: float | None = 0.5
    needs = (Instruct,)

    def __post_init__(self) -> None:
        one_of_two(self.least, self.fraction)
        require(bool(self.generic.strip()), "generic", repr(self.generic), "a request")
        self.judge = build(plain(self.author), Author, "author") if self.author else Author()

    def reads(self) -> tuple[str, ...]:
        return self.judge.reads()

    def parts(self) -> Mapping[str, Plugin]:
        return {"author": self.judge}

    def check(self, experiment: Experiment) -> None:
        _in_process(self.judge)

    def decide(self, table: pa.Table, context: Context) -> Decision:
        domain = context.domain
        assert isinstance(domain, Instruct)
        model, data = self.judge.at_work(context)
        if not MARKS.search(load_codec(data / "tokenizer").template or ""):
            why = "has no {% generation %} marks, so nobody can tell the answer's tokens; use author.template=chatml"
            raise UserError("author.template", self.judge.template, why)
        said = [
            [{"role": m["role"], "content": m["content"]} for m in messages]
            for messages in table.column("messages").to_pylist()
        ]
        bare = [[{"role": USER, "content": self.generic}, messages[-1]] for messages in said]
        # of several answers all but the last are part of the request: only the last one's difference is meant
        alone = [[{"role": USER, "content": _asked(messages)}, messages[-1]] for messages in said]
        whole, tokens = domain.losses(model, data, _table(alone), context.runtime, context.report)
        without, _ = domain.losses(model, data, _table(bare), context.runtime, context.report)
        score = (without - whole) / np.maximum(tokens, 1)
        tell_if_alike(score, "the information of a request")
        return decision(chosen(score, self.least, self.fraction), score, "low information")


def _asked(messages: Sequence[Mapping[str, str]]) -> str:
    return messages[0]["content"] if len(messages) == 2 else "\n".join(m["content"] for m in messages[:-1])


def _table(conversations: list[Any]) -> pa.Table:
    return pa.table({"messages": pa.array(conversations, MESSAGES)})


def _in_process(judge: Author) -> None:
    if judge.writer.elsewhere:
        why = "gives no probabilities of chosen tokens; name a model in this process, or use curation=critique"
        raise UserError("author.backend", type(judge.writer).__name__, why)
