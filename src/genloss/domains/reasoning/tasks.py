"""Task families: problems with exact answers, as many as asked for, and what makes a response right.

    chain_sum:                                             # conf/domain/tasks/chain_sum.yaml
      _target_: genloss.domains.reasoning.tasks.Gym
      family: chain_sum                                    # any of the hundred families of reasoning-gym
      parameters: {min_terms: 2, max_terms: 2}

A family is a dataclass derived from `Task`; its name in the config is its name in the records and the metrics.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from genloss.core.contracts import Checked, Experiment, Plugin
from genloss.core.errors import UserError, nearest, one_line, one_of, require
from genloss.core.records import normal
from genloss.core.seeds import generator, seed_of
from genloss.domains.reasoning import checks

BLOCK = 1000  # problems that are made together
PATIENCE = 20  # blocks, or problems for each one that is asked for, in search of one like another
TRIED = 60  # problems whose exact answers a comparison must find right
WRONG = 20  # problems among which one with another answer is looked for
COMPARE = ("integer", "text", "expression", "scorer")
# Families whose own scorer was read and neither evaluates the response nor looks at anything but the answer; any family
# that inherits the library's plain comparison is safe as well. Others call eval() on the response (reasoning-gym
# 0.1.25).
SCORERS = ("chain_sum", "products")


class Problem(NamedTuple):
    prompt: str
    answer: str
    difficulty: str
    solution: str = ""  # worked, ending in the answer; empty: the answer alone is the response


class Task(Plugin, ABC):
    """One family of problems. `share` is its share of every split, relative to the others'."""

    share: float

    @abstractmethod
    def problems(self, seed: int) -> list[Problem]:
        """BLOCK problems that depend on `seed` alone; two may be the same."""

    def key(self, problem: Problem) -> str:
        """What no two problems of a run share, within a split or between splits."""
        return problem.prompt

    @abstractmethod
    def verify(self, responses: Any, answers: Any) -> Checked:
        """Which of n responses are right."""

    # -- what a teacher asks of a family (genloss.systems.llm2llm.teachers) --------------------------------------------

    def like(self, parent: Problem, seed: int, n: int) -> list[Problem]:
        """At most n problems like `parent`: the next ones of its difficulty. Two may be the same, or the parent
        itself."""
        found: list[Problem] = []
        for block in range(PATIENCE):
            found += [p for p in self.problems(seed_of(seed, "like", block)) if p.difficulty == parent.difficulty]
            if len(found) >= n:
                break
        return found[:n]

    def wrong(self, problem: Problem, seed: int) -> str:
        """A plausible wrong response: the answer to another problem like this one; "?" if all of them have the same."""
        others = [p for p in self.like(problem, seed, WRONG) if p.answer != problem.answer]
        right = self.verify(
            pa.array([p.answer for p in others], pa.string()), pa.array([problem.answer] * len(others))
        ).right
        return next((p.answer for p, same in zip(others, right, strict=True) if not same), "?")

    def final(self, response: str) -> str:
        """The answer that a response gives: what its worked solution ends in."""
        return response.strip()

    def solve(self, prompt: str) -> str | None:
        """The exact answer to a problem that someone else wrote; None if it is none of this family, or cannot be
        told."""
        return None


def distinct(
    task: Task, seen: set[str], seed_of_block: Callable[[int], int], key: Callable[[Problem], str] | None = None
) -> Iterator[Problem]:
    """Problems in their order, none with a key (of the task, unless another one is given) that was `seen` before; it
    ends when PATIENCE blocks in turn have brought nothing new."""
    key = key or task.key
    block = idle = 0
    while idle < PATIENCE:
        idle += 1
        for problem in task.problems(seed_of_block(block)):
            known = normal(key(problem))
            if known not in seen:
                seen.add(known)
                idle = 0
                yield problem
        block += 1


