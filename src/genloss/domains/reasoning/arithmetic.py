"""Arithmetic with worked solutions: expressions of whole numbers, one operation a step, every result small enough to be
learned.

    genloss run domain=reasoning domain/tasks=arithmetic domain.context=48

    "3+4*2:"  ->  "4*2=8;3+8=11"

An expression is a tree: a number, or (operator, left, right). It is read by a parser of its own and computed here: what
a model wrote is never evaluated. Recipes that edit problems, check steps or inject errors work on these trees."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genloss.core.capabilities import able
from genloss.core.contracts import Checked, Experiment
from genloss.core.errors import UserError, require
from genloss.core.seeds import generator
from genloss.domains.reasoning import Reasoning, checks
from genloss.domains.reasoning.tasks import BLOCK, Problem, Task

Tree = int | tuple[str, "Tree", "Tree"]
PRIORITY = {"+": 1, "-": 1, "*": 2}
LONGEST = 200  # characters of a text that is read as an expression, which also bounds the depth of the recursion
ATTEMPTS = 10_000  # draws of one expression
TOKEN = re.compile(r"[0-9]{1,9}|[-+*()]")
STEP = re.compile(r"(-?[0-9]{1,9})([-+*])(-?[0-9]{1,9}|\(-[0-9]{1,9}\))=(-?[0-9]{1,9})")


class Step(NamedTuple):
    """left operator right = result"""

    left: int
    operator: str
    right: int
    result: int

    def __str__(self) -> str:
        right = f"({self.right})" if self.right < 0 else str(self.right)
        return f"{self.left}{self.operator}{right}={self.result}"


# -- trees -------------------------------------------------------------------------------------------------------------


def compute(operator: str, left: int, right: int) -> int:
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def value(tree: Tree) -> int:
    return tree if isinstance(tree, int) else compute(tree[0], value(tree[1]), value(tree[2]))


def operations(tree: Tree) -> int:
    """How many operations a tree has, which is how many steps its solution has: its difficulty."""
    return 0 if isinstance(tree, int) else 1 + operations(tree[1]) + operations(tree[2])


def steps(tree: Tree) -> list[Step]:
    """The worked solution: the innermost operation first, the left one of two."""
    if isinstance(tree, int):
        return []
    operator, left, right = tree
    a, b = value(left), value(right)
    return [*steps(left), *steps(right), Step(a, operator, b, compute(operator, a, b))]


def largest(tree: Tree) -> int:
    """The largest absolute value among all numbers and results."""
    if isinstance(tree, int):
        return abs(tree)
    return max(largest(tree[1]), largest(tree[2]), abs(value(tree)))


# -- text --------------------------------------------------------------------------------------------------------------


def write(tree: Tree) -> str:
    """With as few parentheses as the usual priorities allow."""
    return _write(tree, 0)


def _write(tree: Tree, outer: int) -> str:
    if isinstance(tree, int):
        return str(tree) if tree >= 0 else f"({tree})"
    operator, left, right = tree
    own = PRIORITY[operator]
    # to the right of an operator of the same priority: a-(b-c) keeps its parentheses, and so does a+(b+c), another tree
    text = f"{_write(left, own)}{operator}{_write(right, own + 1)}"
    return f"({text})" if own < outer else text


def read(text: str) -> Tree | None:
    """The tree of an expression; None if it is none."""
    if len(text) > LONGEST:
        return None
    tokens = TOKEN.findall(text)
    if not tokens or "".join(tokens) != text:
        return None
    try:
        tree, rest = _read(tokens, 0, 1)
    except (IndexError, ValueError):
        return None
    return tree if rest == len(tokens) else None


def _read(tokens: list[str], at: int, priority: int) -> tuple[Tree, int]:
    """Precedence climbing from tokens[at]: the tree and where it ends."""
    tree: Tree
    if tokens[at] == "(" and tokens[at + 1] == "-" and tokens[at + 3] == ")":
        tree, at = -int(tokens[at + 2]), at + 4
    elif tokens[at] == "(":
        tree, at = _read(tokens, at + 1, 1)
        if tokens[at] != ")":
            raise ValueError("no closing parenthesis")
        at += 1
    else:
        tree, at = int(tokens[at]), at + 1
    while at < len(tokens) and PRIORITY.get(tokens[at], 0) >= priority:
        operator = tokens[at]
        right, at = _read(tokens, at + 1, PRIORITY[operator] + 1)
        tree = (operator, tree, right)
    return tree, at


def prompt(tree: Tree) -> str:
    return f"{write(tree)}:"


def expression(text: str) -> Tree | None:
    """The tree of a prompt; None if it is no problem of this kind."""
    return read(text[:-1]) if text.endswith(":") else None


def write_steps(said: list[Step]) -> str:
    return ";".join(map(str, said))


def solution(tree: Tree) -> str:
    return write_steps(steps(tree)) or str(tree)


def read_steps(text: str) -> list[Step] | None:
    """The steps of a response, right or wrong; None if something else is in it."""
    if len(text) > LONGEST:
        return None
    found = []
    for part in text.strip().split(";"):
        match = STEP.fullmatch(part)
        if match is None:
            return None
        left, operator, right, result = match.groups()
        found.append(Step(int(left), operator, int(right.strip("()")), int(result)))
    return found


# -- the family --------------------------------------------------------------------------------------------------------


@dataclass
class Arithmetic(Task):
    """Random expressions: the shape, the operators and the numbers are uniform, and what exceeds the bound is drawn
    again."""

    operations: list[int] = field(default_factory=lambda: [1, 2, 3])  # how many operations, each count equally often
    operand: int = 9  # numbers are uniform in [0, operand]
    bound: int = 99  # of the absolute value of every result
    operators: str = "+-*"
    solutions: bool = True  # train on worked solutions; false: on answers alone
    share: float = 1.0

    def __post_init__(self) -> None:
        require(len(self.operations) > 0, "operations", self.operations, "a list of counts from 1 to 8")
        for count in self.operations:
            require(1 <= count <= 8, "operations", count, "from 1 to 8")
        require(1 <= self.operand <= 999, "operand", self.operand, "from 1 to 999")
        require(self.operand <= self.bound <= 10**6, "bound", self.bound, "at least operand, at most 1000000")
        require(self.share > 0, "share", self.share, "greater than 0")
        if not self.operators or set(self.operators) - set(PRIORITY):
            raise UserError("operators", self.operators, "must be one or more of + - *")

    def draw(self, rng: np.random.Generator, count: int) -> Tree:
        """A tree with `count` operations within the bound."""
        for _ in range(ATTEMPTS):
            tree = self._tree(rng, count)
            if largest(tree) <= self.bound:
                return tree
        raise UserError("bound", self.bound, f"is hardly ever kept by {count} operations; raise it, or lower operand")

    def _tree(self, rng: np.random.Generator, count: int) -> Tree:
        if count == 0:
            return int(rng.integers(0, self.operand + 1))
        left = int(rng.integers(0, count))
        operator = self.operators[int(rng.integers(len(self.operators)))]
        return (operator, self._tree(rng, left), self._tree(rng, count - 1 - left))

    def problem(self, tree: Tree) -> Problem:
        worked = solution(tree) if self.solutions else ""
        return Problem(prompt(tree), str(value(tree)), f"operations={operations(tree)}", worked)

    def problems(self, seed: int) -> list[Problem]:
        rng = generator(seed, "arithmetic")
        return [self.problem(self.draw(rng, int(count))) for count in rng.choice(np.array(self.operations), BLOCK)]

    def like(self, parent: Problem, seed: int, n: int) -> list[Problem]:
        """Other numbers in a tree of the same shape with the same operators; those that exceed the bound are drawn
        again."""
        shape = expression(parent.prompt)
        if shape is None:
            return []
        rng = generator(seed, "like")
        drawn = (self._numbers(rng, shape) for _ in range(ATTEMPTS))
        return [self.problem(tree) for tree in islice((t for t in drawn if largest(t) <= self.bound), n)]

    def _numbers(self, rng: np.random.Generator, tree: Tree) -> Tree:
        if isinstance(tree, int):
            return int(rng.integers(0, self.operand + 1))
        return (tree[0], self._numbers(rng, tree[1]), self._numbers(rng, tree[2]))

    def wrong(self, problem: Problem, seed: int) -> str:
        """The last result is off by 1 to 9."""
        rng = generator(seed, "wrong")
        off = int(rng.integers(1, 10)) * (1 if rng.random() < 0.5 else -1)
        answer = str(int(problem.answer) + off)
        worked, equals, _ = problem.solution.rpartition("=")
        return f"{worked}{equals}{answer}"

    def final(self, response: str) -> str:
        return response.rpartition("=")[2].strip()

    def solve(self, prompt: str) -> str | None:
        tree = expression(prompt)
        return None if tree is None else str(value(tree))

    def verify(self, responses: Any, answers: Any) -> Checked:
        """By the number after the last equals sign, or the only number."""
        said = pc.replace_substring_regex(checks.strings(responses), r"(?s)^.*=", "")
        return checks.integers(pa.array(said), answers)


def needs_expressions(experiment: Experiment, key: str, why: str, solutions: bool = False) -> None:
    """Refuse, under `key`, problems that are no expressions, or (`solutions`) have no worked solutions."""
    families = able(experiment.domain, Reasoning).families
    fits = all(isinstance(f, Arithmetic) and (f.solutions or not solutions) for f in families.values())
    if not fits:
        raise UserError(key, None, f"{why}, and these are {', '.join(families)}; use domain/tasks=arithmetic")
