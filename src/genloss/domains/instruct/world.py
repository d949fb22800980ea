"""A small closed world that people ask about, in a language of which everything is known.

    genloss run domain=instruct                                       # this corpus
    world = World(); world.read(messages).cell                        # ('bird', 'list', 'formal', 2)
    document = next(world.web(seed=0)); document.noise                # '' or what is wrong with it

Each entity has a kind, which is its topic, a colour, a size and an age, and a friend, a rival and a guide of its own
kind. A request asks for a value at the end of a path of one to three steps ("the colour of the friend of mavo"), or for
a portrait, in a format (a word, sentences, a list) and in a register (plain, formal, casual), which the answer has to
take up; a system prompt may set either. Sentences and lists name every step; a word does not, so that a path of three
steps in a word is hard. In a dialogue later requests may say `it` for the entity of the one before. Other kinds of
conversations are in `skills`.

Grammar and facts are exact in both directions: `read` gives the attributes of any text or says that it has none, and
whether an answer is right. So the law of requests is known (`law`), and with it the coverage and the divergence of what
a model makes up, and of documents what a selector has to find.

Everything is a function of the fields and of a seed; record i depends on its own random numbers alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from genloss.core.contracts import Checked
from genloss.core.errors import require
from genloss.core.seeds import seed_of, uniforms
from genloss.domains.instruct.chats import Chats, Checks, Messages, Papers
from genloss.domains.instruct.grammar import (
    FORMATS,
    MANNERS,
    NOISE,
    OWN,
    REGISTERS,
    SECOND,
    STEPS,
    WAYS,
    Document,
    Draws,
    Reading,
    Request,
    Turn,
)
from genloss.domains.instruct.skills import ANSWER, DESCRIBE, RECALL, Skills
from genloss.language.chat import ASSISTANT, SYSTEM, USER, wrong

TRIES = 10_000  # documents in a row that may be of no use, before there are held to be no more
CHUNK, DRAWS = 1024, 64  # records that are drawn together, and the random numbers of each


@dataclass
class World(Skills, Chats, Checks, Papers):
    systems: float = 0.2  # share of conversations with a system prompt, of those that answer
    dialogues: float = 0.2  # share of conversations with two or three requests, of those that answer
    noise: float = 0.3  # share of documents that are none
    endless = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("systems", "dialogues", "noise"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "a share in [0, 1]")

    def asks(self, messages: Messages) -> str:
        """What a description leaves open is the assistant's to ask: there are few descriptions, and many requests."""
        said = messages[-1]["content"] if self.skill(messages) == DESCRIBE else ""
        return "\n".join([super().asks(messages), *([said] if said else [])])

    def is_pair(self, messages: Messages) -> bool:
        return super().is_pair(messages) and self.skill(messages) == ANSWER

    # -- writing -------------------------------------------------------------------------------------------------------

    def _drawn(self, seed: int) -> Iterator[Draws]:
        for chunk in itertools.count():
            for row in uniforms(seed, chunk, CHUNK, DRAWS):
                yield Draws(row)

    def conversations(self) -> Iterator[Messages]:
        for draws in self._drawn(seed_of(self.seed, "world", "conversations")):
            yield self._conversation(draws)

    def _conversation(self, draws: Draws) -> Messages:
        shares = self.shares
        skill = draws.among(tuple(shares), tuple(shares.values())) if len(shares) > 1 else next(iter(shares))
        if skill != ANSWER:
            both = zip((USER, ASSISTANT), self.turn(skill, draws), strict=True)
            return [{"role": role, "content": content} for role, content in both]
        steps = draws.among(STEPS, self.steps)
        manner = way = ""
        if draws.chance(self.systems):
            which = draws.among(("both", "manner", "way"))
            manner = draws.among(REGISTERS) if which != "way" else ""
            way = draws.among(FORMATS if steps else FORMATS[1:]) if which != "manner" else ""
        said = [words for words in (MANNERS.get(manner), WAYS.get(way)) if words]
        messages = [{"role": SYSTEM, "content": " ".join(said)}] if said else []
        count = draws.among((2, 3)) if draws.chance(self.dialogues) else 1
        before: Request | None = None
        for _ in range(count):
            asked, before = self._asked(draws, steps, manner, way, before)
            steps = draws.among(STEPS, self.steps)
            if way == "word" and not steps:  # of a later request; the law is that of the first
                steps = 1
            reply = self.reply(before, [draws.chance(SECOND) for _ in range(len(self.walk(before)))])
            messages += [{"role": USER, "content": asked}, {"role": ASSISTANT, "content": reply}]
        return messages

    def web(self, seed: int) -> Iterator[Document]:
        """Documents without their instructions: portraits, and a share of noise."""
        for draws in self._drawn(seed_of(self.seed, "world", "web", seed)):
            topic = draws.among(self.subjects)
            subject, name, register = draws.among(self.kinds[topic]), draws.among(FORMATS[1:]), draws.among(REGISTERS)
            request = Request(subject, (), name, register, topic)
            text = self.reply(request, [draws.chance(SECOND) for _ in OWN])
            if draws.chance(self.noise):
                kind = draws.among(NOISE)
                yield Document(self._spoilt(draws, kind, request, text), kind, "", None)
            else:
                yield Document(text, "", self.asked(request, subject, register, name, draws.among((0, 1))), request)

    def papers(
        self, seed: int, held_out: Sequence[Messages], fits: Callable[[str], bool]
    ) -> Iterator[dict[str, str | None]]:
        """Of `web`: text, noise ('' if it is none), and of what is no noise instruction, topic, format and register."""
        known = {request for messages in held_out for request in self.told(messages)}
        missed = 0
        for text, noise, instruction, request in self.web(seed):
            if request in known or not fits(text):
                missed += 1
                if missed > TRIES:
                    return
                continue
            missed = 0
            names = (request.topic, request.format, request.register) if request else (None, None, None)
            yield {"text": text, "noise": noise, "instruction": instruction or None} | dict(
                zip(("topic", "format", "register"), names, strict=True)
            )

    # -- reading -------------------------------------------------------------------------------------------------------

    def skill(self, messages: Messages) -> str:
        """What a conversation's first request calls for."""
        return next((self.skill_of(m["content"]) for m in messages if m["role"] == USER), ANSWER)

    def read(self, messages: Messages) -> Reading:
        """The attributes of a conversation, by whomever it was made."""
        if why := wrong(messages):
            return Reading((), why)
        said = messages[0]["content"] if messages[0]["role"] == SYSTEM else ""
        manner, way = self._manners(said)
        turns: list[Turn] = []
        before: Request | None = None
        rest = messages[1:] if said else messages
        for question, answer in zip(rest[::2], rest[1::2], strict=True):
            skill = self.skill_of(question["content"])
            if skill != ANSWER:
                before = None
                turns.append(Turn(None, None, *self.checked(question["content"], answer["content"]), skill))
                continue
            before = self.request(question["content"], manner, way, before)
            reply = self.read_reply(answer["content"])
            turns.append(Turn(before, reply, self.answers(before, reply), reply is not None, skill))
        return Reading(tuple(turns), "")

    def told(self, messages: Messages) -> set[Request]:
        """The requests whose answers a conversation has: those of its turns, and what it recalls."""
        found = {turn.request for turn in self.read(messages).turns}
        for asked in (m["content"] for m in messages if m["role"] == USER):
            if self.skill_of(asked) == RECALL:
                found.add(self.recalled(asked.removeprefix(self.ask_recall(""))))
        return {request for request in found if request}

    @staticmethod
    def _manners(said: str) -> tuple[str, str]:
        """(register, format) that a system prompt sets; '' where it sets none."""
        manner = next((name for name, words in MANNERS.items() if said.startswith(words)), "")
        way = next((name for name, words in WAYS.items() if said.endswith(words)), "")
        return manner, way

    def verify(self, conversations: list[Messages]) -> Checked:
        found = [self.read(messages) for messages in conversations]
        right, parsed = ([getattr(each, what) for each in found] for what in ("right", "parsed"))
        return Checked(np.array(right, dtype=bool), np.array(parsed, dtype=bool))

    def grades(self, conversations: list[Messages]) -> np.ndarray:
        """int [n]: how good the last answers are, 1 to 5 as of `grade`, of what is asked where it is asked: a system
        prompt may set the format, and `it` is the entity before. Of another skill than to answer: 5, right; 2, of its
        form; 1."""
        found = []
        for messages in conversations:
            turns = self.read(messages).turns
            last = turns[-1] if turns else None
            if last is None:
                found.append(1)
            elif last.skill == ANSWER:
                found.append(self._grade(last.request, last.reply))
            else:
                found.append(5 if last.right else 2 if last.parsed else 1)
        return np.array(found, dtype=int)
