"""Critics of worked solutions: injected errors, critiques, selection and refinement by a trained critic, what is
refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from genloss.core import records
from genloss.core.contracts import Inputs, Runtime
from genloss.core.errors import UserError
from genloss.core.rundir import RunDir
from genloss.core.seeds import generator
from genloss.core.store import Store
from genloss.curate import Context, curate
from genloss.domains.reasoning.arithmetic import (
    Arithmetic,
    compute,
    expression,
    read_steps,
    solution,
    steps,
    value,
)
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.systems.evol_instruct.reward import ResponseReward
from genloss.systems.shepherd.critic import find
from genloss.systems.shepherd.metric import confusion
from genloss.systems.shepherd.task import NEED_TWO, TYPES, Critique, Said, inject, parts, question, read, rotations
from genloss.workflow.compose import compose

# A critic of repeated steps alone, which is quickly learned, and of little problems.
CRITIC = [
    "experiment=critic",
    "domain.tasks.critique.types=[repetition]",
    "domain.tasks.critique.operations=[1,2]",
    "domain.tasks.critique.operators=+-",
    "domain.name=critic",
    "domain.tasks.arithmetic.operations=[1,2]",
    "domain.tasks.arithmetic.operators=+-",
    "domain.context=64",
    "domain.vocabulary=300",
    "domain.examples=3000",
    "domain.validation=32",
    "domain.test=64",
    "domain.pool=1",
    "size=3000",
    "recipe.n=1",
    "trainer.steps=120",
    "trainer.batch=32",
    "metrics.critique.max_records=200",
    "metrics.critique.chunk=64",
    "metrics.accuracy.chunk=64",
    "tracking=none",
    "runtime.workers=1",
]
SOLVER = [
    "domain=reasoning",
    "domain/tasks=arithmetic",
    "domain.tasks.arithmetic.operations=[1,2]",
    "domain.context=48",
    "domain.vocabulary=300",
    "domain.examples=64",
    "domain.validation=16",
    "domain.test=16",
    "domain.pool=64",
    "size=64",
    "rounds=1",
    "recipe.n=24",
    "recipe.chunk=16",
    "trainer.steps=20",
    "trainer.batch=16",
    "metrics.accuracy.chunk=16",
    "tracking=none",
    "runtime.workers=1",
]


def run(folder: Path, overrides: list[str]) -> Loop:
    """A finished run, its params beside it."""
    cfg = compose(overrides)
    loop = Loop(Experiment(cfg), RunDir(folder, Store(folder.parent / "store")))
    from genloss.workflow.compose import to_yaml

    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(to_yaml(cfg))
    loop.run()
    return loop


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("critic") / "run"
    run(folder, CRITIC)
    return folder


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_exactly_one_error_of_the_type(kind: str) -> None:
    source = Arithmetic()
    rng = generator(0, "test", kind)
    found = 0
    while found < 300:
        tree = source.draw(rng, int(rng.integers(1 + (kind in NEED_TWO), 4)))
        faulty = inject(kind, tree, rng, source)
        if faulty is None:
            continue
        found += 1
        right, wrong, said = steps(tree), faulty.steps, faulty.said
        k = said.step - 1
        assert said.kind == kind and not said.ok and wrong != right
        assert wrong[:k] == right[:k]  # nothing before the step that is named
        assert all(abs(s.result) <= source.bound for s in wrong)
        false = [i for i, s in enumerate(wrong) if compute(s.operator, s.left, s.right) != s.result]
        assert false == ([k] if kind == "arithmetic" else [])  # every other error is made of true steps
        if kind == "omission":
            assert [*wrong[:k], right[k], *wrong[k:]] == right
            assert said.sentence == f"{right[k]} is missing"
            continue
        if kind == "repetition":
            assert wrong[k] == wrong[k - 1] and wrong[:k] + wrong[k + 1 :] == right
            continue
        assert len(wrong) == len(right) and wrong[k] != right[k]
        if kind == "arithmetic":
            assert wrong[k][:3] == right[k][:3]
            assert said.sentence.endswith(f"is {right[k].result}, not {wrong[k].result}")
        elif kind == "operator":
            assert (wrong[k].left, wrong[k].right) == (right[k].left, right[k].right)
            assert said.sentence == f"read {right[k].operator}, not {wrong[k].operator}"
        elif kind == "operand":
            assert wrong[k].operator == right[k].operator
            differ = [(a, b) for a, b in zip(right[k][::2], wrong[k][::2], strict=True) if a != b]
            assert len(differ) == 1 and said.sentence == "read {}, not {}".format(*differ[0])
        else:
            assert any(wrong == steps(other) for other in rotations(tree))
        # what follows is carried on: the last step ends in what the wrong step leads to
        if kind in ("arithmetic", "operand", "operator") and len(right) == k + 2 and wrong[k].result != right[k].result:
            assert wrong[k].result in (wrong[k + 1].left, wrong[k + 1].right)


def test_orders_that_algebra_allows_are_no_errors() -> None:
    allowed = {
        "1+(2+3):": 0,
        "1+2+3:": 0,
        "1+2-3:": 0,
        "1+(2-3):": 0,
        "1*2*3:": 0,
        "1-2+3:": 1,
        "1-(2-3):": 1,
        "1+2*3:": 1,
    }
    for text, count in allowed.items():
        tree = expression(text)
        assert tree is not None and len(rotations(tree)) == count, text
    (other,) = rotations(("+", 1, ("*", 2, 3)))
    assert other == ("*", ("+", 1, 2), 3) and value(other) == 9


def test_shares_of_types_and_of_right_solutions() -> None:
    for share in (0.0, 0.25, 0.5, 1.0):
        made = Critique(share_right=share).problems(1)
        assert sum(p.answer == "ok" for p in made) == round(1000 * share)
    said = [read(p.answer) for seed in range(4) for p in Critique(share_right=0).problems(seed)]
    kinds = [s.kind for s in said if s]
    assert len(kinds) == len(said)
    for kind in TYPES:
        assert abs(kinds.count(kind) / 4000 - 1 / 6) < 4 * np.sqrt(5 / 36 / 4000)
    for p in Critique().problems(2)[:200]:
        problem, worked = parts(p.prompt)
        tree = expression(problem)
        assert tree is not None
        done = read_steps(worked)
        ends = done is not None and done[-1:] != [] and done[-1].result == value(tree)
        assert p.difficulty.endswith(f"ends={'right' if ends else 'wrong'}")
        if p.answer == "ok":
            assert worked == solution(tree) and "error=none" in p.difficulty
    assert Critique().problems(3) == Critique().problems(3) != Critique().problems(4)


# -- critiques ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "OK",
        "ok ok",
        "bad",
        "bad 1",
        "bad 0 order: x",
        "bad 12 order: x",
        "bad 1 orders: x",
        "bad 1 order:",
        "bad 1 order: " + "x" * 61,
        "bad 1 order: a\nb",
        "ok\x00",
        "bad １ order: x",
        None,
    ],
)
def test_what_is_no_critique(text: str | None) -> None:
    assert read(text) is None
    checked = Critique().verify(pa.array([text, text]), pa.array(["ok", "bad 1 order: 2*3 comes first"]))
    assert not checked.right.any() and not checked.parsed.any()


def test_the_critics_own_steps_stand_before_those_to_judge() -> None:
    assert question("1+2:", "1+2=3") == "1+2:1+2=3?"
    assert question("1+2:", "1+2=3", "1+2=4") == "1+2:1+2=4|1+2=3?"
    assert question("1:", "c", "a;b") == "1:a|c;b|?" and question("1:", "c;d", "a") == "1:a|c;|d?"
    for own, given in (("a;b", "c"), ("a", "c;d"), ("", "c"), ("a;b", "c;d")):
        assert parts(question("1:", given, own)) == ("1:", given)
    assert parts(Critique(reference=False).problems(0)[0].prompt)[1].count("=") >= 1


def test_critiques_are_read_as_written() -> None:
    for said in (
        Said(True),
        Said(False, 3, "omission", "4*2=8 is missing"),
        Said(False, 1, "operand", "read 4, not -5"),
    ):
        assert read(str(said)) == said
    said = pa.array(["ok", " ok\n", "bad 1 order: x", "bad 2 operand: y", "ok"])
    true = pa.array(["ok", "ok", "ok", "bad 1 order: 2*3 comes first", "bad 1 order: 2*3 comes first"])
    assert Critique().verify(said, true).right.tolist() == [True, True, False, True, False]  # by the verdict alone


def test_confusion_by_hand() -> None:
    true = ["ok"] * 4 + ["bad 1 order: x"] * 3 + ["bad 2 operand: x"] * 3
    said = [
        "ok",
        "ok",
        "ok",
        "bad 1 order: x",
        "ok",
        "bad 1 order: x",
        "bad 2 order: x",
        "bad 2 order: x",
        "bad 2 operand: x",
        "?",
    ]
    found = confusion(true, [read(s) for s in said])
    assert found["verdict_accuracy"] == pytest.approx(
        7 / 10
    )  # an unparseable critique of a wrong solution is not right
    assert found["critique/unparseable"] == pytest.approx(1 / 10)
    assert found["critique/phi"] == pytest.approx(3 / 4) and found["critique/psi"] == pytest.approx(1 / 6)
    assert found["critique/p_star"] == pytest.approx((3 / 4) / (3 / 4 + 1 / 6))
    assert found["type_accuracy"] == pytest.approx(3 / 4) and found["step_accuracy"] == pytest.approx(3 / 4)
    assert found["confusion/order/order"] == pytest.approx(2 / 3) and found["confusion/order/ok"] == pytest.approx(
        1 / 3
    )
    assert found["confusion/operand/unparseable"] == pytest.approx(1 / 3)
    assert "confusion/arithmetic/ok" not in found
    nothing = confusion(["bad 1 order: x"], [None])
    assert nothing["critique/psi"] == 0 and "critique/phi" not in nothing and "critique/p_star" not in nothing


# -- a trained critic --------------------------------------------------------------------------------------------------

PROBLEMS = ["3+4:", "9+5:", "2+2+6:", "8+1:"]
RIGHT = ["3+4=7", "9+5=14", "2+2=4;4+6=10", "8+1=9"]
TWICE = ["3+4=7;3+4=7", "9+5=14;9+5=14", "2+2=4;2+2=4;4+6=10", "8+1=9;8+1=9"]


def test_a_critic_learns_what_it_was_shown(critic: Path) -> None:
    metrics = json.loads((critic / "rounds/00/metrics.json").read_text())
    assert metrics["critique/phi"] > 0.9 and metrics["critique/psi"] < 0.1
    assert metrics["verdict_accuracy"] == pytest.approx(
        (metrics["critique/phi"] + 1 - metrics["critique/psi"]) / 2, abs=0.02
    )
    assert metrics["critique/accidents"] == 1.0  # a repeated step leaves every answer right
    judge = find(str(critic))
    assert all(s is not None and s.ok for s in judge.critiques(PROBLEMS, RIGHT))
    assert all(s is not None and s.kind == "repetition" for s in judge.critiques(PROBLEMS, TWICE))


def test_probabilities_agree_with_the_domains_losses(critic: Path) -> None:
    from genloss.core.places import load_params
    from genloss.core.plugin import build, plain
    from genloss.domains.reasoning import Reasoning

    judge = find(str(critic))
    domain = build(plain(load_params(critic / "params.yaml").domain), Reasoning, "domain")
    asked = judge.asked(PROBLEMS, TWICE)
    assert [parts(a) for a in asked] == list(zip(PROBLEMS, TWICE, strict=True))
    table = pa.table({"prompt": asked, "response": ["ok"] * 4})
    nats, _ = domain.losses(judge.model, judge.data, table, Runtime())
    np.testing.assert_allclose(judge.log_ok(PROBLEMS, TWICE), -nats, rtol=1e-5)
    assert (judge.log_ok(PROBLEMS, RIGHT) > judge.log_ok(PROBLEMS, TWICE)).all()


def test_step_rewards(critic: Path) -> None:
    judge = find(str(critic))
    rewards = judge.step_rewards(PROBLEMS * 2, RIGHT + TWICE)
    assert [len(r) for r in rewards] == [2, 2, 3, 2, 3, 3, 4, 3]  # the steps, and the end
    assert all((np.diff(r) <= 1e-9).all() and (r >= 0).all() and (r <= 1).all() for r in rewards)
    ok = np.exp(judge.log_ok(PROBLEMS * 2, RIGHT + TWICE))
    np.testing.assert_allclose([r[-1] for r in rewards], ok)
    for r in rewards[4:]:  # the second step is the repeated one
        assert r[0] > 0.8 and r[1] < 0.4


@pytest.mark.parametrize("text", ["", "x", "=;=;", "9" * 5000, ";" * 300, "ünï\x00", "<|endoftext|>ok"])
def test_hostile_solutions_are_unreadable_at_worst(critic: Path, text: str) -> None:
    judge = find(str(critic))
    said = judge.critiques(["3+4:", "3+4:"], [text, "3+4=7"])
    assert len(said) == 2 and said[1] is not None and said[1].ok  # beside it others are read as ever
    assert not np.isnan(judge.log_ok(["3+4:"], [text])).any()
    (rewards,) = judge.step_rewards(["3+4:"], [text])
    assert ((rewards >= 0) & (rewards <= 1)).all()


def answered(problems: list[str], responses: list[str]) -> pa.Table:
    n = len(problems)
    payload: dict[str, Any] = {
        "prompt": problems,
        "response": responses,
        "answer": ["0"] * n,
        "task": ["arithmetic"] * n,
        "difficulty": [""] * n,
    }
    return records.make_table(payload, origin="synthetic", generation=1, recipe="solve")


def chosen(table: pa.Table, critic: Path, tmp_path: Path, *overrides: str) -> tuple[pa.Table, pa.Table, dict]:
    x = Experiment(compose([*SOLVER, "curation=critic", f"curation.critic.path={critic}", *overrides]))
    context = Context(x.domain, 1, 0, tmp_path, Inputs({}), x.runtime)
    kept, rejected, counts, _ = curate(table, x.curators, x.control, context)
    return kept, rejected, dict(counts)


def test_curation_keeps_what_the_critic_accepts(critic: Path, tmp_path: Path) -> None:
    table = answered([*PROBLEMS * 2, "3+4:"], [*TWICE, *RIGHT, "9" * 500])
    kept, _, counts = chosen(table, critic, tmp_path)
    assert kept["response"].to_pylist() == RIGHT
    assert counts == {"kept": 4, "critic: repetition": 4, "critic: unparseable": 1}
    judge = find(str(critic))
    np.testing.assert_allclose(kept["score"].to_numpy(), judge.log_ok(PROBLEMS, RIGHT), rtol=1e-5)
    again, _, _ = chosen(table, critic, tmp_path)
    assert again["id"].to_pylist() == kept["id"].to_pylist()


def test_best_keeps_one_of_each_problem(critic: Path, tmp_path: Path) -> None:
    each = [s for pair in zip(TWICE, RIGHT, strict=True) for s in pair]
    table = answered([p for p in PROBLEMS for _ in range(2)], each)
    kept, rejected, _ = chosen(table, critic, tmp_path, "curation.critic.select=best", "recipe.samples=2")
    assert kept["response"].to_pylist() == RIGHT
    assert set(rejected["reason"].to_pylist()) == {"critic: not the best"}


def test_fingerprint_is_of_model_and_tokenizer(critic: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(critic, copy)
    first = find(str(copy)).fingerprint()
    assert first == find(str(critic)).fingerprint() != find(str(copy), chunk=64).fingerprint()
    for name in ("rounds/00/model/model.safetensors", "data/tokenizer/tokenizer.json"):
        path = copy / name
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content + b" ")
        assert find(str(copy)).fingerprint() != first
        path.write_bytes(content)
    assert find(str(copy)).fingerprint() == first


def by(critic: Path | str) -> dict[str, str]:
    return {"_target_": "genloss.systems.shepherd.critic.StepRewards", "path": str(critic)}


def test_a_critic_is_a_reward(critic: Path) -> None:
    said = [*RIGHT, *TWICE, "x"]
    asked = [*PROBLEMS, *PROBLEMS, PROBLEMS[0]]
    p_ok = np.exp(find(str(critic)).log_ok(asked, said))
    product = ResponseReward(["critic"], combine="product", critic=by(critic))
    np.testing.assert_allclose(product.of(asked * 2, said * 2, seed=0), [*p_ok, *p_ok], rtol=1e-6)
    weakest = ResponseReward(["critic"], critic=by(critic)).of(asked, said, seed=1)
    assert (weakest >= p_ok - 1e-9).all() and weakest[:4].min() > weakest[4:8].max()
    (judge,) = product.parts().values()
    assert judge.fingerprint() == find(str(critic)).fingerprint() and not ResponseReward(["process"]).parts()


def test_reinforcement_by_a_critic(critic: Path, tmp_path: Path) -> None:
    grpo = [
        "trainer=grpo",
        "trainer.reward.factors=[critic]",
        f"trainer.reward.critic.path={critic}",
        "trainer.updates=3",
        "trainer.start=previous",
    ]
    done = run(tmp_path / "run", [*grpo, *SOLVER])
    with (done.run_dir.round(1) / "training.csv").open() as file:
        rewards = [float(row["reward"]) for row in csv.DictReader(file)]
    assert len(rewards) == 3 and all(0 < r < 1 for r in rewards)


@pytest.mark.parametrize(("reached", "r"), [([0.8, 0.4, 0.3], 0.5), ([0.0, 0.0], 0.0), ([0.9], 0.9)])
def test_the_weakest_step_counts(reached: list[float], r: float) -> None:
    assert ResponseReward(["critic"], critic=by("x")).weigh(np.array(reached)) == pytest.approx(r)
    assert ResponseReward(["critic"], combine="product", critic=by("x")).weigh(np.array(reached)) == reached[-1]


# -- refinement --------------------------------------------------------------------------------------------------------


def refined(folder: Path, critic: Path, *overrides: str) -> tuple[pa.Table, dict[str, float]]:
    refine = ["recipe=refine", f"recipe.critic={critic}", "metrics=[accuracy,refinement]"]
    loop = run(folder / "run", [*SOLVER[:4], *refine, *SOLVER[4:], *overrides])
    metrics = json.loads((loop.run_dir.round(1) / "metrics.json").read_text())
    return records.read(loop.run_dir.round(1) / "generated.parquet"), metrics


def test_refine(critic: Path, tmp_path: Path) -> None:
    """The solver is hardly trained, so that the critic has something to reject."""
    tables = {}
    for restart in ("step", "start", "random"):
        table, metrics = refined(tmp_path / restart, critic, "recipe.revisions=2", f"recipe.restart={restart}")
        tables[restart] = table
        attempts = table["attempts"].to_pylist()
        assert len(table) == 24 and max(attempts) == 3
        pool = records.read(tmp_path / restart / "run/data/prompts.parquet", rows=(0, 24))
        assert [p for (p,) in table["parents"].to_pylist()] == pool["id"].to_pylist()
        judge = find(str(critic), 16)
        final = judge.critiques(table["prompt"].to_pylist(), table["response"].to_pylist())
        for n, said, last in zip(attempts, table["critiques"].to_pylist(), final, strict=True):
            assert len(said) == n and all(s != "ok" for s in said[:-1])  # an accepted solution is left alone
            assert n == 3 or said[-1] == "ok"
            assert said[-1] == (str(last) if last else "unparseable")
        once = [
            a == b
            for a, b, n in zip(table["first"].to_pylist(), table["response"].to_pylist(), attempts, strict=True)
            if n == 1
        ]
        assert all(once)
        assert metrics["refine/samples"] == pytest.approx(np.mean(attempts))
        assert metrics["refine/gain"] == pytest.approx(metrics["refine/fixed"] - metrics["refine/broken"])
        assert metrics["refine/after"] == metrics["label_accuracy"]
        assert metrics["generate/attempts"] == sum(attempts)
    for other in ("start", "random"):
        assert tables[other]["first"].to_pylist() == tables["step"]["first"].to_pylist()
        assert tables[other]["response"].to_pylist() != tables["step"]["response"].to_pylist()


def test_what_is_kept_of_a_rejected_response() -> None:
    from genloss.generate import Request
    from genloss.systems.shepherd.refine import Refine

    request = Request(Experiment(compose(SOLVER)).domain, 1, 0, Path(), Path(), Inputs({}), Path(), account=Path())
    responses = ["a;b;c", "a;b;c", "a;b;c", "a", "a;b"]
    said = [
        Said(False, 1, "order", "x"),
        Said(False, 3, "order", "x"),
        None,
        Said(False, 9, "order", "x"),
        Said(False, 2, "order", ""),
    ]
    assert Refine(critic="x")._starts(responses, said, 1, request) == ["", "a;b", "", "a", "a"]
    assert Refine(critic="x", restart="start")._starts(responses, said, 1, request) == [""] * 5
    drawn = Refine(critic="x", restart="random")._starts(["a;b;c"] * 300, [said[0]] * 300, 1, request)
    assert {d: drawn.count(d) > 60 for d in set(drawn)} == {"": True, "a": True, "a;b": True}


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["domain.tasks.critique.share_right=1.5"], ["domain.tasks.critique.share_right=1.5", "[0, 1]"]),
        (
            ["domain.tasks.critique.types=[arithmetics]"],
            ["domain.tasks.critique.types=arithmetics", "did you mean arithmetic?"],
        ),
        (["domain.tasks.critique.types=[]"], ["domain.tasks.critique.types=[]", "one or more"]),
        (["domain.tasks.critique.operations=[9]"], ["domain.tasks.critique.operations=9"]),
        (["domain.tasks.critique.types=[order]", "domain.tasks.critique.operations=[1]"], ["operations=[1]", "order"]),
        (["domain.tasks.critique.types=[operator]", "domain.tasks.critique.operators=*"], ["operators=*", "operator"]),
        (["domain.tasks.critique.types=[order]", "domain.tasks.critique.operators=+"], ["operators=+", "order"]),
        (["domain.tasks.critique.operand=0"], ["domain.tasks.critique.operand=0"]),
        (["metrics.critique.max_records=1"], ["metrics.critique.max_records=1"]),
        (["domain/tasks=critique", "~domain.tasks.arithmetic"], ["metrics.critique", "[critique,arithmetic]"]),
    ],
)
def test_bad_critiques(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Experiment(compose(["experiment=critic", *overrides]))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["curation=critic", "curation.critic.path=nowhere"],
            ["curation.critic.path=nowhere", "genloss run experiment=critic"],
        ),
        (["curation=critic"], ["curation.critic.path=runs/critic-*-s0-*", "genloss run experiment=critic"]),
        (["curation=critic", "curation.critic.path=two*"], ["two*", "names 2 folders (two-a, two-b)", "name one"]),
        (["curation=critic", "curation.critic.path=two-a"], ["two-a", "no params.yaml"]),
        (["curation=critic", "curation.critic.path=other"], ["path=other", "a run of Arithmetic, not of a critic"]),
        (["curation=critic", "curation.critic.path=begun"], ["path=begun", "round 0 is not finished"]),
        (["curation=critic", "curation.critic.path=mixed"], ["path=mixed", "a tokenizer of"]),
        (
            ["curation=critic", "curation.critic.path=good", "curation.critic.select=bets"],
            ["select=bets", "did you mean best?"],
        ),
        (
            ["curation=critic", "curation.critic.path=good", "curation.critic.select=best"],
            ["select=best", "recipe.samples=1"],
        ),
        (
            ["curation=critic", "curation.critic.path=good", "domain/tasks=gcd"],
            ["needs worked solutions", "arithmetic"],
        ),
        (
            [
                "curation=evol_reward",
                "recipe.samples=2",
                "curation.evol_reward.factors=[critic]",
                "curation.evol_reward.critic.path=nowhere",
            ],
            ["curation.evol_reward.critic.path=nowhere", "genloss run experiment=critic"],
        ),
        (
            ["curation=evol_reward", "curation.evol_reward.factors=[critic]", "curation.evol_reward.critic=null"],
            ["curation.evol_reward.critic", "is needed by the factor"],
        ),
        (
            ["trainer=grpo", "trainer.start=previous", "trainer.reward.factors=[critic]"],
            ["trainer.reward.critic.path=runs/critic-", "no run directory"],
        ),
        (["recipe=refine", "recipe.critic=nowhere"], ["recipe.critic=nowhere", "genloss run experiment=critic"]),
        (["recipe=refine", "recipe.critic=good", "recipe.revisions=0"], ["recipe.revisions=0", "from 1 to 100"]),
        (["recipe=refine", "recipe.critic=good", "recipe.restart=stop"], ["recipe.restart=stop", "did you mean step?"]),
        (["metrics=[accuracy,refinement]"], ["metrics.refinement", "recipe=refine"]),
        (["metrics=[accuracy,critique]"], ["metrics.critique", "experiment=critic"]),
    ],
)
def test_bad_critics(overrides: list[str], words: list[str], project: Path, critic: Path) -> None:
    for name in ("two-a", "two-b"):
        (project / name).mkdir()
    for name in ("good", "begun", "mixed", "other"):
        shutil.copytree(critic, project / name, ignore=shutil.ignore_patterns("*.parquet"))
    shutil.rmtree(project / "begun/rounds/00/model")
    config = json.loads((project / "mixed/rounds/00/model/config.json").read_text())
    path = project / "mixed/rounds/00/model/config.json"
    path.unlink()
    path.write_text(json.dumps(config | {"vocab_size": 301}))
    params = (project / "other/params.yaml").read_text()
    (project / "other/params.yaml").write_text(
        params.replace("systems.shepherd.task.Critique", "domains.reasoning.arithmetic.Arithmetic")
    )
    with pytest.raises(UserError) as error:
        Experiment(
            compose(["domain=reasoning", "domain/tasks=arithmetic", "domain.context=48", "rounds=1", *overrides])
        )
    for word in words:
        assert word in str(error.value)


def test_a_critic_that_rejects_everything_is_said_to(critic: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"critic: repetition.*loosen the curator"):
        chosen(answered(PROBLEMS, TWICE), critic, tmp_path)
