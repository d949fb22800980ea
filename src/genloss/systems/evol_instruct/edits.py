"""Edits of expressions: what the evolver does to a problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from genloss.domains.reasoning.arithmetic import Arithmetic, Tree, largest, operations, prompt
from genloss.domains.reasoning.arithmetic import value as exact

UP = ("add_constraint", "deepen", "concretize", "reasoning", "complicate", "breadth")
DOWN = ("easier", "easier_topic")
CARELESS = ("broken", "blank", "unbounded")
BLANK = "?"  # an operand that is not given
SHORTEST = 1  # operations that a problem has at least


def leaves(tree: Tree) -> Iterator[tuple[int, ...]]:
    """The paths (1: left, 2: right) of all numbers, from left to right."""
    if isinstance(tree, int):
        yield ()
    else:
        for side, part in enumerate(tree[1:], 1):
            for path in leaves(part):
                yield (side, *path)


def innermost(tree: Tree) -> Iterator[tuple[int, ...]]:
    """The paths of all operations on two numbers."""
    if not isinstance(tree, int):
        if isinstance(tree[1], int) and isinstance(tree[2], int):
            yield ()
        for side, part in enumerate(tree[1:], 1):
            for path in innermost(part):
                yield (side, *path)


def at(tree: Tree, path: tuple[int, ...]) -> Tree:
    if not path:
        return tree
    assert not isinstance(tree, int)
    return at(tree[1:][path[0] - 1], path[1:])


def put(tree: Tree, path: tuple[int, ...], new: Tree) -> Tree:
    """The tree with `new` in place of what is at `path`."""
    if not path:
        return new
    assert not isinstance(tree, int)
    operator, left, right = tree
    if path[0] == 1:
        return operator, put(left, path[1:], new), right
    return operator, left, put(right, path[1:], new)


def canonical(tree: Tree) -> str:
    """Equal for trees that differ in the order and the grouping of sums and products, or by adding 0 or multiplying by
    1."""
    if isinstance(tree, int):
        return str(tree)
    if tree[0] == "*":
        factors = sorted(f for f in _factors(tree) if f != "1")
        return factors[0] if len(factors) == 1 else f"*({','.join(factors)})" if factors else "1"
    terms = sorted(f"{sign}{canonical(t)}" for sign, t in _terms(tree, "+") if canonical(t) != "0")
    if not terms:
        return "0"
    return terms[0][1:] if len(terms) == 1 and terms[0][0] == "+" else f"+({','.join(terms)})"


def _factors(tree: Tree) -> list[str]:
    if isinstance(tree, int) or tree[0] != "*":
        return [canonical(tree)]
    return _factors(tree[1]) + _factors(tree[2])


def _terms(tree: Tree, sign: str) -> list[tuple[str, Tree]]:
    if isinstance(tree, int) or tree[0] == "*":
        return [(sign, tree)]
    other = sign if tree[0] == "+" else {"+": "-", "-": "+"}[sign]
    return _terms(tree[1], sign) + _terms(tree[2], other)


Edit = Callable[[Tree, np.random.Generator, Arithmetic], Tree]


def _number(rng: np.random.Generator, family: Arithmetic) -> int:
    return int(rng.integers(0, family.operand + 1))


def _operator(rng: np.random.Generator, family: Arithmetic) -> str:
    return family.operators[int(rng.integers(len(family.operators)))]


def _any(rng: np.random.Generator, paths: Iterator[tuple[int, ...]]) -> tuple[int, ...]:
    found = list(paths)
    return found[int(rng.integers(len(found)))]


def add_constraint(tree: Tree, rng: np.random.Generator, family: Arithmetic) -> Tree:
    sums = [o for o in family.operators if o in "+-"] or list(family.operators)
    return sums[int(rng.integers(len(sums)))], tree, _number(rng, family)


def deepen(tree: Tree, rng: np.random.Generator, family: Arithmetic) -> Tree:
    return _operator(rng, family), _number(rng, family), tree


def concretize(tree: Tree, rng: np.random.Generator, family: Arithmetic) -> Tree:
    path = _any(rng, leaves(tree))
    wanted = exact(at(tree, path))
    found: list[Tree] = []
    for operator in family.operators:
        for a in range(family.operand + 1):
            b = {"+": wanted - a, "-": a - wanted, "*": wanted // a if a and wanted % a == 0 else -1}[operator]
            if 0 <= b <= family.operand:
                found.append((operator, a, b))
    return put(tree, path, found[int(rng.integers(len(found)))]) if found else tree


def reasoning(tree: Tree, rng: np.random.Generator, family: Arithmetic) -> Tree:
    return put(tree, _any(rng, leaves(tree)), family.draw(rng, 2))


def complicate(tree: Tree, rng: np.random.Generator, family: Arithmetic) -> Tree:
    low = min(family.operand + 1, family.bound)
    return put(tree, _any(rng, leaves(tree)), int(rng.integers(low, family.bound + 1)))


def breadth(tree: Tree, rng: np.random.Generator, family: Arithmetic) -> Tree:
    return family.draw(rng, max(SHORTEST, operations(tree)))


def easier(tree: Tree, rng: np.random.Generator, family: Arithmetic) -> Tree:
    if operations(tree) <= SHORTEST:
        return put(tree, _any(rng, leaves(tree)), _number(rng, family))  # no shorter one: smaller numbers
    path = _any(rng, innermost(tree))
    known = exact(at(tree, path))
    return put(tree, path, known if 0 <= known <= family.operand else _number(rng, family))


def easier_topic(tree: Tree, rng: np.random.Generator, family: Arithmetic) -> Tree:
    return family.draw(rng, max(SHORTEST, operations(tree) - 1))


OPERATORS: dict[str, Edit] = {
    "add_constraint": add_constraint,
    "deepen": deepen,
    "concretize": concretize,
    "reasoning": reasoning,
    "complicate": complicate,
    "breadth": breadth,
    "easier": easier,
    "easier_topic": easier_topic,
}


def careless(tree: Tree, rng: np.random.Generator, family: Arithmetic) -> str:
    """The text of an edit that went wrong: an operation lost one of its numbers (broken), a number is not given
    (blank), or the results grow beyond the bound (unbounded)."""
    kind = CARELESS[int(rng.integers(len(CARELESS)))]
    if kind == "unbounded":
        while largest(tree) <= family.bound:
            tree = ("*" if exact(tree) else "+", tree, max(2, _number(rng, family)))
        return prompt(tree)
    text = prompt(tree)
    digits = [i for i, c in enumerate(text) if c.isdigit() and not text[i - 1 : i].isdigit()]  # where numbers begin
    first = digits[int(rng.integers(len(digits)))]
    last = first
    while text[last].isdigit():
        last += 1
    return text[:first] + (BLANK if kind == "blank" else "") + text[last:]
