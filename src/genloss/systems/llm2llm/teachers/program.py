"""The teacher that cannot err unless it is told to: the program that made the problem makes another one like it.

genloss run domain=reasoning recipe=llm2llm recipe.teacher.noise=0.5
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from genloss.core.contracts import Experiment
from genloss.core.errors import UserError, require
from genloss.core.seeds import generator, seed_of
from genloss.domains.reasoning.tasks import Problem
from genloss.generate import Request
from genloss.systems.llm2llm.subjects import subject_of
from genloss.systems.llm2llm.teachers import Ask, Teacher


@dataclass
class Program(Teacher):
    """The same family and difficulty (of arithmetic: the same shape and operators, other numbers; of the world: the
    same topic, format, register and steps, about another entity or along another path). With probability `noise` the
    response to learn is a plausible wrong one; a record's `answer`, if it has one, stays exact, so that the share is
    measured."""

    noise: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.noise <= 1, "noise", self.noise, "a probability in [0, 1]")

    def check(self, experiment: Experiment) -> None:
        if why := subject_of(experiment.domain).program():
            raise UserError("_target_", "Program", why)

    def teach(self, asks: list[Ask], request: Request) -> Iterator[tuple[int, list[Problem | str]]]:
        subject = subject_of(request.domain)
        for i, ask in enumerate(asks):
            seed = seed_of(request.seed, "teacher", ask.number, ask.attempt)
            made = subject.like(ask.task, ask.parent, seed, ask.n)
            errs = generator(seed, "noise").random(len(made)) < self.noise
            for j in errs.nonzero()[0]:
                made[j] = made[j]._replace(solution=subject.wrong(ask.task, made[j], seed_of(seed, "wrong", int(j))))
            yield i, list(made)
