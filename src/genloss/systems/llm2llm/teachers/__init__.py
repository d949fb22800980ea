"""Teachers: who writes new problems like the one that a student missed (genloss.systems.llm2llm.recipe).

    genloss run domain=reasoning recipe=llm2llm                              # program: the family of the problem itself
    genloss run domain=reasoning recipe=llm2llm recipe.teacher.noise=0.2         # whose labels are sometimes wrong
    genloss run domain=instruct recipe=llm2llm                               # of the same cell of the world
    genloss run domain=reasoning recipe=llm2llm recipe/teacher=model recipe.teacher.path=my/model
    genloss run domain=reasoning recipe=llm2llm recipe/teacher=endpoint recipe.teacher.model=gpt-4o-mini

A teacher is one dataclass and one file in conf/recipe/teacher/. It sees a problem and its gold answer, and never what
the student said (Lee et al. 2024, arXiv 2403.15042, section 3). What it writes is data: the recipe checks it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from genloss.core.contracts import Plugin
from genloss.domains.reasoning.tasks import Problem
from genloss.generate import Request
from genloss.systems.llm2llm.subjects import UNPARSEABLE, subject_of

CUT_OFF = "cut off"  # before its end


@dataclass(frozen=True)
class Ask:
    """n new problems like `parent`, other than those that were kept already."""

    number: int  # of the parent in this round
    task: str  # its family
    parent: Problem  # its solution is the gold response
    n: int
    kept: tuple[Problem, ...] = ()
    attempt: int = 0
    asked: int = 0  # problems that it was asked for before, in this round


class Teacher(Plugin, ABC):
    paid: ClassVar[bool] = False  # whether its replies cost something: then what was kept of them survives a kill

    @abstractmethod
    def teach(self, asks: list[Ask], request: Request) -> Iterator[tuple[int, list[Problem | str]]]:
        """(position in `asks`, what it wrote), every ask once, in any order: a problem, whose `answer` is the exact one
        where that is known and whose `solution` is the response to learn; or, in a word, why there is none."""

    def told(self, reason: str) -> None:
        """Why the recipe cannot use a problem, in a word; '' if it can. UserError if too many are of no use."""

    def told_by(self) -> dict[str, Any]:
        """What it was told with, for the results of the round: version and sha256 of a file of prompts."""
        return {}

    def spent(self, request: Request) -> dict[str, float]:
        """What its replies to this round have cost, as counts of the recipe."""
        return {}


def read(prompt: str, response: str, ask: Ask, request: Request) -> Problem | str:
    """The problem that a teacher wrote as text, with the exact answer if the family can tell it."""
    if not prompt or not response:
        return UNPARSEABLE
    try:
        (prompt + response).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return UNPARSEABLE
    return subject_of(request.domain).read(ask.task, ask.parent, prompt, response)
