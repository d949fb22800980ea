"""Validity: what a checker accepts is counted, nothing is executed, and nothing hangs; logic expressions are right."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genloss.core.errors import UserError
from genloss.core.places import load_params
from genloss.evaluate.validity import Grammar, Pattern, Python, Validity
from genloss.experiment import Experiment
from genloss.systems.self_consuming.expressions import Expressions, Holds, drawn, value
from genloss.workflow.compose import compose
from support import Project
from test_metrics import evidence

HOSTILE = [
    "__import__('os').system('touch /tmp/hit')",
    "(" * 5000,
    "a" * 40 + "!",
    "\x00",
    "~" * 5000 + "T",
    "lambda:(yield)",
]


def test_patterns_match_whole_texts_and_give_up() -> None:
    assert Pattern(r"\d+").valid(["12", "1a", "", "3"]).tolist() == [True, False, False, True]
    assert not Pattern(r"(a+)+").valid(["a" * 60 + "!"]).any()  # 2^60 ways, but for its limit


def test_python_is_parsed_and_not_run(tmp_path: Path) -> None:
    hit = tmp_path / "hit"
    texts = [f"open({str(hit)!r}, 'w')", "x = 1", "x = ", "def f(:", *HOSTILE]
    assert Python().valid(texts).tolist()[:4] == [True, True, False, False]
    assert not hit.exists()


def test_a_grammar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLOSS_PROJECT", str(tmp_path))
    (tmp_path / "pairs.lark").write_text('start: "(" start* ")"\n')
    grammar = Grammar("pairs.lark")
    assert grammar.valid(["(())", "(()", "x", "(" * 400 + ")" * 400, *HOSTILE]).tolist()[:3] == [True, False, False]
    before = grammar.fingerprint()
    (tmp_path / "pairs.lark").write_text('start: "[" start* "]"\n')
    assert grammar.fingerprint() != before
    (tmp_path / "bad.lark").write_text("start: (")
    for path in ("bad.lark", "none.lark"):
        with pytest.raises(UserError, match="is no grammar"):
            Grammar(path).check(Experiment(compose([])))


def test_valid_and_different_ones(tmp_path: Path) -> None:
    metric = Validity({"_target_": "genloss.evaluate.validity.Pattern", "pattern": "[ab]+"})
    held_out, generated = ["a", "b", "ab", "x"], ["a", "a", "a", "y"]
    found = metric.measure(evidence(tmp_path, ["r"], held_out, generated))
    assert found == {"valid": 0.75, "valid_distinct": 0.25, "valid_floor": 0.75, "valid_distinct_floor": 0.75}


@pytest.mark.parametrize(
    ("checker", "says"),
    [
        ("{}", "metrics.validity.checker: is missing"),
        ("{_target_: genloss.evaluate.validity.Pattern, pattern: '('}", "checker.pattern=(: is no regular expression"),
        ("{_target_: genloss.evaluate.validity.Patern}", "Patern"),
    ],
)
def test_a_bad_checker_is_refused(checker: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        Experiment(compose(["metrics=[validity]", f"+metrics.validity.checker={checker}"]))
    assert says in str(error.value)


# -- logic expressions -------------------------------------------------------------------------------------------------


def test_expressions_are_different_and_true() -> None:
    texts = [text for _, text in Expressions(500).documents()]
    assert len(set(texts)) == 500 and Holds().valid(texts).all()
    assert [text for _, text in Expressions(500).documents()] == texts
    assert [text for _, text in Expressions(500, seed=1).documents()] != texts


@settings(max_examples=300)
@given(st.integers(0, 10**9), st.integers(0, 6))
def test_values_are_those_of_python(seed: int, deep: int) -> None:
    text = drawn(random.Random(seed), deep)
    python = re.sub(r"~+", lambda m: "not " * len(m[0]), text)
    python = python.replace("&", "and").replace("|", "or").replace("T", " True ").replace("F", " False ")
    assert value(text) == eval(re.sub(r"\b(and|or)not", r"\1 not", python), {})


@given(st.text("TF&|~() x", max_size=12))
def test_what_is_no_expression_has_no_value(text: str) -> None:
    assert value(text) in (True, False, None)
    if value(text) is not None:
        assert all(value(text + more) is None for more in ("T", ")", "&T"))


def test_hostile_texts() -> None:
    assert not Holds().valid(HOSTILE).any() and not np.array([value(t) for t in ("", "()", "T&F", "(T&F", "(T)")]).any()


def test_a_run_counts_them(tmp_path: Path) -> None:
    home = Project.make(tmp_path / "project")
    tiny = ["rounds=1", "size=32", "trainer.steps=2", "domain.corpus.n=400", "tracking=none", "hydra.mode=RUN"]
    folder = home.ok("run", "experiment=self_consuming", *tiny, "trainer.steps=2", "seed=0").folder
    metrics = load_params(folder / "rounds/01/metrics.json")
    assert metrics["valid_floor"] == 1 and 0 <= metrics["valid_distinct"] <= metrics["valid"] <= 1
