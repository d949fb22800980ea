"""What is taught: how a domain's problems lie in records, when a student is right, and what another one like it is.

    subject = subject_of(domain)
    subject.right(pool, said)         # bool [n]

Problems with exact answers (domain=reasoning), and requests of conversations (domain=instruct): of the small world,
where each is of a cell and has a right answer; and of any other, where an answer is right if its ROUGE-L to the one
that trains the student is at least `ALIKE`, since nobody can check it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.contracts import Domain
from genloss.curate.novelty import Alphabet, rouge_l
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.domains.instruct.world import World
from genloss.domains.reasoning import Reasoning, held_out
from genloss.domains.reasoning.tasks import Problem
from genloss.language.chat import ASSISTANT, USER
from genloss.language.tokenizer import Codec

ALIKE = 0.5
UNPARSEABLE = "unparseable"
OTHER = "of another kind"


class Subject(ABC):
    columns: ClassVar[tuple[str, ...]]  # of the records

    @abstractmethod
    def usable(self, table: pa.Table) -> pa.Table:
        """The records that are problems."""

    @abstractmethod
    def right(self, table: pa.Table, said: Sequence[str]) -> np.ndarray:
        """bool [n]: which answers are those of the labels that train the student."""

    @abstractmethod
    def problem(self, row: dict[str, Any]) -> tuple[str, Problem]:
        """(family, problem) of a record."""

    @abstractmethod
    def payload(self, made: Sequence[tuple[str, Problem]]) -> dict[str, pa.Array]:
        """The columns of new problems."""

    @abstractmethod
    def asked(self, table: pa.Table) -> list[str]:
        """What is asked in records [n], by which they are compared."""

    @abstractmethod
    def held_out(self, data: Path) -> dict[str, pa.Table]:
        """By split what nothing may be trained on."""

    @abstractmethod
    def tokens(self, problem: Problem, codec: Codec) -> int:
        """Of the record that it becomes."""

    @abstractmethod
    def like(self, task: str, parent: Problem, seed: int, n: int) -> list[Problem]:
        """n new problems like one, at most, with right answers."""

    @abstractmethod
    def wrong(self, task: str, problem: Problem, seed: int) -> str:
        """A plausible wrong response."""

    @abstractmethod
    def read(self, task: str, parent: Problem, prompt: str, response: str) -> Problem | str:
        """The problem that a teacher wrote as text; or, in a word, why it is none."""

    def program(self) -> str:
        """Why `like` cannot be had; '' if it can."""
        return ""


class ExactProblems(Subject):
    """Problems with exact answers."""

    columns = ("prompt", "response", "answer", "task", "difficulty")

    def __init__(self, domain: Reasoning):
        self.domain = domain

    def usable(self, table: pa.Table) -> pa.Table:
        return table

    def right(self, table: pa.Table, said: Sequence[str]) -> np.ndarray:
        tasks, labels = table.column("task").to_pylist(), table.column("response").to_pylist()
        gold = [self.domain.final(task, label) for task, label in zip(tasks, labels, strict=True)]
        return self.domain.verify(pa.table({"task": tasks, "response": list(said), "answer": gold})).right

    def problem(self, row: dict[str, Any]) -> tuple[str, Problem]:
        return row["task"], Problem(row["prompt"], row["answer"], row["difficulty"], row["response"])

    def payload(self, made: Sequence[tuple[str, Problem]]) -> dict[str, pa.Array]:
        rows = [(p.prompt, p.solution or p.answer, p.answer, task, p.difficulty) for task, p in made]
        return {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(self.columns)}

    def asked(self, table: pa.Table) -> list[str]:
        return table.column("prompt").to_pylist()

    def held_out(self, data: Path) -> dict[str, pa.Table]:
        return held_out(data)

    def tokens(self, problem: Problem, codec: Codec) -> int:
        return sum(map(len, codec.encode([problem.prompt, problem.solution or problem.answer]))) + 1

    def like(self, task: str, parent: Problem, seed: int, n: int) -> list[Problem]:
        return self.domain.families[task].like(parent, seed, n)

    def wrong(self, task: str, problem: Problem, seed: int) -> str:
        return self.domain.families[task].wrong(problem, seed)

    def read(self, task: str, parent: Problem, prompt: str, response: str) -> Problem | str:
        family = self.domain.families[task]
        answer = family.solve(prompt)
        if answer is None and family.solve(parent.prompt) is not None:
            return OTHER
        return Problem(prompt, family.final(response) if answer is None else answer, parent.difficulty, response)


class Requests(Subject):
    """Conversations of one request, without a system prompt, and its answer. Other ones train the student, and are not
    taught."""

    columns = ("messages",)

    def __init__(self, domain: Instruct):
        self.domain, self.source = domain, domain.source

    def usable(self, table: pa.Table) -> pa.Table:
        pairs = map(self.source.is_pair, table.column("messages").to_pylist())
        return table.filter(pa.array(pairs, pa.bool_()))

    def right(self, table: pa.Table, said: Sequence[str]) -> np.ndarray:
        if isinstance(self.source, World):
            return self.source.verify(self.domain.answered(table, said).column("messages").to_pylist()).right
        alphabet = Alphabet()
        labels = alphabet.encode(m[-1]["content"] for m in table.column("messages").to_pylist())
        pairs = zip(alphabet.encode(said), labels, strict=True)
        return np.array([rouge_l([a], [b])[0, 0] >= ALIKE for a, b in pairs], dtype=bool)

    def problem(self, row: dict[str, Any]) -> tuple[str, Problem]:
        asked, answer = (message["content"] for message in row["messages"])
        return "", Problem(asked, answer, "", answer)

    def payload(self, made: Sequence[tuple[str, Problem]]) -> dict[str, pa.Array]:
        return {"messages": pa.array([talk(problem) for _, problem in made], MESSAGES)}

    def asked(self, table: pa.Table) -> list[str]:
        return self.domain.texts(table)

    def held_out(self, data: Path) -> dict[str, pa.Table]:
        return {name: records.read(data / f"{name}.parquet", columns=["messages"]) for name in ("validation", "test")}

    def tokens(self, problem: Problem, codec: Codec) -> int:
        return len(codec.rendered(talk(problem)))

    def like(self, task: str, parent: Problem, seed: int, n: int) -> list[Problem]:
        assert isinstance(self.source, World)  # `program` has seen to it
        return [Problem(asked, answer, "", answer) for asked, answer in self.source.like(parent.prompt, seed, n)]

    def wrong(self, task: str, problem: Problem, seed: int) -> str:
        assert isinstance(self.source, World)
        return self.source.wrong_answer(problem.prompt, seed)

    def read(self, task: str, parent: Problem, prompt: str, response: str) -> Problem | str:
        if isinstance(self.source, World) and self.source.request(prompt) is None:
            return OTHER
        return Problem(prompt, response, "", response)

    def program(self) -> str:
        return (
            "" if isinstance(self.source, World) else "writes problems of the world alone; use recipe/teacher=endpoint"
        )


def talk(problem: Problem) -> list[dict[str, str]]:
    return [
        {"role": USER, "content": problem.prompt},
        {"role": ASSISTANT, "content": problem.solution or problem.answer},
    ]


def subject_of(domain: Domain) -> Subject:
    """TypeError for a domain that has none, which `LLM2LLM.check` refuses."""
    if isinstance(domain, Reasoning):
        return ExactProblems(domain)
    if isinstance(domain, Instruct):
        return Requests(domain)
    raise TypeError(f"{type(domain).__name__} has no problems to teach")
