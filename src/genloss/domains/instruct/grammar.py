"""The language of the small world: who there is, what is true, how it is asked and how it is told, exact in both
directions.

    grammar = Grammar(); grammar.request("what is the colour of mavo? one word.").cell  # ('bird', 'word', 'plain', 1)
    grammar.recalled("- kind of mavo: bird ...")             # the request that this answers

Facts are a function of the fields."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from genloss.core.errors import one_of, require
from genloss.core.seeds import generator

KINDS = ("bird", "boat", "town", "tool", "plant", "stone", "song", "game")
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "colour": ("red", "blue", "green", "black", "white", "brown", "grey", "gold"),
    "size": ("tiny", "small", "large", "huge"),
    "age": ("new", "young", "old", "ancient"),
}
RELATIONS = ("friend", "rival", "guide")
OWN = ("kind", *ATTRIBUTES)  # what a portrait tells
WHAT = (*OWN, *RELATIONS)
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

QUERY = re.compile(r"(?:a portrait of|((?:the [a-z]+ of )+))(?: ?)([a-z]+)")
FACT = re.compile(r"the ([a-z]+) of ([a-z]+) is ([a-z]+)\.|([a-z]+) has the ([a-z]+) ([a-z]+)\.")
ITEM = re.compile(r"- ([a-z]+) of ([a-z]+): ([a-z]+)")

Cell = tuple[str, str, str, int]  # topic, format, register, steps


def legal(name: str, steps: int) -> bool:
    """Whether a request of these steps can have this format: a portrait is no word."""
    return steps > 0 or name != "word"


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
    request: Request | None  # None: none that the grammar has, or a turn of another skill than to answer
    reply: Reply | None
    right: bool
    parsed: bool  # whether what the assistant says has the form that its kind of turn has
    skill: str  # genloss.domains.instruct.skills


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
        return self.alternates and all(turn.parsed for turn in self.turns)

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
class Grammar:
    topics: int = 4  # kinds of entities
    entities: int = 10  # of each
    steps: list[float] = field(default_factory=lambda: [0.1, 0.5, 0.3, 0.1])  # shares of portraits and of 1 to 3 steps
    about: list[str] = field(default_factory=list)  # topics of what is asked; none: all. The facts are those of all
    seed: int = 0  # of the facts and the records

    def __post_init__(self) -> None:
        require(1 <= self.topics <= len(KINDS), "topics", self.topics, f"from 1 to {len(KINDS)}")
        require(3 <= self.entities <= 100, "entities", self.entities, "from 3 to 100 of each kind")
        for name in self.about:
            one_of("about", name, KINDS[: self.topics])
        good = len(self.steps) == len(STEPS) and min(self.steps) >= 0 and sum(self.steps) > 0
        require(good, "steps", self.steps, f"{len(STEPS)} shares: of portraits, and of one, two and three steps")

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

    @property
    def subjects(self) -> tuple[str, ...]:
        """The topics of what is asked."""
        return tuple(kind for kind in self.kinds if kind in self.about) if self.about else tuple(self.kinds)

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
        for topic, register, (steps, share) in itertools.product(self.subjects, REGISTERS, enumerate(self.steps)):
            for name in (forms := FORMATS if steps else FORMATS[1:]):
                found[topic, name, register, steps] = (
                    share / sum(self.steps) / len(self.subjects) / len(REGISTERS) / len(forms)
                )
        return {cell: p for cell, p in found.items() if p > 0}

    # -- writing -------------------------------------------------------------------------------------------------------

    def _asked(self, draws: Draws, steps: int, manner: str, way: str, before: Request | None) -> tuple[str, Request]:
        """A request in words, and as what it means."""
        name = way or draws.among(FORMATS if steps else FORMATS[1:])
        tone = draws.among(REGISTERS)
        topic = before.topic if before else draws.among(self.subjects)
        it = before is not None and draws.chance(FOLLOWS)
        subject = before.subject if it and before else draws.among(self.kinds[topic])
        path = tuple(draws.among(RELATIONS) for _ in range(steps - 1))
        path += (draws.among(WHAT),) if steps else ()
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
        return self.worded(request.format, request.register, self.walk(request), second)

    @staticmethod
    def worded(name: str, register: str, facts: Sequence[Fact], second: Sequence[bool] = ()) -> str:
        """Facts in a format and a register; in a word the value of the last."""
        forms = second or [False] * len(facts)
        if name == "word":
            body = facts[-1].value
        elif name == "list":
            body = "\n".join(f"- {what} of {who}: {value}" for who, what, value in facts)
        else:
            body = " ".join(
                f"{who} has the {what} {value}." if other else f"the {what} of {who} is {value}."
                for (who, what, value), other in zip(facts, forms, strict=True)
            )
        space = "\n" if name == "list" else " "
        parts = (BEFORE.get(register, ""), body, AFTER.get(register, ""))
        return space.join(part for part in parts if part)

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
        return self._asking(subject, path, name, register)

    def _asking(self, subject: str, path: tuple[str, ...], name: str, register: str) -> Request | None:
        ends = all(what in RELATIONS for what in path[:-1]) and (not path or path[-1] in WHAT)
        if (subject, "kind") not in self.facts or not ends or len(path) not in STEPS or not legal(name, len(path)):
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

    def recalled(self, text: str) -> Request | None:
        """The one request that sentences or a list answer; None where they answer none. Nobody can tell what a word
        answers."""
        reply = self.read_reply(text)
        if reply is None or not reply.facts:
            return None
        path = () if len(reply.facts) == len(OWN) else tuple(fact.name for fact in reply.facts)
        request = self._asking(reply.facts[0].entity, path, reply.format, reply.register)
        return request if self.answers(request, reply) else None

    def read_document(self, text: str) -> Request | None:
        """What a document is the answer to: the portrait of an entity; None: it is noise."""
        request = self.recalled(text)
        return request if request and not request.path else None
