"""Baize (Xu et al. 2023, arXiv 2304.01196): a model talks to itself about a seed question, and a model learns from it.

    genloss run experiment=baize                                          # the small world, in the run's own template
    genloss run experiment=baize recipe.version=v2
    genloss run experiment=baize/real                                     # SmolLM2, told in words

    seed question --version=v1: one call--> a transcript --parser--> its longest beginning that is a conversation
    seed question --version=v2: the assistant's call, the user's call, ...--> a conversation

`ask=template`: the model of the run, which has learned what users say (domain.loss=all), goes on in its own template,
whose tokens mark the turns. `ask=words`: any model is told in words, and marks turns by [|Human|] and [|AI|], as
published. Answers of v2 are asked for in the model's own template in both cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.backends.author import Author, author_of
from genloss.core import records
from genloss.core.capabilities import Finishes
from genloss.core.contracts import Conversation, Experiment, Plugin, Prompt
from genloss.core.errors import UserError, one_of, require
from genloss.core.plugin import build, plain
from genloss.core.prompts import Told
from genloss.core.records import ENDED
from genloss.core.seeds import seed_of
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.generate import Recipe, Request
from genloss.generate.respond import fresh
from genloss.language.chat import ASSISTANT, USER
from genloss.language.tokenizer import Codec, load_codec
from genloss.language.voices import EVERYONE
from genloss.systems.baize.transcript import AI, HUMAN, ROLE, TOO_LONG, Talk, Turn, fault, kept, of_ids, of_text

VERSIONS, ASKS = ("v1", "v2"), ("template", "words")
NO_ROOM = "no_room"
TAG = {role: tag for tag, role in ROLE.items()}


@dataclass
class Baize(Told, Recipe, Finishes):
    """Each round takes the next n seed questions: first turns of the pool `prompts`, each used once, with the system
    prompt that stands before it. A record is a conversation of at most `turns` turns of the user that fits
    domain.context."""

    name: str = "baize"
    n: int = 1000  # seed questions a round
    version: str = "v1"  # v1: one call writes a whole transcript; v2: the assistant and the user are asked in turn
    ask: str = "template"  # template: the run's own; words: the file `prompts`
    turns: int = 3  # of the user, the seed question among them; at most
    author: Any = field(default_factory=dict)  # writes transcripts, and the turns of the user
    assistant: Any = field(default_factory=dict)  # v2: answers; empty: the author
    prompts: str = ""  # a file like selfchat.yaml; empty: that one
    needs = (Instruct,)
    own_prompts = Path(__file__).with_name("selfchat.yaml")
    wanted = {"transcript": ("turns", "question"), "user": ("conversation",)}  # noqa: RUF012 (as its base has it)

    def __post_init__(self) -> None:
        require(self.n >= 1, "n", self.n, "at least 1 seed question a round")
        require(self.turns >= 1, "turns", self.turns, "at least 1")
        one_of("version", self.version, VERSIONS)
        one_of("ask", self.ask, ASKS)
        self.writer = author_of(self.author)
        own = plain(self.assistant) or {}
        if own and self.version == "v1":
            raise UserError("assistant", own, "has no effect with version=v1, where one call writes both sides")
        self.answerer: Author = build(own, Author, "assistant") if own else self.writer

    def parts(self) -> Mapping[str, Plugin]:
        return {"author": self.writer} | ({"assistant": self.answerer} if self.answerer is not self.writer else {})

    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.writer.reads(), *self.answerer.reads()]))

    def at_most(self) -> int | None:
        return self.n

    def fingerprint(self) -> str:
        return super().fingerprint() if self.ask == "words" else ""

    def check(self, experiment: Experiment) -> None:
        domain = experiment.domain
        assert isinstance(domain, Instruct)
        rounds = max(1, experiment.rounds)
        most = f"at most {domain.pool // rounds}: domain.pool={domain.pool} seed questions for {rounds} rounds"
        require(self.n * rounds <= domain.pool, "n", self.n, most)
        if self.ask == "template" and self.writer.writer.elsewhere:
            raise UserError("ask", self.ask, "needs a model in this process; set it to words where a server writes")
        for key, author in self.parts().items():
            assert isinstance(author, Author)
            try:
                author.writer.check_conversations()
            except UserError as error:
                raise error.under(key, ["backend"]) from None
        if self.ask == "words":
            self.words()
            return
        if self.writer.own and domain.loss != "all":
            why = "needs a model that has learned what users say; set domain.loss=all, or ask=words"
            raise UserError("ask", self.ask, why)
        if self.version == "v1":
            self.writer.writer.check_decoding(self.writer.decoding(1, logprobs=True))

    # -- what it makes -------------------------------------------------------------------------------------------------

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        domain = request.domain
        assert isinstance(domain, Instruct)
        pool = fresh(request, self.n)
        openings = [opening(messages) for messages in pool.column("messages").to_pylist()]
        self.tokens = 0
        talks = (self._transcripts if self.version == "v1" else self._alternating)(openings, request, domain.context)
        codec = load_codec(request.data / "tokenizer")
        talks = [fitting(talk, codec, domain.context) for talk in talks]
        made = [i for i, talk in enumerate(talks) if talk.messages]
        if not made:
            reasons = ", ".join(f"{n} {why}" for why, n in sorted(Counter(talk.tail for talk in talks).items()))
            why = f"made no conversation of {len(talks)} seed questions in round {request.round} ({reasons})"
            remedy = "ask another model, or give it room with recipe.author.new_tokens or max_tokens"
            raise UserError("recipe.author", self.writer.model, f"{why}; {remedy}")
        conversations = [talks[i].messages for i in made]
        table = records.make_table(
            {"messages": pa.array(conversations, MESSAGES)},
            origin=records.SYNTHETIC,
            generation=request.round,
            recipe=self.name,
            parents=[[pool.column("id")[i].as_py()] for i in made],
        )
        counts = count(talks) | self.answerer.spent(request) | self.writer.spent(request)
        told = self.told_by() if self.ask == "words" else {}
        return records.with_finish(table, [ENDED] * len(made)), {"tokens": self.tokens, "counts": counts, **told}

    def _transcripts(self, openings: Sequence[Conversation], request: Request, context: int) -> list[Talk]:
        """v1: one call for each seed question."""
        if self.ask == "words":
            words = self.words()
            prompts = [told(words.fill("transcript", turns=self.turns, question=o[-1]["content"])) for o in openings]
        else:
            prompts = list(openings)
        live = self._roomy(self.writer, prompts, request, context)
        talks = [Talk([], NO_ROOM) for _ in openings]
        asked = [prompts[i] for i in live]
        options: dict[str, Any] = {} if self.ask == "words" else {"voice": EVERYONE, "logprobs": True}
        said = self.writer.write(asked, request, context, seed=request.seed, name="transcripts", **options)
        self.tokens += said.tokens
        codec = None if self.ask == "words" else load_codec(self.writer.at_work(request)[1] / "tokenizer")
        for at, i in enumerate(live):
            if codec is None:
                turns = of_text(said.texts[at], said.finish[at] == ENDED)
            else:
                assert said.ids is not None
                turns = of_ids(said.ids[at], codec)
            talks[i] = kept(openings[i], turns, self.turns)
        return talks

    def _alternating(self, openings: Sequence[Conversation], request: Request, context: int) -> list[Talk]:
        """v2: all conversations that still go on get their next turn together."""
        turns: list[list[Turn]] = [[] for _ in openings]
        going = list(range(len(openings)))
        full: set[int] = set()
        for step in range(2 * self.turns - 1):
            due = USER if step % 2 else ASSISTANT
            so_far = [[*openings[i], *({"role": t.role, "content": t.content} for t in turns[i])] for i in going]
            author = self.writer if due == USER else self.answerer
            in_words = due == USER and self.ask == "words"
            prompts: list[Prompt] = list(so_far)
            if in_words:
                words = self.words()
                prompts = [told(words.fill("user", conversation=tagged(messages))) for messages in so_far]
            live = self._roomy(author, prompts, request, context)
            full |= {i for at, i in enumerate(going) if at not in set(live)}
            options: dict[str, Any] = {"stop": [HUMAN, AI]} if self.ask == "words" else {}
            if due == USER and not in_words:
                options["voice"] = USER
            said = author.write(
                [prompts[at] for at in live],
                request,
                context,
                seed=seed_of(request.seed, "turn", step),
                name=f"turn-{step:02d}-{due}",
                **options,
            )
            self.tokens += said.tokens
            left = []
            for text, finish, at in zip(said.texts, said.finish, live, strict=True):
                turn = Turn(due, text.strip() if self.ask == "words" else text, finish == ENDED)
                turns[going[at]].append(turn)
                if not fault(turn, due):
                    left.append(going[at])
            going = left
            if not going:
                break
        talks = [kept(o, t, self.turns) for o, t in zip(openings, turns, strict=True)]
        return [Talk(t.messages, NO_ROOM) if i in full else t for i, t in enumerate(talks)]

    def _roomy(self, author: Author, prompts: Sequence[Prompt], request: Request, context: int) -> list[int]:
        """Which prompts leave room for a reply: others would be cut in silence."""
        if author.writer.elsewhere:
            return list(range(len(prompts)))
        codec = load_codec(author.at_work(request)[1] / "tokenizer")
        most = author.decoding(context).prefix
        return [i for i, ids in enumerate(codec.prompts(prompts)) if len(ids) <= most]


def opening(messages: Conversation) -> list[dict[str, str]]:
    """A conversation up to the user's first turn."""
    first = next(i for i, message in enumerate(messages) if message["role"] == USER)
    return [{"role": m["role"], "content": m["content"]} for m in messages[: first + 1]]


