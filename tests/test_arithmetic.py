"""Expressions with worked solutions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genloss.core.errors import UserError
from genloss.domains.reasoning.arithmetic import (
    Arithmetic,
    Tree,
    expression,
    largest,
    operations,
    prompt,
    read,
    read_steps,
    solution,
    steps,
    value,
    write,
)

TREES: st.SearchStrategy[Tree] = st.recursive(
    st.integers(-9, 9), lambda inner: st.tuples(st.sampled_from("+-*"), inner, inner), max_leaves=9
)


@given(TREES)
def test_what_is_written_is_read_as_the_same_tree(tree: Tree) -> None:
    assert read(write(tree)) == tree
    assert expression(prompt(tree)) == tree
    if not isinstance(tree, int):
        assert read_steps(solution(tree)) == steps(tree)
        assert steps(tree)[-1].result == value(tree) and len(steps(tree)) == operations(tree)


@given(TREES)
def test_values_are_those_of_python(tree: Tree) -> None:
    assert value(tree) == eval(write(tree))  # what we wrote ourselves, in a test


@given(st.text(alphabet="0123456789+-*()=;: ", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    tree = read(text)
    if tree is not None:
        assert read(write(tree)) == tree
    read_steps(text)


@pytest.mark.parametrize(
    "text", ["", "1+", "(1", "1)", "--1", "()", "1 + 2", "2**3", "1e3", "(" * 150 + "1", "9" * 300]
)
def test_what_is_no_expression(text: str) -> None:
    assert read(text) is None


@pytest.mark.parametrize("text", ["٣+٤", "3+٤", "３+４", "3+4²"])
def test_digits_of_other_scripts_are_no_problem_no_step_and_no_answer(text: str) -> None:
    """Python reads them as numbers: such a problem would pass as a new one."""
    assert read(text) is None and expression(f"{text}:") is None and Arithmetic().solve(f"{text}:") is None
    assert read_steps(f"{text}=7") is None and read_steps("3+4=٧") is None
    assert not Arithmetic().verify([text, "3+4=٧", "٧"], ["7"] * 3).parsed.any()


def test_problems_obey_their_knobs() -> None:
    task = Arithmetic(operations=[2, 4], operand=5, bound=30)
    made = task.problems(0)
    assert made == task.problems(0) != task.problems(1)
    trees = [expression(p.prompt) for p in made]
    assert {operations(t) for t in trees if t is not None} == {2, 4}
    assert all(t is not None and largest(t) <= 30 for t in trees)
    assert task.verify([p.solution for p in made], [p.answer for p in made]).right.all()


def test_the_last_number_is_the_answer() -> None:
    said = ["3*4=12;1+12=13", "13", "+013", "13=14", "x=", "", "1+12=thirteen"]
    right, parsed = Arithmetic().verify(said, ["13"] * len(said))
    assert right.tolist() == [True, True, True, False, False, False, False]
    assert parsed.tolist() == [True, True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("key", "value"),
    [("operations", []), ("operations", [9]), ("operand", 0), ("bound", 5), ("operators", "+/"), ("operators", "")],
)
def test_bad_knobs(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=key):
        Arithmetic(**{key: value})


def test_a_bound_that_is_never_kept() -> None:
    with pytest.raises(UserError, match="bound"):
        Arithmetic(operations=[8], operand=999, bound=999, operators="+").problems(0)