@dataclass
class Gym(Task):
    """A family of reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760), with its own text and parameters."""

    family: str = "chain_sum"
    parameters: dict[str, Any] = field(default_factory=dict)
    compare: str = "integer"  # integer, text, expression (math-verify), scorer (the family's own, where it is safe)
    share: float = 1.0

    def __post_init__(self) -> None:
        one_of("compare", self.compare, COMPARE)
        require(self.share > 0, "share", self.share, "greater than 0")
        for key in ("seed", "size"):
            require(key not in self.parameters, f"parameters.{key}", self.parameters.get(key), "absent: it is set here")

    def check(self, experiment: Experiment) -> None:
        if self.compare == "scorer" and not self.has_safe_scorer():
            wrong = f"is not for {self.family}: its scorer was not found safe for text that a model wrote"
            raise UserError("compare", "scorer", f"{wrong}; {self._fitting()}")
        if unfit := self.unfit():
            counted = f"{len(unfit)} of {TRIED} exact answers would be wrong, such as {unfit[0][:40]!r}"
            raise UserError("compare", self.compare, f"does not fit {self.family}: {counted}; {self._fitting()}")

    def has_safe_scorer(self) -> bool:
        from reasoning_gym.dataset import ProceduralDataset

        return self.family in SCORERS or type(self._dataset(0, 1)).score_answer is ProceduralDataset.score_answer

    def unfit(self, compare: str | None = None) -> list[str]:
        """Of the exact answers to TRIED problems those that this comparison (or another) does not find right: a model
        could never be right there."""
        return list(_unfit(self.family, json.dumps(self.parameters, sort_keys=True), compare or self.compare))

    def _fitting(self) -> str:
        fitting = self.fitting()
        known = f"choose compare={' or '.join(fitting)}" if fitting else "no comparison does, choose another family"
        return f"{known} (docs/families.md)"

    def fitting(self) -> list[str]:
        """The comparisons that find all exact answers right and are safe."""
        usable = {"scorer": self.has_safe_scorer(), "expression": find_spec("math_verify") is not None}
        return [c for c in COMPARE if usable.get(c, True) and not self.unfit(c)]

    def _dataset(self, seed: int, size: int) -> Any:
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ModuleNotFoundError:
            raise UserError("family", self.family, "needs reasoning-gym; pip install reasoning-gym") from None
        if self.family not in DATASETS:
            raise UserError("family", self.family, f"unknown; {nearest(self.family, DATASETS)}")
        try:
            return reasoning_gym.create_dataset(self.family, seed=seed, size=size, **self.parameters)
        except (AssertionError, TypeError, ValueError) as error:
            raise UserError("parameters", self.parameters, f"refused by {self.family} ({error})") from None

    def _made(self, seed: int, n: int) -> list[Problem]:
        made = self._dataset(seed % 2**31, n)
        return [self._problem(self._entry(made, i)) for i in range(n)]

    def _entry(self, made: Any, i: int) -> dict[str, Any]:
        try:
            return made[i]
        except Exception as error:  # of many kinds: what a family's own code raises for parameters that it took
            words = one_line(error)
            why = f"cannot make problem {i} with these parameters ({type(error).__name__}: {words[:80]})"
            raise UserError("family", self.family, why) from None

    def problems(self, seed: int) -> list[Problem]:
        return self._made(seed, BLOCK)

    def like(self, parent: Problem, seed: int, n: int) -> list[Problem]:
        tries = PATIENCE * n
        made = self._dataset(seed % 2**31, tries)  # makes a problem when it is asked for it
        each = (self._problem(self._entry(made, i)) for i in range(tries))
        return list(islice((p for p in each if p.difficulty == parent.difficulty), n))

    @staticmethod
    def _problem(entry: dict[str, Any]) -> Problem:
        known = entry.get("metadata", {})
        levels = known.get("difficulty", {})
        if not isinstance(levels, Mapping):  # gsm_symbolic has a number
            levels = {"difficulty": levels}
        named = {k: known[k] for k in levels if isinstance(known.get(k), (int, float, str))}
        answer = "" if entry["answer"] is None else str(entry["answer"])  # some families leave it to their scorer
        return Problem(entry["question"], answer, " ".join(f"{k}={v}" for k, v in named.items()))

    def verify(self, responses: Any, answers: Any) -> Checked:
        if self.compare == "scorer":
            score = self._dataset(0, 1).score_answer
            said, truth = (v.to_pylist() for v in (responses, answers))
            parsed = np.array([bool(s and s.strip()) and len(s) <= checks.LONGEST for s in said], dtype=bool)
            right = [
                ok and score(s.strip(), {"answer": t}) == 1.0 for s, t, ok in zip(said, truth, parsed, strict=True)
            ]
            return Checked(np.array(right, dtype=bool), parsed)
        compared = {"integer": checks.integers, "text": checks.texts, "expression": checks.expressions}[self.compare]
        return compared(responses, answers)


