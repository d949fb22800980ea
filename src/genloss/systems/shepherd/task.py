"""Critiques of worked solutions (Shepherd; Wang et al. 2023, arXiv 2308.04592): is a solution right, and if not, where
and why?

    genloss run experiment=critic                                     # trains a critic
    genloss run experiment=critic domain.tasks.critique.share_right=0 # wrong solutions alone, as Shepherd's data

    "3+4*2:4*2=8|4*2=8;3+8=11|3+8=11?"  ->  "ok"
    "3+4*2:4*2=8|4*2=9;3+8=11|3+9=12?"  ->  "bad 1 arithmetic: 4*2 is 8, not 9"

The critic solves the problem itself first, without a look at the solution; before each step is its own (`reference`).
It so learns two things, to solve and to compare, and both can go wrong. Without the reference, a critic of 0.1 M
parameters sees what is missing, repeated or in the wrong order, but hardly a wrong result: for that it has to know
every sum, from verdicts alone.

Shepherd's critics learn from people's critiques. Here a program injects exactly one error of a known type into a right
solution, and a share of the solutions is left as it is. What comes after the error follows from it, as in a solution
that a model wrote: a wrong result is carried on. The types stand for Shepherd's six:

    arithmetic   a result is wrong                                          arithmetic
    operand      a number is not the one in the problem or a step before    consistency with context
    operator     an operator is not the one in the problem                  veracity
    order        priority or parentheses are ignored                        commonsense: the rule is not in the problem
    omission     a step is missing                                          coherence and deduction
    repetition   a step is there twice                                      redundancy

A right solution is one without an error, not one that ends in the answer: some errors leave the answer right, by
accident or by their nature (a repeated step), and `difficulty` says of each solution which it is. The verdict is one
token and comes first, then the step, which is a digit, so that both have exact probabilities
(genloss.systems.shepherd.curator)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from genloss.core.contracts import Checked
from genloss.core.errors import one_of, require
from genloss.core.seeds import generator
from genloss.domains.reasoning import checks
from genloss.domains.reasoning.arithmetic import (
    Arithmetic,
    Step,
    Tree,
    operations,
    prompt,
    solution,
    steps,
    value,
    write_steps,
)
from genloss.domains.reasoning.tasks import BLOCK, Problem, Task

TYPES = ("arithmetic", "operand", "operator", "order", "omission", "repetition")
NEED_TWO = ("order", "omission")  # types that a solution of one step cannot have
NEAR = 10  # a wrong result is at most this far from the right one
STEPS = 9  # a step's number is one digit, and so one token
ATTEMPTS = 1000  # problems that are tried for one error
CRITIQUE = re.compile(r"bad ([1-9]) ([a-z]{1,20}): ([^\n]{1,60})")


class Said(NamedTuple):
    """A critique: `ok`, or the first wrong step (from 1), the type of its error, and a sentence."""

    ok: bool
    step: int = 0
    kind: str = ""
    sentence: str = ""

    def __str__(self) -> str:
        return "ok" if self.ok else f"bad {self.step} {self.kind}: {self.sentence}"


def read(text: str | None) -> Said | None:
    """What a critic wrote; None if it is no critique."""
    text = (text or "").strip()
    if text == "ok":
        return Said(True)
    match = CRITIQUE.fullmatch(text)
    if match is None or match[2] not in TYPES:
        return None
    return Said(False, int(match[1]), match[2], match[3])


def question(problem: str, solution: str, own: str | None = None) -> str:
    """What a critic is asked: the prompt of a problem, and a response to judge, each step after that of its own
    response (None: it has none)."""
    if own is None:
        return f"{problem}{solution}?"
    pairs = zip_longest(own.split(";"), solution.split(";"), fillvalue="")
    return f"{problem}{';'.join(f'{mine}|{given}' for mine, given in pairs)}?"


def parts(asked: str) -> tuple[str, str]:
    """The problem's prompt and the response to judge, of what a critic is asked."""
    problem, _, rest = asked.partition(":")
    given = [step.rpartition("|")[2] for step in rest.removesuffix("?").split(";")]
    return f"{problem}:", ";".join(given).rstrip(";")


# -- errors ------------------------------------------------------------------------------------------------------------


class Faulty(NamedTuple):
    """A solution with one error, and what a critic should say of it."""

    steps: list[Step]
    said: Said


