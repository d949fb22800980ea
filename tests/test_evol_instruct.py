"""Evol-Instruct: edits of expressions, elimination, lineages; rewards of problems and of steps, and the selection by
them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from genloss.core import records
from genloss.core.capabilities import Verifies, able
from genloss.core.contracts import HISTORY, Inputs
from genloss.core.errors import UserError
from genloss.core.rundir import RunDir
from genloss.core.seeds import generator
from genloss.core.store import Store
from genloss.curate import Context, curate
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
    value,
)
from genloss.experiment import Experiment
from genloss.generate import Request
from genloss.loop import Loop
from genloss.systems.evol_instruct.edits import DOWN, OPERATORS, UP, canonical, careless
from genloss.systems.evol_instruct.recipe import RULES, EvolInstruct, Parent
from genloss.systems.evol_instruct.reward import ResponseReward, check_steps, quality
from genloss.workflow.compose import compose

FAMILY = Arithmetic(operations=[1, 2, 3], operand=9, bound=99)
TINY = [
    "experiment=evol_instruct",
    "rounds=4",
    "size=60",
    "domain.examples=60",
    "domain.test=40",
    "domain.validation=20",
    "recipe.samples=2",
    "recipe.chunk=64",
    "curation.evol_reward.keep=40",
    "trainer.steps=5",
    "trainer.batch=8",
    "schedule.1.trainer.steps=2",
    "schedule.2.trainer.steps=2",
    "schedule.3.trainer.steps=2",
    "schedule.4.trainer.steps=2",
    "metrics.accuracy.max_records=20",
    "metrics.evolution.max_records=20",
    "model.examples=64",
    "model.steps=5",
    "model.batch=8",
    "tracking=none",
    "runtime.workers=1",
]


def tree_of(text: str) -> Tree:
    tree = read(text)
    assert tree is not None, text
    return tree


def parent(text: str) -> Parent:
    tree = tree_of(text)
    return Parent("id", prompt(tree), tree, "arithmetic", "seed")


# -- edits -------------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_edits_do_what_they_are_named_for(seed: int, count: int) -> None:
    rng = generator(seed, "test")
    tree = FAMILY.draw(rng, count)
    made = {name: edit(tree, rng, FAMILY) for name, edit in OPERATORS.items()}
    assert all(expression(prompt(t)) == t for t in made.values())
    change = {name: operations(t) - count for name, t in made.items()}
    assert change["add_constraint"] == change["deepen"] == 1
    assert change["reasoning"] == 2
    assert change["complicate"] == change["breadth"] == 0
    assert change["easier"] == (-1 if count > 1 else 0)
    assert change["easier_topic"] == (-1 if count > 1 else 0)
    # a number becomes an operation with its value; 0 to 9 always can
    assert change["concretize"] == 1 and value(made["concretize"]) == value(tree)
    deeper, longer = made["deepen"], made["add_constraint"]
    assert isinstance(deeper, tuple) and deeper[2] == tree
    assert isinstance(longer, tuple) and longer[1] == tree
    assert largest(made["complicate"]) > 9


def test_canonical_forms() -> None:
    same = [
        ("3+4", "4+3"),
        ("3+(4+5)", "5+4+3"),
        ("2*(3*4)", "4*3*2"),
        ("7-(2-3)", "7-2+3"),
        ("3+4+0", "3+4"),
        ("1*(3-4)", "3-4"),
        ("5*1*2+0", "2*5"),
        ("7-0", "7"),
        ("1*1", "1"),
        ("0+0", "0"),
    ]
    other = [("3-4", "4-3"), ("3+4*2", "(3+4)*2"), ("7", "3+4"), ("0-7", "7"), ("2*(3+4)", "2*3+2*4"), ("0*7", "0")]
    for a, b in same:
        assert canonical(tree_of(a)) == canonical(tree_of(b)), (a, b)
    for a, b in other:
        assert canonical(tree_of(a)) != canonical(tree_of(b)), (a, b)


@settings(max_examples=50)
@given(st.integers(0, 10**6))
def test_equivalent_expressions_have_one_value(seed: int) -> None:
    rng = generator(seed, "test")
    found: dict[str, int] = {}
    for _ in range(50):
        tree = Arithmetic(operations=[1, 2], operand=2, bound=9).draw(rng, 2)
        assert found.setdefault(canonical(tree), value(tree)) == value(tree)


def test_a_careless_edit_is_broken_has_a_blank_or_is_out_of_bounds() -> None:
    rng = generator(0, "careless")
    kinds: Counter = Counter()
    for _ in range(600):
        tree = FAMILY.draw(rng, int(rng.integers(1, 4)))
        text = careless(tree, rng, FAMILY)
        now = expression(text)
        kinds["blank" if "?" in text else "broken" if now is None else "out" if largest(now) > 99 else "fine"] += 1
    # a number that is lost inside a parenthesis can leave a negative number: (3-7) becomes (-7)
    assert kinds["fine"] < 30 and min(kinds["blank"], kinds["broken"], kinds["out"]) > 150


def test_rules_of_elimination() -> None:
    recipe = EvolInstruct(n=1, most=3)
    old = parent("3+4*2")

    def struck(text: str, held_out: set[str] | None = None) -> str:
        return recipe.struck(old, text, FAMILY, 40, held_out or set(), RULES)

    assert struck("3+4*2:") == "copies"
    assert struck("2*4+3:") == "no_information" and struck("3+4*2+0:") == "no_information"
    assert struck("3+*2:") == struck("3+?*2:") == struck("") == struck("why?:") == "empty"
    assert struck("9*9*2:") == "beyond"  # the bound
    assert struck("1+1+1+1+1:") == "beyond"  # too many operations
    assert recipe.struck(old, "3+4*3:", FAMILY, 20, set(), RULES) == "beyond"  # longer than the context
    assert struck("3+4*3:") == "" and struck("3+4*3:", {"3+4*3:"}) == "held_out"
    assert recipe.struck(old, "3+*2:", FAMILY, 40, set(), []) == ""


def test_operators_are_drawn_uniformly() -> None:
    recipe = EvolInstruct(n=1)
    rng = generator(0, "uniform")
    drawn = Counter(recipe.evolve(parent("3+4*2"), FAMILY, 64, set(), rng).operator for _ in range(4000))
    assert set(drawn) == {*UP, *DOWN}
    assert stats.chisquare(list(drawn.values())).pvalue > 0.001


# -- rewards -----------------------------------------------------------------------------------------------------------


def test_steps_are_checked_one_by_one() -> None:
    tree = read("3+4*2")
    assert tree is not None

    def check(text: str) -> tuple[list[bool], bool]:
        said = read_steps(text)
        assert said is not None
        return check_steps(tree, said)

    assert check("4*2=8;3+8=11") == ([True, True], True)
    assert check("4*2=9;3+9=12") == ([False, True], True)  # the error is carried on, the second step is right
    assert check("4*2=8;3+9=12") == ([True, False], False)  # there is no 3+9
    assert check("4*2=8") == ([True], False)
    assert check("4*2=8;3+8=11;1+1=2") == ([True, True, False], True)
    assert check("3+4=7;7*2=14") == ([False, False], False)  # against the priorities
    two = read("1+1+(1+1)")
    assert two is not None
    said = read_steps("1+1=2;1+1=2;2+2=4")
    assert said is not None and check_steps(two, said) == ([True, True, True], True)


def test_quality_of_a_problem() -> None:
    assert quality("3+4:", "3:", False, 99) == {"definition": 1, "integrity": 1, "precision": 1, "novelty": 1}
    assert quality("3+:", "3:", False, 99)["definition"] == 0
    assert quality("3+?:", "3:", False, 99) == {"definition": 1, "integrity": 0, "precision": 1, "novelty": 1}
    assert quality("99*2:", "3:", False, 99)["precision"] == 0.5
    assert quality("4+3:", "3+4:", False, 99)["novelty"] == 0
    assert quality("4+3:", None, True, 99)["novelty"] == 0


EXACT = {"phi": 1.0, "psi": 0.0, "noise": 0.0}
TEXTS = ["3+4*2:", "3+4*2:", "3+4*2:", "3+:", "3+?:", "50*2:", "3+4*2:"]
SAID = ["4*2=8;3+8=11", "4*2=9;3+9=12", "eleven", "3+4=7", "3+1=4", "50*2=100", ""]


def test_exact_rewards_by_hand() -> None:
    def of(*factors: str, **options: Any) -> list[float]:
        return ResponseReward([*factors], **EXACT | options).of(TEXTS, SAID, 0).round(3).tolist()

    assert of("instruction") == [1, 1, 1, 0, 0, 0.99, 1]
    assert of("process") == [1, 0, 0, 0, 0, 1, 0]
    assert of("outcome") == [1, 0, 0, 0, 0, 1, 0]
    assert of("instruction", "process") == [1, 0, 0, 0, 0, 0.99, 0]
    noisy: dict[str, Any] = {"phi": 0.8, "psi": 0.4}
    yes, no = 0.8 / 1.2, 0.2 / 0.8
    found = ResponseReward(["process"], **noisy).of(TEXTS[:1] * 4000, SAID[:1] * 4000, 0)
    # two steps and the end, all right: the minimum is that of an accepted step if all three are accepted
    assert set(found.round(6)) == {round(yes, 6), round(no, 6)}
    assert np.mean(found > no) == pytest.approx(0.8**3, abs=0.03)
    product = ResponseReward(["process"], combine="product", **noisy).of(TEXTS[:1] * 500, SAID[:1] * 500, 0)
    assert {round(v, 6) for v in product} == {round(yes**k * no ** (3 - k), 6) for k in range(4)}


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(SAID)), min_size=1, max_size=20),
    st.integers(0, 99),
    st.floats(0.1, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["minimum", "product"]),
)
def test_the_reward_is_zero_where_a_factor_is(
    made: list[tuple[str, str]], seed: int, phi: float, psi: float, noise: float, combine: str
) -> None:
    texts, said = (list(side) for side in zip(*made, strict=True))
    options: dict[str, Any] = {"phi": phi, "psi": psi, "noise": noise, "combine": combine}
    one, two, both = (
        ResponseReward(factors, **options).of(texts, said, seed)
        for factors in (["instruction"], ["process"], ["instruction", "process"])
    )
    np.testing.assert_allclose(both, one * two)
    assert (both[(one == 0) | (two == 0)] == 0).all()
    assert ((both >= 0) & (both <= 1)).all()
    by_text: dict[str, set[float]] = {}
    for text, r in zip(texts, one, strict=True):
        by_text.setdefault(text, set()).add(r)
    assert all(len(values) == 1 for values in by_text.values())  # a problem is judged once


# -- selection ---------------------------------------------------------------------------------------------------------


def table_of(texts: list[str], said: list[str]) -> pa.Table:
    n = len(texts)
    payload: dict[str, Any] = {
        "prompt": texts,
        "response": said,
        "answer": [""] * n,
        "task": ["easy"] * n,
        "difficulty": [""] * n,
        "lineage": ["seed>deepen"] * n,
        "evolved_from": ["0-99:"] * n,
    }
    return records.make_table(payload, origin="synthetic", generation=1, recipe="evol_instruct")


def select(table: pa.Table, tmp_path: Path, *overrides: str, seed: int = 0) -> pa.Table:
    x = Experiment(compose([*TINY, "curation.evol_reward.bound=99", *overrides]))
    context = Context(x.domain, 1, seed, tmp_path, Inputs({}))
    kept, rejected, _, _ = curate(table, x.curators, "none", context)
    assert len(kept) + len(rejected) == len(table)
    return kept


CLEAN = [f"curation.evol_reward.{key}={v}" for key, v in EXACT.items()]


def test_best_of_n_keeps_one_right_solution_of_each_problem(tmp_path: Path) -> None:
    texts = ["3+4*2:"] * 3 + ["2+2:"] * 3 + ["1+:"] * 3
    said = ["8", "4*2=8;3+8=11", "4*2=8;3+8=12", "2+2=4", "2+2=4", "2+2=5", "1+1=2"] + ["1+0=1"] * 2
    kept = select(table_of(texts, said), tmp_path, *CLEAN)
    assert sorted(kept.column("response").to_pylist()) == ["2+2=4", "4*2=8;3+8=11"]
    assert len(select(table_of(texts, said), tmp_path, *CLEAN, "curation.evol_reward.keep=1")) == 1


def test_sampling_keeps_with_probability_proportional_to_r(tmp_path: Path) -> None:
    """r is 1 or 99/198 = 0.5, by the bound: of equally many the kept are as 2 to 1."""
    pairs = [(a, b) for a in range(2, 42) for b in range(2, a)]
    texts = [f"{a}+{b}:" for a, b in pairs] + [f"{198 - a - b}+{a}+{b}:" for a, b in pairs]
    said = [solution(tree_of(t.removesuffix(":"))) for t in texts]
    options = [*CLEAN, "curation.evol_reward.factors=[process,instruction]", "curation.evol_reward.select=sample"]
    table = table_of(texts, said)
    full = half = len(pairs)
    kept = select(table, tmp_path, *options, "curation.evol_reward.keep=null").column("score").to_pylist()
    assert kept.count(1.0) == full and kept.count(0.5) == pytest.approx(half / 2, abs=4 * (half / 4) ** 0.5)
    assert 0.0 not in kept
    few = np.concatenate(
        [
            select(table, tmp_path, *options, "curation.evol_reward.keep=200", seed=s).column("score").to_numpy()
            for s in range(5)
        ]
    )
    assert len(few) == 1000 and (few > 0).all()
    assert np.mean(few == 1) == pytest.approx(2 / 3, abs=0.06)


# -- the loop ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    folder = tmp_path_factory.mktemp("evol")
    # a model that has seen five batches writes nothing that can be read as steps
    x = Experiment(compose([*TINY, "curation.evol_reward.factors=[instruction]"]))
    made = Loop(x, RunDir(folder / "run", Store(folder / "store")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENLOSS_STORE", str(folder / "store"))  # of the base
        made.run()
    return made


def test_lineages_grow_by_one_a_round_at_most_and_name_their_parents(ran: Loop) -> None:
    known = {
        row["id"]: row | {"lineage": "seed"} for row in records.read(ran.run_dir.data / "train.parquet").to_pylist()
    }
    held_out = set(records.read(ran.run_dir.data / "test.parquet").column("prompt").to_pylist())
    longest = 0
    for n in range(1, 5):
        generated = records.read(ran.run_dir.round(n) / "generated.parquet").to_pylist()
        evolved = Counter(row["parents"][0] for row in generated)
        assert set(evolved.values()) == {2}  # one problem of each parent, two responses
        for row in generated:
            above = known[row["parents"][0]]
            before, _, operator = row["lineage"].rpartition(">")
            assert before == above["lineage"] and operator in OPERATORS
            assert row["evolved_from"] == above["prompt"] and row["prompt"] not in held_out
            assert row["lineage"].count(">") <= n
            longest = max(longest, row["lineage"].count(">"))
            tree = expression(row["prompt"])
            assert row["answer"] == ("" if tree is None else str(value(tree)))
        kept = records.read(ran.run_dir.round(n) / "kept.parquet").to_pylist()
        assert 0 < len(kept) <= 40
        known |= {row["id"]: row for row in kept}
        metrics = json.loads((ran.run_dir.round(n) / "metrics.json").read_text())
        assert sum(metrics[f"generate/drawn/{o}"] for o in OPERATORS) == metrics["generate/pool"] == 60
        assert metrics["lineage_max"] <= n
        assert metrics["lineage_max"] == max(row["lineage"].count(">") for row in kept)
    assert longest > 1


def test_a_parent_whose_problem_was_not_kept_is_evolved_again(ran: Loop) -> None:
    domain = ran.experiment.domain
    kept = ran.run_dir.round(1) / "kept.parquet"
    model, scratch = ran.run_dir.round(1) / "model", ran.run_dir.root / "scratch"
    request = Request(domain, 2, 0, model, ran.run_dir.data, Inputs({HISTORY: (kept,)}), scratch, account=scratch)
    recipe = ran.experiment.recipe
    assert isinstance(recipe, EvolInstruct)
    pool = recipe.pool(request)
    seeds = records.read(ran.run_dir.data / "train.parquet").column("id").to_pylist()
    rows = [row for row in records.read(kept).to_pylist() if expression(row["prompt"]) is not None]
    assert len(pool) == 60
    moved = {p.id for p in pool} - set(seeds)
    assert moved == {row["id"] for row in rows} and 0 < len(moved) < 60
    assert not {row["parents"][0] for row in rows} & {p.id for p in pool}


def test_exact_labels_are_the_worked_solutions(ran: Loop, tmp_path: Path) -> None:
    x = Experiment(
        compose(
            [
                *TINY,
                "recipe.label=exact",
                "recipe.samples=1",
                "recipe.noise=1",
                "recipe.eliminate=[empty]",
                "curation.evol_reward.select=sample",
            ]
        )
    )
    model = ran.run_dir.round(0) / "model"
    request = Request(x.domain, 1, 3, model, ran.run_dir.data, Inputs({HISTORY: ()}), tmp_path, account=tmp_path)
    table, result = x.recipe.generate(request)
    assert able(x.domain, Verifies).verify(table).right.all()
    for row in table.to_pylist():
        tree = expression(row["prompt"])
        assert tree is not None and row["response"] == solution(tree)
    assert result["counts"]["eliminated/empty"] > 20 and result["tokens"] == 0
    again, _ = x.recipe.generate(request)
    assert again.equals(table)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["recipe.operators=[]"], ["recipe.operators=[]", "empty", "deepen"]),
        (["recipe.operators=[depen]"], ["recipe.operators=depen", "did you mean deepen"]),
        (["recipe.operators=[deepen,deepen]"], ["recipe.operators", "once"]),
        (["recipe.eliminate=[copy]"], ["recipe.eliminate=copy", "did you mean copies"]),
        (["recipe.noise=1.2"], ["recipe.noise=1.2", "[0, 1]"]),
        (["recipe.noise=-0.1"], ["recipe.noise=-0.1", "[0, 1]"]),
        (["recipe.label=oracle"], ["recipe.label=oracle", "exact"]),
        (["recipe.label=exact"], ["recipe.samples=2", "label=exact"]),
        (["recipe.n=61"], ["recipe.n=61", "at most", "domain.examples=60"]),
        (["recipe.samples=1"], ["curation.evol_reward.select=best", "recipe.samples=1", "2 or more"]),
        (["curation.evol_reward.factors=[]"], ["curation.evol_reward.factors=[]", "empty"]),
        (["curation.evol_reward.factors=[proces]"], ["factors=proces", "did you mean process"]),
        (["curation.evol_reward.phi=2"], ["curation.evol_reward.phi=2", "[0, 1]"]),
        (
            ["curation.evol_reward.phi=0", "curation.evol_reward.psi=0"],
            ["curation.evol_reward.phi=0", "greater than 0"],
        ),
        (["curation.evol_reward.noise=7"], ["curation.evol_reward.noise=7", "[0, 1]"]),
        (["curation.evol_reward.combine=mean"], ["combine=mean", "minimum"]),
        (["curation.evol_reward.select=top"], ["select=top", "best"]),
        (["curation.evol_reward.keep=0"], ["keep=0", "at least 1"]),
    ],
)
def test_bad_input(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Experiment(compose([*TINY, *overrides]))
    for word in words:
        assert word in str(error.value)


def test_other_domains_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"recipe=EvolInstruct: needs problems with exact answers, .*; use domain=reasoning"
    ):
        Experiment(compose(["recipe=evol_instruct"]))
    with pytest.raises(UserError, match=r"curation.evol_reward=EvolReward: needs problems with exact answers"):
        Experiment(compose(["curation=evol_reward"]))
    with pytest.raises(UserError, match=r"domain/tasks=arithmetic"):
        Experiment(compose(["domain=reasoning", "domain/tasks=gcd", "recipe=evol_instruct"]))


def test_an_evolver_that_never_succeeds_says_so(ran: Loop, tmp_path: Path) -> None:
    x = Experiment(compose([*TINY, "recipe.most=1", "recipe.noise=0", "recipe.operators=[reasoning]"]))
    model = ran.run_dir.round(0) / "model"
    request = Request(x.domain, 1, 3, model, ran.run_dir.data, Inputs({HISTORY: ()}), tmp_path, account=tmp_path)
    with pytest.raises(
        UserError, match=r"evolved none of 60 problems in round 1 \(\{'beyond': 60\}\); raise recipe.most"
    ):
        x.recipe.generate(request)
