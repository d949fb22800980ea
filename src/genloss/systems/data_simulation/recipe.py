"""A broad model writes labelled data for a narrow task, on which the small model of the run is then trained.

    genloss run experiment=broad                        # first: the broad model, a run of its own
    genloss run experiment=data_simulation              # a model of a tenth of its size, on what that model writes
    genloss run experiment=data_simulation/iterated     # and the narrow one's answers train the next broad one
    genloss run ... recipe=data_simulation domain/corpus=chats domain.corpus.path=gold.jsonl 'recipe.labels=[good, bad]'

ZeroGen (Ye et al. 2022, arXiv 2202.07922, section 3): label-conditioned prompts, sampled texts, and a task model that
sees nothing else. In the world a description of attributes is the prompt, what the author writes to it is a request,
and the label is the author's own answer; elsewhere the prompt has the label, the text is what is written to it, and
the label is the answer. Nothing is checked here: that is what curation is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from genloss.backends.author import Author, author_of
from genloss.core import records
from genloss.core.capabilities import Finishes
from genloss.core.contracts import Experiment, Plugin, Prompt, Replies
from genloss.core.errors import UserError, one_of, require
from genloss.core.plugin import build, plain
from genloss.core.prompts import Told, onward
from genloss.core.seeds import generator, seed_of
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.domains.instruct.world import World
from genloss.generate import Recipe, Request
from genloss.language.chat import ASSISTANT, USER


def asked(text: str) -> list[dict[str, str]]:
    """A conversation that waits for the assistant."""
    return [{"role": USER, "content": text}]


@dataclass
class Simulate(Told, Recipe, Finishes):
    """n records a round. In the world each has one of the law's cells, uniformly, of the topics that `about` names (of
    none: those of `corpus.about`); elsewhere one of `labels` and one of `attributes`, in turn. What is written empty,
    or cut off, is dropped and counted."""

    name: str = "data_simulation"
    n: int = 4000  # records that are asked for
    author: Any = field(default_factory=dict)  # the broad model
    assistant: Any = field(default_factory=dict)  # who answers its requests, in the world; empty: the author
    about: list[str] = field(default_factory=list)  # topics of the requests, in the world
    labels: list[str] = field(default_factory=list)  # of the task; none: the world has them
    attributes: list[str] = field(default_factory=list)  # what texts may be about, for variety
    prompts: str = ""  # another file of words than words.yaml
    own_prompts: ClassVar[Path] = Path(__file__).with_name("words.yaml")
    wanted: ClassVar[Mapping[str, Sequence[str]]] = {"asked": ("label", "attribute"), "task": ("text",), "stop": ()}
    needs = (Instruct,)

    def __post_init__(self) -> None:
        require(self.n >= 1, "n", self.n, "at least 1 record a round")
        for key in ("labels", "attributes"):
            said = [text for text in getattr(self, key) if not isinstance(text, str) or not text.strip()]
            require(not said, key, said, "texts, none of which is empty")
        require(len(set(self.labels)) == len(self.labels), "labels", self.labels, "labels that differ")
        self.writer = author_of(self.author)
        own = plain(self.assistant) or {}
        self.answerer: Author = build(own, Author, "assistant") if own else self.writer

    def at_most(self) -> int:
        return self.n

    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.writer.reads(), *self.answerer.reads()]))

    def parts(self) -> Mapping[str, Plugin]:
        return {"author": self.writer} | ({"assistant": self.answerer} if self.answerer is not self.writer else {})

    def check(self, experiment: Experiment) -> None:
        assert isinstance(experiment.domain, Instruct)
        source = experiment.domain.source
        of_others = ("labels", "attributes") if isinstance(source, World) else ("about", "assistant")
        why = "the world has attributes of its own" if isinstance(source, World) else "it is of domain/corpus=world"
        for key in of_others:
            require(not getattr(self, key), key, "set", f"empty: {why}")
        if isinstance(source, World):
            for topic in self.about:
                one_of("about", topic, source.subjects)
        else:
            require(len(self.labels) >= 2, "labels", self.labels, "at least 2 labels of the task that is simulated")
            self.words()

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        assert isinstance(request.domain, Instruct)
        in_world = isinstance(request.domain.source, World)
        made, said, counts = (self._of_world if in_world else self._of_task)(request, request.domain)
        good = [text is not None for text in made]
        left = [messages for messages in made if messages is not None]
        if not left:
            raise UserError("recipe.author", None, f"wrote none of {self.n} records ({counts}); ask another model")
        table = records.make_table(
            {"messages": pa.array(left, MESSAGES)},
            origin=records.SYNTHETIC,
            generation=request.round,
            recipe=self.name,
        )
        finish = [end for end, kept in zip(said.finish, good, strict=True) if kept]
        counts |= {"asked": self.n, "written": len(left)}
        for author in {id(author): author for author in (self.writer, self.answerer)}.values():
            counts |= author.spent(request)
        told = {} if in_world else self.told_by()
        return records.with_finish(table, finish), {"tokens": said.tokens, "counts": counts, **told}

    def _of_world(self, request: Request, domain: Instruct) -> tuple[list[Any], Replies, dict[str, Any]]:
        """Requests to descriptions, then the author's own answers to them."""
        world = domain.source
        assert isinstance(world, World)
        cells = sorted(
            cell for cell, share in world.law.items() if share > 0 and (not self.about or cell[0] in self.about)
        )
        drawn = generator(request.seed, "cells").integers(len(cells), size=self.n).tolist()
        descriptions: list[Prompt] = [asked(world.ask_describe(*cells[i])) for i in drawn]
        wrote = self._write(descriptions, request, domain, "requests", self.writer)
        unwritten = [
            not text.strip() or end == records.CUT for text, end in zip(wrote.texts, wrote.finish, strict=True)
        ]
        posed: list[Prompt] = [asked(text if text.strip() else "?") for text in wrote.texts]
        said = self._write(posed, request, domain, "answers", self.answerer)
        made: list[Any] = []
        counts = {"unwritten": 0, "unanswered": 0}
        for empty, text, answer in zip(unwritten, wrote.texts, said.texts, strict=True):
            counts["unwritten"] += empty
            counts["unanswered"] += not empty and not answer.strip()
            good = not empty and bool(answer.strip())
            made.append([*asked(text), {"role": ASSISTANT, "content": answer}] if good else None)
        return made, said._replace(tokens=said.tokens + wrote.tokens), counts

    def _of_task(self, request: Request, domain: Instruct) -> tuple[list[Any], Replies, dict[str, Any]]:
        """Texts to labels, which are the answers."""
        words = self.words()
        labels = [self.labels[i % len(self.labels)] for i in range(self.n)]
        about = self.attributes or [""]
        order = generator(request.seed, "attributes").integers(len(about), size=self.n).tolist()
        posed = [words.fill("asked", label=label, attribute=about[i]) for label, i in zip(labels, order, strict=True)]
        said = self._write([*posed], request, domain, "texts", self.writer, stop=[words["stop"]])
        said = said._replace(texts=[onward(text, prompt) for text, prompt in zip(said.texts, posed, strict=True)])
        made: list[Any] = []
        counts = {"unwritten": 0}
        for label, text, end in zip(labels, said.texts, said.finish, strict=True):
            good = bool(text.strip()) and end != records.CUT
            counts["unwritten"] += not good
            answer = {"role": ASSISTANT, "content": label}
            made.append([*asked(words.fill("task", text=text.strip())), answer] if good else None)
        return made, said, counts

    @staticmethod
    def _write(
        prompts: list[Prompt], request: Request, domain: Instruct, name: str, author: Author, **changes: Any
    ) -> Replies:
        seed = seed_of(request.seed, name)
        return author.write(prompts, request, domain.context, seed=seed, name=name, **changes)
