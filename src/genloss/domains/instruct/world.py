"""A small closed world that people ask about, in a language of which everything is known.

    genloss run domain=instruct                                       # this corpus
    world = World(); world.read(messages).cell                        # ('bird', 'list', 'formal', 2)
    document = next(world.documents(seed=0)); document.noise          # '' or what is wrong with it

Each entity has a kind, which is its topic, a colour, a size and an age, and a friend, a rival and a guide of its own
kind. A request asks for a value at the end of a path of one to three steps ("the colour of the friend of mavo"), or for
a portrait, in a format (a word, sentences, a list) and in a register (plain, formal, casual), which the answer has to
take up; a system prompt may set either. Sentences and lists name every step; a word does not, so that a path of three
steps in a word is hard. In a dialogue later requests may say `it` for the entity of the one before.

Grammar and facts are exact in both directions: `read` gives the attributes of any text or says that it has none, and
whether an answer is right. So the law of requests is known (`law`), and with it the coverage and the divergence of what
a model makes up, and of documents what a selector has to find.

Everything is a function of the fields and of a seed; record i depends on its own random numbers alone."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from genloss.core.contracts import Checked
from genloss.core.errors import require
from genloss.core.seeds import generator, seed_of, uniforms
from genloss.domains.instruct.chats import Chats, Checks, Messages
from genloss.language.chat import ASSISTANT, SYSTEM, USER, wrong

KINDS = ("bird", "boat", "town", "tool", "plant", "stone", "song", "game")
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "colour": ("red", "blue", "green", "black", "white", "brown", "grey", "gold"),
    "size": ("tiny", "small", "large", "huge"),
    "age": ("new", "young", "old", "ancient"),
}
RELATIONS = ("friend", "rival", "guide")
OWN = ("kind", *ATTRIBUTES)  # what a portrait tells
FORMATS = ("word", "sentence", "list")
REGISTERS = ("plain", "formal", "casual")
STEPS = (0, 1, 2, 3)  # 0: a portrait
ASKED = {"word": " one word.", "sentence": " in a sentence.", "list": " as a list."}  # ends a request
OPENERS: Mapping[str, tuple[tuple[str, str], ...]] = {  # what stands around what is asked
    "plain": (("what is ", "?"), ("tell me ", ".")),
    "formal": (("please state ", ", if you would."), ("could you kindly give ", "?")),
    "casual": (("hey, ", "?"), ("yo, quick: ", "!")),
}
BEFORE, AFTER = {"formal": "certainly."}, {"casual": "cheers!"}  # an answer
MANNERS = {register: f"be {register}." for register in REGISTERS}  # of a system prompt
WAYS = {name: f"answer{words}" for name, words in ASKED.items()}
IT = "it"  # the entity of the request before
SECOND = 0.3  # of the sentences have their second form
FOLLOWS = 0.7  # of later requests say `it`
NOISE = ("menu", "advert", "cut", "false", "mixed")  # what a document of the web may have
JUNK = {
    "menu": ("home | news | about", "search | login | help", "next | back | top"),
    "advert": ("click here to win!", "buy two, pay one!", "sign up today!"),
}
CHUNK, DRAWS = 1024, 64  # records that are drawn together, and the random numbers of each

QUERY = re.compile(r"(?:a portrait of|((?:the [a-z]+ of )+))(?: ?)([a-z]+)")
FACT = re.compile(r"the ([a-z]+) of ([a-z]+) is ([a-z]+)\.|([a-z]+) has the ([a-z]+) ([a-z]+)\.")
ITEM = re.compile(r"- ([a-z]+) of ([a-z]+): ([a-z]+)")

Cell = tuple[str, str, str, int]  # topic, format, register, steps


class Fact(NamedTuple):
    entity: str
    name: str
    value: str


@dataclass(frozen=True)
class Request:
    """What is asked, a system prompt and what went before applied."""

    subject: str
    path: tuple[str, ...]  # from the end to the subject's own, as it is walked; (): a portrait
    format: str
    register: str
    topic: str

    @property
    def steps(self) -> int:
        return len(self.path)

    @property
    def cell(self) -> Cell:
        return self.topic, self.format, self.register, self.steps


class Reply(NamedTuple):
    """An answer, or a document, as it reads."""

    format: str
    register: str
    facts: tuple[Fact, ...]  # of a word: none
    value: str  # of a word


class Turn(NamedTuple):
    request: Request | None  # None: none that the grammar has
    reply: Reply | None
    right: bool


@dataclass(frozen=True)
class Reading:
    """The attributes of a conversation."""

    turns: tuple[Turn, ...]
    why: str  # it is no conversation: turns that do not alternate, say; '' if it is one

    @property
    def alternates(self) -> bool:
        return not self.why

    @property
    def right(self) -> bool:
        return self.alternates and all(turn.right for turn in self.turns)

    @property
    def parsed(self) -> bool:
        return self.alternates and all(turn.reply is not None for turn in self.turns)

    @property
    def on_topic(self) -> bool:
        """Whether all requests are of one topic, and there are some."""
        topics = {turn.request.topic if turn.request else None for turn in self.turns}
        return len(topics) == 1 and None not in topics

    @property
    def consistent(self) -> bool:
        """Whether no two answers say different things of an entity, true or not."""
        facts = {fact for turn in self.turns if turn.reply for fact in turn.reply.facts}
        return len({fact[:2] for fact in facts}) == len(facts)

    @property
    def cell(self) -> Cell | None:
        """Of the first request."""
        return self.turns[0].request.cell if self.turns and self.turns[0].request else None


class Document(NamedTuple):
    """A text and its hidden attributes. `instruction` asks for it; of noise there is none."""

    text: str
    noise: str
    instruction: str
    request: Request | None


class Draws:
    """Choices by the random numbers of one record."""

    def __init__(self, numbers: np.ndarray):
        self._numbers = iter(numbers.tolist())

    def chance(self, p: float) -> bool:
        return next(self._numbers) < p

    def among(self, values: Sequence[Any], shares: Sequence[float] = ()) -> Any:
        u = next(self._numbers)
        if not shares:
            return values[int(u * len(values))]
        edges = list(itertools.accumulate(shares))
        return next(v for v, edge in zip(values, edges, strict=True) if u * edges[-1] < edge)


@dataclass
class World(Chats, Checks):
    topics: int = 4  # kinds of entities
    entities: int = 10  # of each
    steps: list[float] = field(default_factory=lambda: [0.1, 0.5, 0.3, 0.1])  # shares of portraits and of 1 to 3 steps
    systems: float = 0.2  # share of conversations with a system prompt
    dialogues: float = 0.2  # share of conversations with two or three requests
    noise: float = 0.3  # share of documents that are none
    seed: int = 0  # of the facts and the records
    endless = True

    def __post_init__(self) -> None:
        require(1 <= self.topics <= len(KINDS), "topics", self.topics, f"from 1 to {len(KINDS)}")
        require(3 <= self.entities <= 100, "entities", self.entities, "from 3 to 100 of each kind")
        good = len(self.steps) == len(STEPS) and min(self.steps) >= 0 and sum(self.steps) > 0
        require(good, "steps", self.steps, f"{len(STEPS)} shares: of portraits, and of one, two and three steps")
        for key in ("systems", "dialogues", "noise"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "a share in [0, 1]")

    # -- what is true --------------------------------------------------------------------------------------------------

    @cached_property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """The entities of each topic."""
        syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
        words = {w for group in (KINDS, OWN, RELATIONS, *ATTRIBUTES.values()) for w in group} | {IT}
        names = [a + b for a in syllables for b in syllables if a != b and a + b not in words]
        order = generator(self.seed, "world", "names").permutation(len(names))
        chosen = [names[i] for i in order[: self.topics * self.entities]]
        return {
            kind: tuple(chosen[i * self.entities : (i + 1) * self.entities])
            for i, kind in enumerate(KINDS[: self.topics])
        }

    @cached_property
    def facts(self) -> dict[tuple[str, str], str]:
        """(entity, what) to its value."""
        found = {}
        for kind, names in self.kinds.items():
            for i, name in enumerate(names):
                rng = generator(self.seed, "world", "facts", name)
                found[name, "kind"] = kind
                for what, values in ATTRIBUTES.items():
                    found[name, what] = values[int(rng.integers(len(values)))]
                for what in RELATIONS:
                    found[name, what] = names[(i + 1 + int(rng.integers(len(names) - 1))) % len(names)]
        return found

    def walk(self, request: Request) -> tuple[Fact, ...]:
        """The facts that answer a request, in their order."""
        if not request.path:
            return tuple(Fact(request.subject, what, self.facts[request.subject, what]) for what in OWN)
        found, at = [], request.subject
        for what in request.path:
            found.append(Fact(at, what, self.facts[at, what]))
            at = found[-1].value
        return tuple(found)

    @cached_property
    def law(self) -> dict[Cell, float]:
        """The probability of each cell: that of the first request of a conversation."""
        found = {}
        for topic, register, (steps, share) in itertools.product(self.kinds, REGISTERS, enumerate(self.steps)):
            for name in (forms := FORMATS if steps else FORMATS[1:]):
                found[topic, name, register, steps] = (
                    share / sum(self.steps) / self.topics / len(REGISTERS) / len(forms)
                )
        return {cell: p for cell, p in found.items() if p > 0}

    # -- writing -------------------------------------------------------------------------------------------------------

    def _drawn(self, seed: int) -> Iterator[Draws]:
        for chunk in itertools.count():
            for row in uniforms(seed, chunk, CHUNK, DRAWS):
                yield Draws(row)

    def conversations(self) -> Iterator[Messages]:
        for draws in self._drawn(seed_of(self.seed, "world", "conversations")):
            yield self._conversation(draws)

    def _conversation(self, draws: Draws) -> Messages:
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

    def _asked(self, draws: Draws, steps: int, manner: str, way: str, before: Request | None) -> tuple[str, Request]:
        """A request in words, and as what it means."""
        name = way or draws.among(FORMATS if steps else FORMATS[1:])
        tone = draws.among(REGISTERS)
        topic = before.topic if before else draws.among(tuple(self.kinds))
        it = before is not None and draws.chance(FOLLOWS)
        subject = before.subject if it and before else draws.among(self.kinds[topic])
        path = tuple(draws.among(RELATIONS) for _ in range(steps - 1))
        path += (draws.among((*OWN, *RELATIONS)),) if steps else ()
        request = Request(subject, path, name, manner or tone, topic)
        return self.asked(request, IT if it else subject, tone, "" if way else name, draws.among((0, 1))), request

    @staticmethod
    def asked(request: Request, subject: str, tone: str, name: str, which: int = 0) -> str:
        """A request in words: subject, or `it`, in a tone; name: the format to ask for, or ''."""
        first, last = OPENERS[tone][which]
        query = "".join(f"the {what} of " for what in reversed(request.path)) or "a portrait of "
        return f"{first}{query}{subject}{last}{ASKED.get(name, '')}"

    def reply(self, request: Request, second: Sequence[bool] = ()) -> str:
        """A right answer. second: which sentences have their second form."""
        facts = self.walk(request)
        forms = second or [False] * len(facts)
        if request.format == "word":
            body = facts[-1].value
        elif request.format == "list":
            body = "\n".join(f"- {what} of {who}: {value}" for who, what, value in facts)
        else:
            body = " ".join(
                f"{who} has the {what} {value}." if other else f"the {what} of {who} is {value}."
                for (who, what, value), other in zip(facts, forms, strict=True)
            )
        space = "\n" if request.format == "list" else " "
        parts = (BEFORE.get(request.register, ""), body, AFTER.get(request.register, ""))
        return space.join(part for part in parts if part)

    def web(self, seed: int) -> Iterator[Document]:
        """Documents without their instructions: portraits, and a share of noise."""
        for draws in self._drawn(seed_of(self.seed, "world", "web", seed)):
            topic = draws.among(tuple(self.kinds))
            subject, name, register = draws.among(self.kinds[topic]), draws.among(FORMATS[1:]), draws.among(REGISTERS)
            request = Request(subject, (), name, register, topic)
            text = self.reply(request, [draws.chance(SECOND) for _ in OWN])
            if draws.chance(self.noise):
                kind = draws.among(NOISE)
                yield Document(self._spoilt(draws, kind, request, text), kind, "", None)
            else:
                yield Document(text, "", self.asked(request, subject, register, name, draws.among((0, 1))), request)

    def _spoilt(self, draws: Draws, kind: str, request: Request, text: str) -> str:
        if kind in JUNK:
            junk = draws.among(JUNK[kind])
            return f"{junk}\n{text}" if draws.chance(0.5) else f"{text}\n{junk}"
        if kind == "cut":
            words = text.split(" ")
            return " ".join(words[: draws.among(range(1, len(words) - 1))])  # without two: the last may be a courtesy
        if kind == "false":
            what = draws.among(tuple(ATTRIBUTES))
            value = self.facts[request.subject, what]
            other = draws.among([v for v in ATTRIBUTES[what] if v != value])
            return re.sub(rf"\b{value}\b", other, text)
        other = draws.among([name for names in self.kinds.values() for name in names if name != request.subject])
        half = Request(other, (), request.format, request.register, self.facts[other, "kind"])
        return f"{text}\n{self.reply(half)}"

    # -- reading -------------------------------------------------------------------------------------------------------

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
            before = self.request(question["content"], manner, way, before)
            reply = self.read_reply(answer["content"])
            turns.append(Turn(before, reply, self.answers(before, reply)))
        return Reading(tuple(turns), "")

    @staticmethod
    def _manners(said: str) -> tuple[str, str]:
        """(register, format) that a system prompt sets; '' where it sets none."""
        manner = next((name for name, words in MANNERS.items() if said.startswith(words)), "")
        way = next((name for name, words in WAYS.items() if said.endswith(words)), "")
        return manner, way

    def request(self, said: str, manner: str = "", way: str = "", before: Request | None = None) -> Request | None:
        """What a request means; None where it is none of this language, or is about nobody."""
        name = next((name for name, words in ASKED.items() if said.endswith(words)), "")
        body = said.removesuffix(ASKED[name]) if name else said
        for tone, openers in OPENERS.items():
            for first, last in openers:
                if body.startswith(first) and body.endswith(last) and (name or way):
                    query = body[len(first) : len(body) - len(last)]
                    return self._query(query, name or way, manner or tone, before)
        return None

    def _query(self, query: str, name: str, register: str, before: Request | None) -> Request | None:
        match = QUERY.fullmatch(query)
        if match is None:
            return None
        path = tuple(reversed((match[1] or "").split()[1::3]))
        subject = before.subject if match[2] == IT and before else match[2]
        ends = all(what in RELATIONS for what in path[:-1]) and (not path or path[-1] in (*OWN, *RELATIONS))
        if (subject, "kind") not in self.facts or not ends or len(path) >= len(STEPS) or (not path and name == "word"):
            return None
        return Request(subject, path, name, register, self.facts[subject, "kind"])

    @staticmethod
    def read_reply(said: str) -> Reply | None:
        """An answer as it reads, true or not; None where it is none of this language."""
        body, register = said, "plain"
        for name, mark in BEFORE.items():
            if body.startswith(mark) and body[len(mark) : len(mark) + 1] in (" ", "\n"):
                body, register = body[len(mark) + 1 :], name
        for name, mark in AFTER.items():
            if register == "plain" and body.endswith(mark) and body[-len(mark) - 1 : -len(mark)] in (" ", "\n"):
                body, register = body[: -len(mark) - 1], name
        if body.isalpha():
            return Reply("word", register, (), body)
        if body.startswith("- "):
            items = [ITEM.fullmatch(line) for line in body.split("\n")]
            facts = tuple(Fact(m[2], m[1], m[3]) for m in items if m)
            return Reply("list", register, facts, "") if len(facts) == len(items) else None
        found = list(FACT.finditer(body))
        if not found or " ".join(m[0] for m in found) != body:
            return None
        said_so = (Fact(m[2], m[1], m[3]) if m[1] else Fact(m[4], m[5], m[6]) for m in found)
        return Reply("sentence", register, tuple(said_so), "")

    def answers(self, request: Request | None, reply: Reply | None) -> bool:
        """Whether a reply is a right one."""
        if request is None or reply is None:
            return False
        if (reply.format, reply.register) != (request.format, request.register):
            return False
        wanted = self.walk(request)
        if request.format == "word":
            return reply.value == wanted[-1].value
        if not request.path:  # a portrait has no order
            return len(reply.facts) == len(wanted) and set(reply.facts) == set(wanted)
        return reply.facts == wanted

    def read_document(self, text: str) -> Request | None:
        """What a document is the answer to: the portrait of an entity; None: it is noise."""
        reply = self.read_reply(text)
        if reply is None or not reply.facts or (reply.facts[0].entity, "kind") not in self.facts:
            return None
        subject = reply.facts[0].entity
        request = Request(subject, (), reply.format, reply.register, self.facts[subject, "kind"])
        return request if self.answers(request, reply) else None

    def verify(self, conversations: list[Messages]) -> Checked:
        found = [self.read(messages) for messages in conversations]
        right, parsed = ([getattr(each, what) for each in found] for what in ("right", "parsed"))
        return Checked(np.array(right, dtype=bool), np.array(parsed, dtype=bool))