def told(text: str) -> Conversation:
    return [{"role": USER, "content": text}]


def tagged(messages: Conversation) -> str:
    """A conversation as text with tags; what a system prompt says is left out."""
    return "\n".join(f"{TAG[m['role']]} {m['content']}" for m in messages if m["role"] in TAG)


def fitting(talk: Talk, codec: Codec, context: int) -> Talk:
    """A conversation without the last turns that would make it longer than so many tokens."""
    messages, tail = talk
    while messages and len(codec.rendered(messages)) > context:
        messages, tail = messages[:-2], TOO_LONG
        if all(m["role"] != ASSISTANT for m in messages):
            messages = []
    return Talk(messages, tail)


def count(talks: Sequence[Talk]) -> dict[str, float]:
    """seeds, dialogues, rejected, rejected_REASON (not even the first answer), tails_REASON (of those that are kept),
    turns (of the user, a mean), turn_words (of both sides, a mean)."""
    good = [talk for talk in talks if talk.messages]
    found: dict[str, float] = {"seeds": len(talks), "dialogues": len(good), "rejected": len(talks) - len(good)}
    reasons = Counter(f"{'tails' if talk.messages else 'rejected'}_{talk.tail}" for talk in talks if talk.tail)
    found |= dict(sorted(reasons.items()))
    if good:
        said = [m["content"] for talk in good for m in talk.messages if m["role"] in TAG]
        found["turns"] = float(np.mean([sum(m["role"] == USER for m in talk.messages) for talk in good]))
        found["turn_words"] = float(np.mean([len(text.split()) for text in said]))
    return found