def inject(kind: str, tree: Tree, rng: np.random.Generator, source: Arithmetic) -> Faulty | None:
    """A solution of `tree` with one error of this kind; None if this draw has none, or breaks the bound on results."""
    right = steps(tree)
    k = int(rng.integers(len(right)))
    found: Faulty | None
    if kind == "arithmetic":
        found = _arithmetic(tree, right, k, rng)
    elif kind == "operand":
        found = _operand(tree, right, k, rng, source.operand)
    elif kind == "operator":
        found = _operator(tree, right, k, rng, source.operators)
    elif kind == "order":
        found = _order(tree, right, rng)
    elif k + 1 < len(right) and right[k] == right[k + 1]:
        return None  # which of two equal steps is missing, or there too often, cannot be said
    elif kind == "omission":
        found = Faulty(right[:k] + right[k + 1 :], Said(False, k + 1, kind, f"{right[k]} is missing"))
    else:
        found = Faulty(right[: k + 1] + right[k:], Said(False, k + 2, kind, f"step {k + 1} again"))
    if found is None or any(abs(n) > source.bound for s in found.steps for n in (s.left, s.right, s.result)):
        return None
    return found


def edit(tree: Tree, k: int, change: Callable[[tuple[str, Tree, Tree]], Tree]) -> Tree:
    """The tree with its operation of step k (from 0) changed."""
    assert not isinstance(tree, int)
    operator, left, right = tree
    first, second = operations(left), operations(right)
    if k < first:
        return (operator, edit(left, k, change), right)
    if k < first + second:
        return (operator, left, edit(right, k - first, change))
    return change(tree)


def _after(tree: Tree, n: int) -> list[Step]:
    """The last n steps."""
    found = steps(tree)
    return found[len(found) - n :]


def _arithmetic(tree: Tree, right: list[Step], k: int, rng: np.random.Generator) -> Faulty:
    true = right[k].result
    wrong = true + int(rng.integers(1, NEAR + 1)) * (1 if rng.random() < 0.5 else -1)
    after = _after(edit(tree, k, lambda _: wrong), len(right) - k - 1)
    left, operator, other, _ = right[k]
    asked = str(right[k]).partition("=")[0]
    said = Said(False, k + 1, "arithmetic", f"{asked} is {true}, not {wrong}")
    return Faulty([*right[:k], Step(left, operator, other, wrong), *after], said)


def _operand(tree: Tree, right: list[Step], k: int, rng: np.random.Generator, operand: int) -> Faulty:
    """One side of step k is another number: of a number in the problem any other, of a result one nearby."""
    side = 1 if rng.random() < 0.5 else 2
    true, wrong = 0, 0

    def change(node: tuple[str, Tree, Tree]) -> Tree:
        nonlocal true, wrong
        child = node[side]
        assert not isinstance(child, str)
        true = value(child)
        if isinstance(child, int):
            wrong = (true + int(rng.integers(1, operand + 1))) % (operand + 1)
        else:
            wrong = true + int(rng.integers(1, NEAR + 1)) * (1 if rng.random() < 0.5 else -1)
        return (node[0], wrong, node[2]) if side == 1 else (node[0], node[1], wrong)

    after = _after(edit(tree, k, change), len(right) - k)
    return Faulty([*right[:k], *after], Said(False, k + 1, "operand", f"read {true}, not {wrong}"))


def _operator(tree: Tree, right: list[Step], k: int, rng: np.random.Generator, operators: str) -> Faulty | None:
    true = right[k].operator
    others = [o for o in operators if o != true]
    if not others:
        return None
    wrong = others[int(rng.integers(len(others)))]
    after = _after(edit(tree, k, lambda node: (wrong, node[1], node[2])), len(right) - k)
    return Faulty([*right[:k], *after], Said(False, k + 1, "operator", f"read {true}, not {wrong}"))


def rotations(tree: Tree) -> list[Tree]:
    """The trees that take one pair of neighbouring operations in the other order, a-b*c as (a-b)*c or a-(b+c) as
    (a-b)+c, where algebra does not allow it."""
    if isinstance(tree, int):
        return []
    operator, left, right = tree
    found: list[Tree] = []
    if not isinstance(right, int) and not _free(operator, right[0]):
        found.append((right[0], (operator, left, right[1]), right[2]))
    if not isinstance(left, int) and not _free(left[0], operator):
        found.append((left[0], left[1], (operator, left[2], right)))
    found += [(operator, other, right) for other in rotations(left)]
    return found + [(operator, left, other) for other in rotations(right)]