@cache
def _gold(family: str, parameters: str) -> tuple[str, ...]:
    """The exact answers to TRIED problems."""
    return tuple(p.answer for p in Gym(family, json.loads(parameters))._made(0, TRIED))


@cache
def _unfit(family: str, parameters: str, compare: str) -> tuple[str, ...]:
    """Gym.unfit, once: every round's config is checked."""
    answers = pa.array(_gold(family, parameters), pa.string())
    right = Gym(family, json.loads(parameters), compare).verify(answers, answers).right
    return tuple(a for a, ok in zip(answers.to_pylist(), right, strict=True) if not ok)


@dataclass
class Eigenvalues(Task):
    """Eigenvalues of symmetric n x n matrices of whole numbers (Charton 2022, arXiv 2112.01898; the task of Feng et al.
    2024, arXiv 2406.07515, with 5 x 5 and entries up to 10). They are rounded to `decimals`, the largest first."""

    sizes: list[int] = field(default_factory=lambda: [2])
    entries: int = 5  # uniform in [-entries, entries]
    decimals: int = 1
    tolerance: float = 0.05  # right if sum |error| / sum |true| is less
    share: float = 1.0

    def __post_init__(self) -> None:
        require(len(self.sizes) > 0, "sizes", self.sizes, "a list of sizes from 2 to 5")
        for n in self.sizes:
            require(2 <= n <= 5, "sizes", n, "from 2 to 5")
        require(1 <= self.entries <= 10_000, "entries", self.entries, "from 1 to 10000")
        require(0 <= self.decimals <= 6, "decimals", self.decimals, "from 0 to 6")
        require(0 < self.tolerance < 1, "tolerance", self.tolerance, "in (0, 1)")
        require(self.share > 0, "share", self.share, "greater than 0")

    def problems(self, seed: int) -> list[Problem]:
        rng = generator(seed, "eigenvalues")
        which = rng.choice(np.array(self.sizes), BLOCK)
        made: list[Problem | None] = [None] * BLOCK
        for n in sorted(set(self.sizes)):
            rows = np.flatnonzero(which == n)
            upper = np.triu(rng.integers(-self.entries, self.entries + 1, (len(rows), n, n)))
            matrices = upper + np.triu(upper, 1).transpose(0, 2, 1)
            # + 0.0: no minus zero
            values = np.linalg.eigvalsh(matrices.astype(float))[:, ::-1].round(self.decimals) + 0.0
            for row, matrix, spectrum in zip(rows, matrices, values, strict=True):
                text = "; ".join(" ".join(map(str, line)) for line in matrix)
                answer = " ".join(f"{v:.{self.decimals}f}" for v in spectrum)
                made[row] = Problem(f"Eigenvalues of [{text}]:", answer, f"size={n}")
        return [p for p in made if p is not None]

    def verify(self, responses: Any, answers: Any) -> Checked:
        return checks.spectra(responses, answers, self.tolerance)
