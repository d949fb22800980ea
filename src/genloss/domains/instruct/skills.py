"""Kinds of conversations about the small world beside answers, so that a tiny model learns what large ones can by
pretraining: to propose, to write to a description, to say what was asked, and to rate.

    world = World(skills={"answer": 0.4, "propose": 0.15, "describe": 0.15, "recall": 0.15, "rate": 0.15})
    world.ask_rate("what is the size of mavo? one word.", "red")      # what a user says
    world.grade("what is the size of mavo? one word.", "red")         # 2: what the assistant has to say

| skill | the user says | the assistant says |
|---|---|---|
| `answer` | requests, perhaps with a system prompt | their answers |
| `propose` | `more like these:` and one to four requests | another request, of which the topic, the register, and the
format with the steps are each from one of them |
| `describe` | `a request about a bird: formal, as a list, two steps.` | such a request |
| `recall` | `what was asked?` and an answer that is no word | the request that it answers |
| `rate` | `rate from one to five.`, a request and an answer | the grade, a digit |

All of it is exact in both directions. What the assistant says in `propose` and `describe` is drawn: of the right ones
(`proposal_law`; of a described cell any) the subject and the path are as in the law of requests."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from genloss.core.errors import one_of, require
from genloss.core.seeds import uniforms
from genloss.domains.instruct.grammar import (
    ATTRIBUTES,
    FORMATS,
    JUNK,
    KINDS,
    NOISE,
    OWN,
    REGISTERS,
    RELATIONS,
    SECOND,
    STEPS,
    WHAT,
    Cell,
    Draws,
    Fact,
    Grammar,
    Reply,
    Request,
    legal,
)

ANSWER, PROPOSE, DESCRIBE, RECALL, RATE = SKILLS = ("answer", "propose", "describe", "recall", "rate")
OPENING = {  # what the user says first
    PROPOSE: "more like these:\n",
    DESCRIBE: "a request about a ",
    RECALL: "what was asked?\n",
    RATE: "rate from one to five.\n",
}
SHAPES = {"word": "in one word", "sentence": "in a sentence", "list": "as a list"}  # of a description
LENGTHS = ("a portrait", "one step", "two steps", "three steps")
GRADES = (1, 2, 3, 4, 5)
DEMONSTRATIONS = 4  # at most
LIKE = 64  # random numbers of a request like another
ROOM = 5  # entities of a kind, so that there is another request and a false value that is not on the path
MISSED = 0.3  # of the answers of grades 2 and 3 have also another format or register
SPOILT = tuple(kind for kind in NOISE if kind != "false")  # noise that can leave no answer of the language


@dataclass
class Skills(Grammar):
    # shares of conversations; what is left out has none
    skills: dict[str, float] = field(default_factory=lambda: {name: float(name == ANSWER) for name in SKILLS})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, share in self.skills.items():
            one_of("skills", name, SKILLS)
            require(share >= 0 and math.isfinite(share), f"skills.{name}", share, "a share, at least 0")
        require(any(self.skills.values()), "skills", self.skills, "shares, of which one is not 0")
        if set(self.shares) - {ANSWER}:
            require(self.entities >= ROOM, "entities", self.entities, f"at least {ROOM} of each kind, for these skills")

    @property
    def shares(self) -> dict[str, float]:
        """Of the skills that there are."""
        return {name: share for name, share in self.skills.items() if share > 0}

    # -- what is asked -------------------------------------------------------------------------------------------------

    @staticmethod
    def skill_of(asked: str) -> str:
        """The skill that a user's message calls for."""
        return next((name for name, opening in OPENING.items() if asked.startswith(opening)), ANSWER)

    @staticmethod
    def ask_propose(requests: Sequence[str]) -> str:
        return OPENING[PROPOSE] + "\n".join(requests)

    @staticmethod
    def ask_describe(topic: str, format: str, register: str, steps: int) -> str:
        return f"{OPENING[DESCRIBE]}{topic}: {register}, {SHAPES[format]}, {LENGTHS[steps]}."

    @staticmethod
    def ask_recall(answer: str) -> str:
        return OPENING[RECALL] + answer

    @staticmethod
    def ask_rate(request: str, answer: str) -> str:
        return f"{OPENING[RATE]}{request}\n{answer}"

    def demonstrations(self, asked: str) -> list[Request]:
        """Those of `ask_propose`; none where one of them is no request."""
        found = [self.request(line) for line in asked.removeprefix(OPENING[PROPOSE]).split("\n")]
        known = [request for request in found if request]
        return known if len(known) == len(found) else []

    def described(self, asked: str) -> Cell | None:
        """What `ask_describe` asks for; None where the law has no such requests."""
        return next((cell for cell in self.law if self.ask_describe(*cell) == asked), None)

    # -- what is right -------------------------------------------------------------------------------------------------

    def checked(self, asked: str, said: str) -> tuple[bool, bool]:
        """(right, parsed) of what the assistant says in a turn of another skill than to answer. A proposal is right if
        each of its attributes is one of a demonstration and it asks nothing that one of them asks."""
        skill = self.skill_of(asked)
        if skill == RATE:
            request, _, answer = asked.removeprefix(OPENING[RATE]).partition("\n")
            return said == str(self.grade(request, answer)), said in map(str, GRADES)
        made = self.request(said)
        if made is None:
            return False, False
        if skill == PROPOSE:
            shown = self.demonstrations(asked)
            found = zip(made.cell, zip(*(each.cell for each in shown), strict=True), strict=False)
            return bool(shown) and made not in shown and all(value in values for value, values in found), True
        if skill == DESCRIBE:
            return made.cell == self.described(asked), True
        return made == self.recalled(asked.removeprefix(OPENING[RECALL])), True

    def proposal_law(self, demonstrations: Sequence[Cell]) -> dict[Cell, float]:
        """The probability of each cell of a proposal: topic and register of demonstrations that are drawn uniformly and
        independently; format and steps as well, of those pairs that requests can have."""
        topics, formats, registers, steps = (Counter(values) for values in zip(*demonstrations, strict=True))
        found = {
            (topic, name, register, n): float(topics[topic] * formats[name] * registers[register] * steps[n])
            for topic, name, register, n in itertools.product(topics, formats, registers, steps)
            if legal(name, n)
        }
        total = sum(found.values())
        return {cell: weight / total for cell, weight in found.items()}

    def grade(self, request: str, answer: str) -> int:
        """How good an answer is, of any two texts.

        5: right. 4: it tells what is asked, in another format or register. 3: it tells a part of it: of facts, the
        first is about the subject, and some but not all, or not only they, are asked for; of a word, it is a value on
        the path. 2: it is in the language, and tells nothing of it, or is about another subject, or nothing was asked
        that the language has. 1: it is not in the language (a menu, an advert, what was cut off within a sentence)."""
        return self._grade(self.request(request), self.read_reply(answer))

    def _grade(self, request: Request | None, reply: Reply | None) -> int:
        if reply is None:
            return 1
        if request is None:
            return 2
        if self.answers(request, reply):
            return 5
        wanted = self.walk(request)
        same = replace(request, format=reply.format, register=reply.register)
        if legal(reply.format, request.steps) and self.answers(same, reply):
            return 4
        if reply.format == "word":
            return 3 if reply.value in {fact.value for fact in wanted} else 2
        return 3 if reply.facts[0].entity == request.subject and set(reply.facts) & set(wanted) else 2

    # -- writing -------------------------------------------------------------------------------------------------------

    def turn(self, skill: str, draws: Draws) -> tuple[str, str]:
        """What the user and the assistant say, of a skill other than to answer."""
        if skill == PROPOSE:
            return self._proposal(draws)
        if skill == RATE:
            text, request = self._of_law(draws)
            grade = draws.among(GRADES)
            return self.ask_rate(text, self._answer_of(draws, grade, request)), str(grade)
        text, request = self._of_law(draws, draws.among(FORMATS[1:]) if skill == RECALL else "")
        if skill == DESCRIBE:
            return self.ask_describe(*request.cell), text
        answer = self.reply(request, [draws.chance(SECOND) for _ in self.walk(request)])
        return self.ask_recall(answer), text

    def _of_law(self, draws: Draws, name: str = "") -> tuple[str, Request]:
        """A single request, of this format if there is one. The text names the format in any case."""
        _, request = self._asked(draws, draws.among(STEPS, self.steps), "", name, None)
        return self._text(draws, request), request

    def _text(self, draws: Draws, request: Request) -> str:
        return self.asked(request, request.subject, request.register, request.format, draws.among((0, 1)))

    def _proposal(self, draws: Draws) -> tuple[str, str]:
        shown = [self._of_law(draws) for _ in range(draws.among(range(1, DEMONSTRATIONS + 1)))]
        requests = [request for _, request in shown]
        topic, register = draws.among(requests).topic, draws.among(requests).register
        pairs = [(a.format, b.steps) for a in requests for b in requests if legal(a.format, b.steps)]
        name, steps = draws.among(pairs)
        path = tuple(draws.among(RELATIONS) for _ in range(steps - 1)) + ((draws.among(WHAT),) if steps else ())
        new = [Request(subject, path, name, register, topic) for subject in self.kinds[topic]]
        made = draws.among([request for request in new if request not in requests])
        return self.ask_propose([text for text, _ in shown]), self._text(draws, made)

    def like(self, asked: str, seed: int, n: int) -> list[tuple[str, str]]:
        """n requests of the cell of this one, with right answers: subject and path as in the law; none where it is no
        request."""
        parent = self.request(asked)
        if parent is None:
            return []
        made = []
        for draws in map(Draws, uniforms(seed, 0, n, LIKE)):
            path = tuple(draws.among(RELATIONS) for _ in range(parent.steps - 1))
            path += (draws.among(WHAT),) if parent.steps else ()
            request = replace(parent, subject=draws.among(self.kinds[parent.topic]), path=path)
            text = self._text(draws, request)
            made.append((text, self.reply(request, [draws.chance(SECOND) for _ in self.walk(request)])))
        return made

    def wrong_answer(self, asked: str, seed: int) -> str:
        """An answer of grade 2."""
        request = self.request(asked)
        if request is None:
            raise ValueError(f"{asked!r} is no request of this world")
        return self._answer_of(Draws(uniforms(seed, 0, 1, LIKE)[0]), 2, request)

    def _answer_of(self, draws: Draws, grade: int, request: Request) -> str:
        """An answer of this grade, by a corruption that is drawn among those that there are.

        4: another format or register. 3: a fact more, a part left out, or a false one after which the path goes on; of
        a word, a value on the path. 2: the answer about another of the kind, or what follows from a false first step
        (of a portrait, four false facts); of a word, a false value of its sort. 1: the noise of documents. Of grades 2
        and 3, `MISSED` have another format or register as well; of requests of one step, the words of grade 3 are all
        told as facts, since no word is a part."""
        name, register = request.format, request.register
        facts: Sequence[Fact] = self.walk(request)
        if grade == 4 or (grade in (2, 3) and draws.chance(MISSED)):
            manners = [pair for pair in itertools.product(FORMATS, REGISTERS) if legal(pair[0], request.steps)]
            name, register = draws.among([pair for pair in manners if pair != (name, register)])
        if grade in (2, 3):
            name, facts = (self._partly if grade == 3 else self._wrongly)(draws, request, name)
        text = self.worded(name, register, facts, [draws.chance(SECOND) for _ in facts])
        if grade > 1:
            return text
        kinds = [kind for kind in SPOILT if kind != "cut" or name != "word"]  # a word is not cut
        spoilt = self._spoilt(draws, draws.among(kinds), request, text)
        return spoilt if self.read_reply(spoilt) is None else f"{text}\n{draws.among(JUNK['advert'])}"

    def _partly(self, draws: Draws, request: Request, name: str) -> tuple[str, Sequence[Fact]]:
        """A format, and facts of which some are asked for."""
        wanted = self.walk(request)
        if name == "word":
            parts = [fact for fact in wanted if fact.value != wanted[-1].value]
            if parts:
                return name, (draws.among(parts),)
            name = draws.among(FORMATS[1:])
        kind = draws.among(("more", "short", "false") if len(wanted) > 1 else ("more",))
        if kind == "short":
            return name, wanted[: draws.among(range(1, len(wanted)))]
        if kind == "false":
            at = draws.among(range(1 if request.path else 0, len(wanted)))
            return name, self._astray(draws, request, at)
        told = [fact.name for fact in wanted if fact.entity == request.subject]
        more = draws.among([what for what in WHAT if what not in told])
        return name, (*wanted, Fact(request.subject, more, self.facts[request.subject, more]))

    def _wrongly(self, draws: Draws, request: Request, name: str) -> tuple[str, Sequence[Fact]]:
        """A format, and facts of which none is asked for."""
        wanted = self.walk(request)
        if name == "word":
            known = {fact.value for fact in wanted}
            return name, (Fact("", "", draws.among([v for v in self._sort(wanted[-1]) if v not in known])),)
        other = draws.among([who for who in self.kinds[request.topic] if who != request.subject])
        if draws.chance(0.5):
            if request.path:
                facts = self._astray(draws, request, 0)
            else:
                facts = tuple(self._false(draws, fact) for fact in wanted)
            if not set(facts) & set(wanted):  # the false path may lead back
                return name, facts
        return name, self.walk(replace(request, subject=other))

    def _astray(self, draws: Draws, request: Request, at: int) -> tuple[Fact, ...]:
        """The facts of a request with a false one at a place, after which a path goes on from what that says."""
        facts = self.walk(request)
        false = self._false(draws, facts[at])
        if not request.path:
            return (*facts[:at], false, *facts[at + 1 :])
        rest = request.path[at + 1 :]
        return (*facts[:at], false, *(self.walk(replace(request, subject=false.value, path=rest)) if rest else ()))

    def _false(self, draws: Draws, fact: Fact) -> Fact:
        return fact._replace(value=draws.among([value for value in self._sort(fact) if value != fact.value]))

    def _sort(self, fact: Fact) -> Collection[str]:
        """What the value of such a fact may be."""
        if fact.name in RELATIONS:
            return self.kinds[self.facts[fact.entity, "kind"]]
        return KINDS if fact.name == OWN[0] else ATTRIBUTES[fact.name]