def _free(first: str, second: str) -> bool:
    """Whether a first b second c is the same in either order."""
    return (first == "+" and second in "+-") or (first == second == "*")


def _order(tree: Tree, right: list[Step], rng: np.random.Generator) -> Faulty | None:
    trees = rotations(tree)
    if not trees:
        return None
    wrong = steps(trees[int(rng.integers(len(trees)))])
    differ = [i for i, (a, b) in enumerate(zip(right, wrong, strict=True)) if a != b]
    if not differ:
        return None
    k = differ[0]
    asked = str(right[k]).partition("=")[0]
    return Faulty(wrong, Said(False, k + 1, "order", f"{asked} comes first"))


# -- the family --------------------------------------------------------------------------------------------------------


@dataclass
class Critique(Task):
    """Critiques of worked solutions of `genloss.domains.reasoning.arithmetic`.

    A type is drawn (one that `types` has twice is twice as often), then a problem that can have such an error; whether
    the error is made is decided last, so that right and wrong solutions are of the same problems, and neither length
    nor shape of a problem gives a verdict away."""

    operations: list[int] = field(default_factory=lambda: [1, 2, 3])  # as of Arithmetic
    operand: int = 9
    bound: int = 99
    operators: str = "+-*"
    types: list[str] = field(default_factory=lambda: list(TYPES))
    share_right: float = 0.5  # solutions without an error; Shepherd's released critiques have none
    reference: bool = (
        True  # the critic's own solution is before it; it learns that from a family of Arithmetic beside this one
    )
    share: float = 1.0

    def __post_init__(self) -> None:
        self.source = Arithmetic(self.operations, self.operand, self.bound, self.operators, True, self.share)
        for count in self.operations:
            require(count < STEPS, "operations", count, f"less than {STEPS}: a step's number is one digit")
        require(len(self.types) > 0, "types", self.types, f"one or more of {', '.join(TYPES)}")
        for kind in self.types:
            one_of("types", kind, TYPES)
            few = kind in NEED_TWO and max(self.operations) < 2
            require(not few, "operations", self.operations, f"2 or more, since types has {kind}")
            alone = kind in ("operator", "order") and len(set(self.operators)) < 2 and self.operators != "-"
            require(not alone, "operators", self.operators, f"two or more, since types has {kind}")
        require(0 <= self.share_right <= 1, "share_right", self.share_right, "in [0, 1]")

    def problems(self, seed: int) -> list[Problem]:
        rng = generator(seed, "critique")
        right = rng.permutation(BLOCK) < round(self.share_right * BLOCK)
        kinds = rng.choice(np.array(self.types), BLOCK)
        return [self._problem(str(kind), bool(ok), rng) for kind, ok in zip(kinds, right, strict=True)]

    def _problem(self, kind: str, ok: bool, rng: np.random.Generator) -> Problem:
        counts = [n for n in self.operations if n > 1 or kind not in NEED_TWO]
        for _ in range(ATTEMPTS):
            tree = self.source.draw(rng, counts[int(rng.integers(len(counts)))])
            faulty = inject(kind, tree, rng, self.source)
            if faulty is not None:
                break
        else:
            require(False, "types", kind, "possible within operators and bound")
        assert faulty is not None
        said, worked = (Said(True), steps(tree)) if ok else (faulty.said, faulty.steps)
        # the number that the solution ends with, which may be right though the solution is not
        ends = "right" if worked and worked[-1].result == value(tree) else "wrong"
        difficulty = f"operations={operations(tree)} error={'none' if ok else kind} ends={ends}"
        asked = question(prompt(tree), write_steps(worked), solution(tree) if self.reference else None)
        return Problem(asked, str(said), difficulty)

    def key(self, problem: Problem) -> str:
        """The problem that was solved and the verdict: each is there once right and once wrong, at most. Were it the
        prompt, right solutions, of which a problem has one, would run out before wrong ones, and the share of right
        ones would fall."""
        return f"{parts(problem.prompt)[0]} {problem.answer[:2]}"

    def verify(self, responses: Any, answers: Any) -> Checked:
        """By the verdict alone: right where both are ok or both are not."""
        said, true = ([read(text) for text in checks.strings(v).to_pylist()] for v in (responses, answers))
        parsed = np.array([s is not None for s in said], dtype=bool)
        right = [s is not None and t is not None and s.ok == t.ok for s, t in zip(said, true, strict=True)]
        return Checked(np.array(right, dtype=bool), parsed)
