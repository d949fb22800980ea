"""Critiques in words: a language model says what is wrong with an answer and which type of error that is (Shepherd;
Wang et al. 2023, arXiv 2308.04592), to select answers by or to revise them.

    genloss run domain=instruct recipe=respond curation=critique curation.critique.author.new_tokens=96
    genloss run domain=instruct recipe=revise recipe.author.new_tokens=96      # what it criticises is rewritten
    genloss run ... recipe=revise recipe/backend@recipe.author.backend=openai recipe.author.backend.model=NAME

On worked solutions, where a critic is trained and its errors are known, it is curation=critic and recipe=refine. What a
model says here is data: a type is one of `TYPES` on the last line that begins with "Error:", or the critique is
unparseable, and counted."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from genloss.backends.author import Author, Work, author_of
from genloss.core import records
from genloss.core.contracts import Experiment, Plugin, Prompt
from genloss.core.errors import one_of
from genloss.core.prompts import Prompts, Told
from genloss.core.seeds import seed_of
from genloss.curate import Context, Decision, RecordCurator, decision
from genloss.domains.instruct import Instruct
from genloss.generate import Request
from genloss.generate.respond import Respond
from genloss.language.chat import USER

NONE, UNPARSEABLE = "none", "unparseable"
TYPES = ("arithmetic", "coherence", "context", "veracity", "redundancy", "commonsense", NONE)
VERDICT = re.compile(r"^[\s*#]*error[\s*]*:[\s*]*([a-z]+)", re.IGNORECASE | re.MULTILINE)
WORDS = Path(__file__).with_name("critique.yaml")
WANTED: Mapping[str, Sequence[str]] = {"asked": ("request", "response"), "revised": ("request", "response", "critique")}


def verdict(text: str) -> str:
    """The type of error that a critique names, or `unparseable`."""
    found = VERDICT.findall(text)
    said = found[-1].lower() if found else ""
    return said if said in TYPES else UNPARSEABLE


def exchange(messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """(what was asked, what was answered last); of several messages each with who said it."""
    before = messages[:-1]
    asked = before[0]["content"] if len(before) == 1 else "\n".join(f"{m['role']}: {m['content']}" for m in before)
    return asked, messages[-1]["content"]


def asked_of(texts: Sequence[str]) -> list[Prompt]:
    return [[{"role": USER, "content": text}] for text in texts]


def critiques(
    author: Author, words: Prompts, said: Sequence[Sequence[Mapping[str, str]]], work: Work, context: int, seed: int
) -> list[str]:
    """What the author says of the last answer of each conversation. One line is told where it names the same type
    everywhere, since such a critic selects nothing."""
    pairs = [exchange(messages) for messages in said]
    told = asked_of([words.fill("asked", request=request, response=response) for request, response in pairs])
    texts = author.write(told, work, context, seed=seed_of(seed, "critiques"), name="critiques").texts
    kinds = Counter(map(verdict, texts))
    if len(kinds) == 1 and len(texts) > 1:
        print(f"genloss: warning: the critic says {next(iter(kinds))} of all {len(texts)} answers", file=sys.stderr)
    return texts


@dataclass
class Criticised(Told, RecordCurator):
    """Keep the answers in which the author finds no error; the reason of a dropped one is the type of its error, or
    unparseable."""

    author: Any = field(default_factory=dict)
    prompts: str = ""  # another file of words than critique.yaml
    own_prompts: ClassVar[Path] = WORDS
    wanted: ClassVar[Mapping[str, Sequence[str]]] = WANTED
    needs = (Instruct,)

    def __post_init__(self) -> None:
        self.writer = author_of(self.author)

    def reads(self) -> tuple[str, ...]:
        return self.writer.reads()

    def parts(self) -> Mapping[str, Plugin]:
        return {"author": self.writer}

    def check(self, experiment: Experiment) -> None:
        self.words()

    def decide(self, table: pa.Table, context: Context) -> Decision:
        assert isinstance(context.domain, Instruct)
        said = table.column("messages").to_pylist()
        texts = critiques(self.writer, self.words(), said, context, context.domain.context, context.seed)
        kinds = np.array([verdict(text) for text in texts], dtype=object)
        return decision(kinds == NONE, reason=kinds)


REVISES = ("faulty", "all")


@dataclass
class Revise(Told, Respond):
    """As `Respond`; then the author criticises each answer, and rewrites those in which it finds an error (`revises`:
    faulty; or all of them). Records have two columns more, `critique` and `first`, the answer before. An empty revision
    leaves the answer as it was."""

    name: str = "revise"
    author: Any = field(default_factory=dict)
    revises: str = "faulty"
    prompts: str = ""  # another file of words than critique.yaml
    own_prompts: ClassVar[Path] = WORDS
    wanted: ClassVar[Mapping[str, Sequence[str]]] = WANTED
    needs = (Instruct,)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("revises", self.revises, REVISES)
        self.critic = author_of(self.author)

    def reads(self) -> tuple[str, ...]:
        return (*super().reads(), *self.critic.reads())

    def parts(self) -> Mapping[str, Plugin]:
        return {**super().parts(), "author": self.critic}

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        self.words()

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        table, result = super().generate(request)
        domain, words = request.domain, self.words()
        assert isinstance(domain, Instruct)
        said = table.column("messages").to_pylist()
        texts = critiques(self.critic, words, said, request, domain.context, request.seed)
        kinds = [verdict(text) for text in texts]
        faulty = [i for i, kind in enumerate(kinds) if self.revises == "all" or kind not in (NONE, UNPARSEABLE)]
        told = []
        for i in faulty:
            asked, response = exchange(said[i])
            told.append(words.fill("revised", request=asked, response=response, critique=texts[i].strip()))
        seed = seed_of(request.seed, "revisions")
        wrote = self.critic.write(asked_of(told), request, domain.context, seed=seed, name="revisions")
        answers, finish = [messages[-1]["content"] for messages in said], table.column(records.FINISH).to_pylist()
        first, revised = list(answers), 0
        for i, text, end in zip(faulty, wrote.texts, wrote.finish, strict=True):
            if text.strip():
                revised += text.strip() != answers[i].strip()
                answers[i], finish[i] = text.strip(), end
        payload = {
            "messages": domain.answered(table, answers).column("messages"),
            "critique": pa.array(texts, pa.string()),
            "first": pa.array(first, pa.string()),
        }
        made = records.make_table(
            payload,
            origin=records.SYNTHETIC,
            generation=request.round,
            recipe=self.name,
            parents=table.column("parents").to_pylist(),
        )
        counts: dict[str, Any] = {f"critique/{kind}": n for kind, n in sorted(Counter(kinds).items())}
        counts |= {"criticised": len(said), "revised": revised, **self.critic.spent(request)}
        result = {**result, "tokens": result["tokens"] + wrote.tokens, "counts": {**result["counts"], **counts}}
        return records.with_finish(made, finish), result | self.told_by()
