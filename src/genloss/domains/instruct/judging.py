"""Selection of conversations by how good a model finds their last answer: a rating, or what the request tells of it.

    genloss run domain=instruct curation=pointwise_information                       # the better half
    genloss run domain=instruct curation=rating curation.rating.least=4.5            # Humpback's A5; 4: A4
    genloss run domain=instruct curation=rating curation.rating.reply=text           # as the paper has it
    genloss run domain=instruct curation=rating control=random                       # as many at random

A rating is the expected value over the digits 1 to 5, by their probabilities as the next token: none is unparseable,
and a cut between two grades means something. Or it is what the judge writes (`reply=text`), as Li et al. (2024, arXiv
2308.06259) rate, of which a replication could not read 45 %: that is dropped as unparseable, and so counted. In the
small world it is asked as the world asks it, else in the words of rating.yaml.

Pointwise information is ln p(answer | request) - ln p(answer | a generic request). Measured with SmolLM2-135M it tells
an answer from that to another request in 16 of 16, where that model's ratings are near chance (docs/instruct.md)."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from genloss.backends.author import Author, author_of
from genloss.core.contracts import Experiment, Plugin, Prompt
from genloss.core.errors import UserError, one_of, require
from genloss.core.prompts import Told
from genloss.curate import Context, Decision, RecordCurator, decision
from genloss.curate.choose import kept_of, top
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.domains.instruct.world import World
from genloss.language.chat import MARKS, SYSTEM, USER
from genloss.language.tokenizer import load_codec

GRADES = ("1", "2", "3", "4", "5")
DIGITS, TEXT = REPLIES = ("digits", "text")
SCORE = re.compile(r"score\s*:\s*(\S+)", re.IGNORECASE)
ROOM = 128  # tokens of a rating in words


def grade_of(text: str) -> float:
    """The number from 1 to 5 of the last "Score:" of a text, or of a text that is no more than that; nan if there is
    none."""
    said = (SCORE.findall(text) or [text.strip()])[-1].strip("*._")
    found = re.fullmatch(r"([1-5](?:\.\d+)?)(?:/5)?", said)
    return float(found[1]) if found and float(found[1]) <= 5 else np.nan


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

    author: Any = field(default_factory=dict)  # the judge: a model in this process; with reply=text any
    least: float | None = 4.5
    fraction: float | None = None
    reply: str = DIGITS  # the expected grade; or text: the grade that the judge writes
    system: bool = True  # whether the judge sees a system prompt of what it rates; never in the world
    prompts: str = ""  # another file of words than rating.yaml
    own_prompts: ClassVar[Path] = Path(__file__).with_name("rating.yaml")
    wanted: ClassVar[Mapping[str, Sequence[str]]] = {
        "asked": ("request", "response"),
        "reasoned": ("request", "response"),
    }
    needs = (Instruct,)

    def __post_init__(self) -> None:
        one_of_two(self.least, self.fraction)
        require(self.least is None or 1 <= self.least <= 5, "least", self.least, "a grade from 1 to 5")
        one_of("reply", self.reply, REPLIES)
        self.judge = author_of(self.author, new_tokens=ROOM)

    def reads(self) -> tuple[str, ...]:
        return self.judge.reads()

    def parts(self) -> Mapping[str, Plugin]:
        return {"author": self.judge}

    def check(self, experiment: Experiment) -> None:
        if self.reply == DIGITS:
            _in_process(self.judge)
        self.words()

    def decide(self, table: pa.Table, context: Context) -> Decision:
        domain, words = context.domain, self.words()
        assert isinstance(domain, Instruct)
        asked: list[Prompt] = []
        opening = domain.opening() if self.judge.own else []  # as the judge was trained
        for messages in table.column("messages").to_pylist():
            said = messages[-1]["content"]
            if isinstance(domain.source, World):
                text = domain.source.ask_rate(messages[-2]["content"], said)
            else:
                seen = messages if self.system or messages[0]["role"] != SYSTEM else messages[1:]
                name = "asked" if self.reply == DIGITS else "reasoned"
                text = words.fill(name, request=_asked(seen), response=said)
            asked.append([*opening, {"role": USER, "content": text}])
        if self.reply == TEXT:
            return self._read(asked, domain.context, context)
        logp = self.judge.choices(asked, GRADES, context)
        p = np.exp(logp - logp.max(axis=1, keepdims=True))
        score = (p * np.arange(1, 6)).sum(axis=1) / p.sum(axis=1)
        tell_if_alike(score, "the judge")
        return decision(chosen(score, self.least, self.fraction), score, "low rating")

    def _read(self, asked: list[Prompt], room: int, context: Context) -> Decision:
        said = self.judge.write(asked, context, room, seed=context.seed, name="rating")
        score = np.array([grade_of(text) for text in said.texts])
        none = np.isnan(score)
        tell_if_alike(score[~none], "the judge")
        keep = chosen(np.where(none, -np.inf, score), self.least, self.fraction) & ~none
        return decision(keep, score, np.where(none, "unparseable", "low rating").astype(object))


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
        self.judge = author_of(self.author)

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
