"""LLM2LLM (Lee et al. 2024): the set algebra of its rounds, its teachers, and what becomes of a bad or a dead one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from genloss.backends.endpoint import Endpoint as ChatEndpoint
from genloss.backends.endpoint import Question
from genloss.backends.reply import read
from genloss.backends.thoughts import without_thoughts
from genloss.core import records
from genloss.core.capabilities import able
from genloss.core.contracts import HISTORY, Decoding, Fit, Inputs, Runtime
from genloss.core.errors import UserError
from genloss.core.prompts import Prompts
from genloss.core.records import normal
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.domains.reasoning import Reasoning
from genloss.domains.reasoning.arithmetic import Arithmetic, expression
from genloss.domains.reasoning.schooled import Schooled
from genloss.domains.reasoning.tasks import Eigenvalues, Gym, Problem
from genloss.experiment import Experiment
from genloss.generate import Request
from genloss.language.trainer import Supervised
from genloss.loop import Loop
from genloss.stages import GENERATE
from genloss.systems.llm2llm.recipe import LLM2LLM
from genloss.systems.llm2llm.teachers import Ask, Teacher
from genloss.systems.llm2llm.teachers.endpoint import PROMPTS, WANTED, final_list
from genloss.systems.llm2llm.teachers.model import Written
from genloss.workflow.compose import compose
from genloss.workflow.identity import arm_id
from support import Handler, Project, serving

TINY = [
    "domain=reasoning",
    "domain/tasks=arithmetic",
    "domain.tasks.arithmetic.operations=[1,2]",
    "domain.tasks.arithmetic.operand=19",
    "domain.context=32",
    "domain.examples=48",
    "domain.validation=32",
    "domain.test=48",
    "domain.pool=1",
    "recipe=llm2llm",
    "mixing=accumulate",
    "size=32",
    "rounds=2",
    "recipe.chunk=16",
    "metrics.accuracy.chunk=32",
    "trainer.steps=48",
    "trainer.batch=16",
    "tracking=none",
    "runtime.workers=1",
]
ENDPOINT = ["recipe/teacher=endpoint", "recipe.teacher.model=m", "recipe.teacher.pause=0"]


def loop(folder: Path, *overrides: str) -> Loop:
    return Loop(Experiment(compose([*TINY, *overrides])), RunDir(folder / "run", Store(folder / "store")))


def ids_and_prompts(path: Path) -> dict[str, str]:
    table = records.read(path)
    return dict(zip(table.column("id").to_pylist(), table.column("prompt").to_pylist(), strict=True))


def wrong(x: Experiment, model: Path, data: Path, table: pa.Table, scratch: Path) -> set[str]:
    """Ids of the problems that a model answers otherwise than the label says: asked again, not taken from the
    recipe."""
    domain = able(x.domain, Reasoning)
    greedy = Decoding(domain.context, bias=0.0, chunk=16)
    backend = domain.backend(model, data, Runtime(workers=1))
    said = backend.respond(table.column("prompt").to_pylist(), greedy, seed=5, scratch=scratch).texts
    labels = [response.rpartition("=")[2] for response in table.column("response").to_pylist()]
    return {
        i
        for i, s, label in zip(table.column("id").to_pylist(), said, labels, strict=True)
        if s.rpartition("=")[2] != label
    }


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_every_new_problem_has_a_seed_that_was_wrong(tmp_path: Path) -> None:
    run = loop(tmp_path, "recipe.k=2", "+schedule.1.trainer.steps=90")
    run.run()
    x, data = run.experiment, run.run_dir.data
    seeds = records.read(data / "train.parquet").slice(0, 32)
    used = {normal(p) for s in ("train", "validation", "test") for p in ids_and_prompts(data / f"{s}.parquet").values()}
    size = 32
    for n in (1, 2):
        missed = wrong(x, run.run_dir.round(n - 1) / "model", data, seeds, tmp_path / str(n))
        assert 0 < len(missed) < 32
        generated = records.read(run.run_dir.round(n) / "generated.parquet")
        assert Counter(i for (i,) in generated.column("parents").to_pylist()) == dict.fromkeys(missed, 2)
        new = {normal(p) for p in generated.column("prompt").to_pylist()}
        assert len(new) == len(generated) == 2 * len(missed) and not new & used  # of this round, of earlier ones, real
        used |= new
        size += 2 * len(missed)  # |D_t+1| = |D_t| + k |wrong seeds_t|
        metrics = json.loads((run.run_dir.round(n) / "metrics.json").read_text())
        assert metrics["train_records"] == size
        assert metrics["generate/wrong_seeds"] == len(missed) == metrics["generate/parents"]
        assert metrics["generate/seed_accuracy"] == pytest.approx(1 - len(missed) / 32)
        rejected = sum(v for k, v in metrics.items() if k.startswith("generate/rejected"))
        assert metrics["generate/requested"] == len(generated) + rejected and metrics["generate/missing"] == 0
        assert metrics["label_accuracy"] == 1
        parents = {r["id"]: r["prompt"] for r in seeds.to_pylist()}
        for row in generated.to_pylist():
            parent, child = expression(parents[row["parents"][0]]), expression(row["prompt"])
            assert shape(child) == shape(parent)


def shape(tree: Any) -> Any:
    return 0 if isinstance(tree, int) else (tree[0], shape(tree[1]), shape(tree[2]))


def test_nothing_is_added_when_all_seeds_are_right(tmp_path: Path) -> None:
    run = loop(tmp_path, "size=4", "domain.examples=48", "trainer.steps=120", "rounds=2", "recipe.errors=all")
    run.run()
    for n in (1, 2):
        metrics = json.loads((run.run_dir.round(n) / "metrics.json").read_text())
        assert metrics["generate/seed_accuracy"] == 1 and metrics["generate/wrong"] == 0
        assert metrics["n_generated"] == metrics["n_kept"] == 0 and metrics["train_records"] == 4
        assert "accuracy" in metrics and "label_accuracy" not in metrics
        generated = records.read(run.run_dir.round(n) / "generated.parquet")
        filled = records.read(run.run_dir.data / "train.parquet")
        assert [generated.schema.field(c).type for c in filled.column_names] == [f.type for f in filled.schema]
    with pytest.raises(UserError, match="mixing=replace: leaves nothing to train on in round 1"):
        loop(tmp_path, "size=4", "domain.examples=48", "trainer.steps=120", "mixing=replace").run()


def test_all_errors_have_earlier_ones_as_parents_too(tmp_path: Path) -> None:
    run = loop(tmp_path, "recipe.errors=all", "recipe.teacher.noise=0.5")
    run.run()
    first = records.read(run.run_dir.round(1) / "kept.parquet")
    seeds = records.read(run.run_dir.data / "train.parquet").slice(0, 32)
    pool = records.concat([seeds.select(["id", "prompt", "response"]), first.select(["id", "prompt", "response"])])
    missed = wrong(run.experiment, run.run_dir.round(1) / "model", run.run_dir.data, pool, tmp_path / "again")
    second = records.read(run.run_dir.round(2) / "generated.parquet")
    assert {i for (i,) in second.column("parents").to_pylist()} == missed
    assert missed & set(first.column("id").to_pylist()) and missed & set(seeds.column("id").to_pylist())


def test_two_runs_are_the_same(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        run = loop(tmp_path / name, "rounds=1", "trainer.steps=20", "recipe.teacher.noise=0.3")
        run.run()
        files = [run.run_dir.round(1) / f for f in ("generated.parquet", "model/model.safetensors")]
        found.append([hashlib.sha256(f.read_bytes()).hexdigest() for f in files])
    assert found[0] == found[1]


# -- one round, with a trained student ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Class:
    data: Path
    model: Path
    wrong: set[str]  # of the seeds

    def round(self, scratch: Path, *overrides: str, teacher: Teacher | None = None) -> tuple[pa.Table, dict[str, Any]]:
        x = Experiment(compose([*TINY, *overrides]))
        assert isinstance(x.recipe, LLM2LLM)
        if teacher is not None:
            x.recipe.tutor = teacher
        table, result = x.recipe.generate(self.request(scratch, x))
        return table, result["counts"]

    def request(self, scratch: Path, x: Experiment | None = None) -> Request:
        x = x or Experiment(compose(TINY))
        nothing_before = Inputs({HISTORY: ()})
        return Request(
            x.domain,
            1,
            7,
            self.model,
            self.data,
            nothing_before,
            scratch,
            Runtime(workers=2),
            account=scratch / "account.json",
        )


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Class:
    folder = tmp_path_factory.mktemp("llm2llm")
    x = Experiment(compose(TINY))
    x.domain.prepare(folder / "data")
    assert isinstance(x.trainer, Supervised)
    seeds = records.read(folder / "data" / "train.parquet").slice(0, 32)
    records.write(seeds.slice(0, 16), folder / "seeds.parquet")  # the others are wrong, most of them
    fit = Fit(
        x.model,
        replace(x.trainer, steps=80),
        folder / "data",
        [folder / "seeds.parquet"],
        [1.0],
        None,
        1,
        folder / "fit",
        x.domain.config("train"),
    )
    fit.out.mkdir()
    x.trainer.train(fit)
    missed = wrong(x, fit.out / "model", folder / "data", seeds, folder / "scratch")
    assert 4 < len(missed) < 30
    return Class(folder / "data", fit.out / "model", missed)


@pytest.mark.parametrize("choose", ["errors", "random"])
def test_a_fixed_budget_is_the_same_in_every_arm(group: Class, tmp_path: Path, choose: str) -> None:
    for n in (5, 70):
        table, counts = group.round(tmp_path / str(n), f"recipe.choose={choose}", f"recipe.n={n}")
        each = Counter(i for (i,) in table.column("parents").to_pylist())
        assert len(table) == n == counts["wanted"] == sum(each.values())
        among = len(group.wrong) if choose == "errors" else 32
        assert len(each) == min(n, among) and max(each.values()) - min(each.values()) <= 1  # as even as can be
        assert (set(each) <= group.wrong) == (choose == "errors" or n == 0)


def test_random_parents_are_as_many_as_errors(group: Class, tmp_path: Path) -> None:
    table, counts = group.round(tmp_path, "recipe.choose=random", "recipe.k=2")
    parents = {i for (i,) in table.column("parents").to_pylist()}
    assert len(parents) == len(group.wrong) == counts["parents"] and len(table) == 2 * len(parents)
    assert parents - group.wrong


@dataclass
class Scripted(Teacher):
    """A teacher that says what a test wants."""

    said: Callable[[Ask, Request], list[Any]] = lambda ask, request: []
    paid = False

    def teach(self, asks: list[Ask], request: Request) -> Iterator[tuple[int, list[Problem | str]]]:
        for i, ask in enumerate(asks):
            yield i, self.said(ask, request)


def problem(prompt: str, response: str = "1") -> Problem:
    return Problem(prompt, "1", "", response)


def test_known_problems_may_not_enter(group: Class, tmp_path: Path) -> None:
    known = {s: list(ids_and_prompts(group.data / f"{s}.parquet").values()) for s in ("test", "validation", "train")}

    def said(ask: Ask, request: Request) -> list[Any]:
        fresh = problem(f"{ask.number}+{ask.attempt}+100:")
        offers = {
            0: [problem(f" {known['test'][3]} ".upper())],
            1: [problem(known["validation"][0])],
            2: [problem(known["train"][40])],
            3: [problem("1+1+1+1+1+1:", "9" * 40)],
            4: [problem("7+7+7+7:")],
            5: ["unparseable"],
            6: [],
        }
        offered: Any = offers.get(ask.attempt, [fresh])
        return [*offered, *([fresh] if ask.attempt == 7 else [])]

    table, counts = group.round(tmp_path, teacher=Scripted(said))
    n = len(group.wrong)
    assert len(table) == n
    rejected = {key: value for key, value in counts.items() if key.startswith("rejected")}
    assert rejected == {
        "rejected_test": n,
        "rejected_validation": n,
        "rejected_seed": n,
        "rejected_too_long": n,
        "rejected_repeated": n - 1,
        "rejected_unparseable": n - 1,
    }
    everything = {normal(p) for s in known.values() for p in s}
    assert not {normal(p) for p in table.column("prompt").to_pylist()} & everything


def test_a_teacher_with_nothing_new_is_given_up(group: Class, tmp_path: Path) -> None:
    asked: list[int] = []

    def said(ask: Ask, request: Request) -> list[Any]:
        asked.append(ask.number)
        return [problem("3+3+3+3:")]

    with pytest.raises(UserError) as error:
        group.round(tmp_path, "recipe.attempts=3", teacher=Scripted(said))
    assert str(error.value).startswith("recipe.attempts=3: is not enough: ") and "\n" not in str(error.value)
    assert f"{len(group.wrong) - 1} of {len(group.wrong)} new problems are missing" in str(error.value)
    assert "rejected_repeated" in str(error.value)
    assert max(Counter(asked).values()) == 3
    table, counts = group.round(tmp_path, "recipe.attempts=3", "recipe.shortfall=accept", teacher=Scripted(said))
    assert len(table) == 1 and counts["missing"] == len(group.wrong) - 1


# -- teachers: the program ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [
        Arithmetic([3], 19),
        Arithmetic([2], solutions=False),
        Eigenvalues([2, 3]),
        Gym("chain_sum", {"min_terms": 2, "max_terms": 3}),
    ],
)
def test_problems_like_another(family: Any) -> None:
    parent = next(p for p in family.problems(1) if p.difficulty)
    made = family.like(parent, 2, 30)
    assert made == family.like(parent, 2, 30) != family.like(parent, 3, 30) and len(made) == 30
    assert {p.difficulty for p in made} == {parent.difficulty}
    responses = [p.solution or p.answer for p in made]
    assert family.verify(pa.array(responses), pa.array([p.answer for p in made])).right.all()
    errs = [family.wrong(p, i) for i, p in enumerate(made)]
    checked = family.verify(pa.array(errs), pa.array([p.answer for p in made]))
    assert checked.parsed.all() and not checked.right.any()
    assert [family.final(p.solution or p.answer) for p in made] == [p.answer for p in made]


def test_arithmetic_solves_what_others_wrote() -> None:
    family = Arithmetic()
    assert (
        family.solve("3+4*2:") == "11" and family.solve("__import__('os'):") is None and family.solve("3+4*2") is None
    )
    assert family.like(Problem("3+4=", "7", ""), 0, 5) == []


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_noise_is_the_share_of_wrong_labels(group: Class, tmp_path: Path, noise: float) -> None:
    table, _ = group.round(tmp_path, f"recipe.teacher.noise={noise}", "recipe.n=200", "recipe.attempts=30")
    x = Experiment(compose(TINY))
    right = able(x.domain, Reasoning).verify(table).right
    assert abs(1 - right.mean() - noise) <= 4 * np.sqrt(noise * (1 - noise) / 200)
    family = Arithmetic()
    assert table.column("answer").to_pylist() == [family.solve(p) for p in table.column("prompt").to_pylist()]


# -- teachers: a model -------------------------------------------------------------------------------------------------


def test_a_model_writes_problems(group: Class, tmp_path: Path) -> None:
    template = "{prompt} {response};"
    x = Experiment(compose(["domain.context=64", "model.width=64", "trainer.batch=16", "trainer.steps=250"]))
    made = Arithmetic([1], 5, solutions=False).problems(0)
    lines = [
        "".join(template.format(prompt=p.prompt, response=p.answer) for p in made[i : i + 2])
        for i in range(0, len(made), 2)
    ]
    data = tmp_path / "data"
    (data / "tokenizer").mkdir(parents=True)
    for file in (group.data / "tokenizer").iterdir():
        (data / "tokenizer" / file.name).write_bytes(file.read_bytes())
    table = records.make_table({"text": lines}, origin="real", generation=0, recipe="t")
    for name in ("train", "validation"):
        records.write(table, data / f"{name}.parquet")
    fit = Fit(x.model, x.trainer, data, [data / "train.parquet"], [1.0], None, 1, tmp_path / "fit", {"context": 64})
    fit.out.mkdir()
    x.trainer.train(fit)
    options = [
        "recipe/teacher=model",
        f"recipe.teacher.path={fit.out / 'model'}",
        f"recipe.teacher.template='{template}'",
        "recipe.teacher.max_tokens=48",
        "recipe.attempts=3",
        "recipe.shortfall=accept",
    ]
    found, counts = group.round(tmp_path / "a", *options)
    assert len(found) > 5 and counts["requested"] > len(found) and counts["rejected_unparseable"] > 0
    prompts, responses, answers = (found.column(c).to_pylist() for c in ("prompt", "response", "answer"))
    assert answers == [Arithmetic().solve(p) for p in prompts]  # exact, whatever the model says
    assert all(";" not in r for r in responses) and set(found.column("task").to_pylist()) == {"arithmetic"}
    again, _ = group.round(tmp_path / "b", *options)
    assert again == found


def test_what_a_model_writes_is_read_by_the_template() -> None:
    teacher = Written(path="x")
    ask = Ask(0, "t", Problem("P", "4", "", "2+2=4"), 1)
    assert teacher.show(ask) == "Problem: P\nAnswer: 2+2=4\n\nProblem: "
    assert teacher.parse("Q?\nAnswer: 5\n\nProblem: R", records.CUT) == ("Q?", "5")
    assert teacher.parse("<think>P\nAnswer: 4\n\n</think>Q?\nAnswer: 5\n\n", records.CUT) == ("Q?", "5")
    assert teacher.parse("Q?\nAnswer: 5", records.ENDED) is None and teacher.parse("Q? 5\n\n", records.ENDED) is None


# -- teachers: an endpoint ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("GENLOSS_STORE", str(tmp_path / "kept-replies"))


def received(folder: Path) -> int:
    """Replies that are on the disk."""
    return len(list(folder.glob("kept-replies/replies/*/*.json")))


def good(number: int, body: dict[str, Any] | None = None) -> str:
    """Another problem for every request, in the words that models like to put around it."""
    made = [{"problem": f"{number}+1+2:", "answer": f"{number}+1={number + 1};{number + 1}+2={number + 3}"}]
    return f"Sure [1]! Here it is:\n```json\n{json.dumps(made)}\n```"


def test_an_endpoint_is_asked_as_in_the_paper(group: Class, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-12345")
    with serving(good) as server:
        table, counts = group.round(
            tmp_path,
            *ENDPOINT,
            f"recipe.teacher.url={server.url}",
            "recipe.teacher.key=MY_KEY",
            "+recipe.teacher.options={seed: 3}",
        )
    n = len(group.wrong)
    assert len(table) == n == len(server.bodies) == counts["requested"]
    assert {i for (i,) in table.column("parents").to_pylist()} == group.wrong
    seeds = {r["id"]: r for r in records.read(group.data / "train.parquet").to_pylist()}
    asked = {body["messages"][-1]["content"] for body in server.bodies}
    assert asked == {
        f"Problem:\n{seeds[i]['prompt']}\nCorrect answer:\n{seeds[i]['response']}\nWrite 1 new problem."
        for i in group.wrong
    }  # and nothing of what the student said
    body = server.bodies[0]
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][0]["content"] == Prompts.read(PROMPTS, WANTED)["system"] and final_list(
        body["messages"][2]["content"]
    )
    assert (body["model"], body["temperature"], body["top_p"], body["seed"]) == ("m", 1.0, 1.0, 3)
    assert {h["Authorization"] for h in server.headers} == {"Bearer secret-12345"}
    for file in [*tmp_path.rglob("*")]:
        assert file.is_dir() or b"secret-12345" not in file.read_bytes()


def test_replies_come_in_order_and_once(tmp_path: Path) -> None:
    """However long each takes; what was received is found again, also where a failure came before it."""
    asked = [(number, Question({"messages": [{"role": "user", "content": f"{number}?"}]})) for number in (0, 3, 12)]

    def behave(number: int, body: dict[str, Any]) -> str:
        said = body["messages"][0]["content"]
        time.sleep(0.3 if said == "0?" else 0)
        return said + "!"

    with serving(behave) as server:
        backend = ChatEndpoint(url=server.url, model="m", pause=0)
        for _ in range(2):
            found = [(number, reply.text) for number, reply in backend.replies(asked, workers=2)]
            assert found == [(0, "0?!"), (3, "3?!"), (12, "12?!")] and len(server.bodies) == 3
        assert backend.found == 3
        other = asked[0][1]._replace(stream=1)  # another record with the same prompt
        assert backend.reply(other).text == "0?!" and len(server.bodies) == 4
    with serving(lambda number, body: (404, b"") if "0?" in body["messages"][0]["content"] else "yes") as server:
        backend = ChatEndpoint(url=server.url, model="m")
        with pytest.raises(UserError, match=rf"^url={server.url}: answers HTTP 404; what was received is kept"):
            for number, _ in backend.replies(asked, workers=2):
                assert number
        given = server.given
    assert [backend.place(question).is_file() for _, question in asked].count(True) == given


def test_a_second_ask_shows_what_was_kept(group: Class, tmp_path: Path) -> None:
    with serving(good) as server:
        table, _ = group.round(tmp_path, *ENDPOINT, f"recipe.teacher.url={server.url}", "recipe.k=3")
    last = max((b["messages"][-1]["content"] for b in server.bodies), key=len)
    kept = [line.removeprefix("- ") for line in last.splitlines() if line.startswith("- ")]
    assert len(kept) == 2 and set(kept) <= set(table.column("prompt").to_pylist())
    assert last.endswith("Write 1 new problem.") and "write others" in last
    assert any(b["messages"][-1]["content"].endswith("Write 3 new problems.") for b in server.bodies)


def slow(handler: Handler) -> None:
    time.sleep(1.0)


def dripping(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def hanging_up(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"{")


BAD = {
    "timeout": (slow, "timeout"),
    "dripping": (dripping, "timeout"),
    "hanging up": (hanging_up, "last: "),
    "busy": ((503, b"later"), "HTTP 503"),
    "too fast": ((429, b""), "HTTP 429"),
    "no JSON": ((200, b"<html>"), "no completion"),
    "other JSON": ((200, b'{"choices": []}'), "no completion"),
    "deep": ((200, b"[" * 100_000), "no completion"),
    "endless": ((200, b" " * (1 << 19)), "bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_passing_trouble_is_tried_again_and_then_reported(group: Class, tmp_path: Path, name: str) -> None:
    trouble, words = BAD[name]
    bad = True

    def behave(number: int, body: dict[str, Any]) -> Any:
        return trouble if bad and number >= 3 else good(number)

    with serving(behave) as server:
        options = [
            *ENDPOINT,
            f"recipe.teacher.url={server.url}",
            "recipe.teacher.attempts=2",
            "recipe.teacher.timeout=0.3",
        ]
        with pytest.raises(UserError) as error:
            group.round(tmp_path, *options)
        assert str(error.value).startswith(f"recipe.teacher.url={server.url}: gave no reply in 2 attempts (the last: ")
        assert words in str(error.value) and "\n" not in str(error.value) and "run again" in str(error.value)
        assert len(server.bodies) <= 3 + 2 * 3  # those on their way ended; no others were begun
        assert received(tmp_path) == server.given == 3
        bad = False
        table, counts = group.round(tmp_path, *options)
        assert len(table) == len(group.wrong) == server.given  # none was asked for twice
        assert counts["requested"] == len(table)


def test_the_same_command_goes_on_after_trouble(tmp_path: Path) -> None:
    bad = True

    def behave(number: int, body: dict[str, Any]) -> Any:
        return (500, b"") if bad and number >= 4 else good(number)

    with serving(behave) as server:
        options = [*ENDPOINT, f"recipe.teacher.url={server.url}", "recipe.teacher.attempts=1", "rounds=1"]
        with pytest.raises(UserError, match="gave no reply in 1 attempts"):
            loop(tmp_path, *options).run()
        bad = False
        run = loop(tmp_path, *options)
        run.run()
    metrics = json.loads((run.run_dir.round(1) / "metrics.json").read_text())
    asked = server.given - 1  # and a greeting
    assert metrics["n_generated"] == metrics["generate/wrong_seeds"] == metrics["generate/requested"] == asked > 4
    assert metrics["label_accuracy"] == 1


def test_one_trouble_among_replies_does_not_stop_the_round(group: Class, tmp_path: Path) -> None:
    with serving(lambda number, body: (500, b"") if number % 3 == 0 else good(number)) as server:
        table, _ = group.round(tmp_path, *ENDPOINT, f"recipe.teacher.url={server.url}", "recipe.teacher.attempts=9")
    assert len(table) == len(group.wrong) == server.given < len(server.bodies)


def test_a_refused_key_is_reported_at_once(group: Class, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-12345")
    with serving(lambda number, body: (401, b"wrong key: secret-12345")) as server:
        with pytest.raises(UserError, match="HTTP 401; put the key into the variable OPENAI_API_KEY") as error:
            group.round(tmp_path, *ENDPOINT, f"recipe.teacher.url={server.url}")
        assert len(server.bodies) <= 2 + 1 and "secret" not in str(error.value)
    with pytest.raises(UserError, match="gave no reply in 2 attempts"):  # and the server is gone
        group.round(tmp_path, *ENDPOINT, f"recipe.teacher.url={server.url}", "recipe.teacher.attempts=2")


def test_a_slow_endpoint_has_seconds_a_round(group: Class, tmp_path: Path) -> None:
    def behave(number: int, body: dict[str, Any]) -> Any:
        time.sleep(0.2)
        return good(number)

    began = time.monotonic()
    with (
        serving(behave) as server,
        pytest.raises(UserError, match=r"took longer than recipe.teacher.seconds=0.5|gave no reply"),
    ):
        group.round(tmp_path, *ENDPOINT, f"recipe.teacher.url={server.url}", "recipe.teacher.seconds=0.5")
    assert time.monotonic() - began < 10
    assert server.given >= 2 and received(tmp_path) >= 2


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("I would rather not.", "rejected_unparseable"),
        ("[]", "rejected_empty"),
        ("[" * 5000, "rejected_unparseable"),
        ('[{"problem": "1+2:"}]', "rejected_unparseable"),
        ('[{"problem": ["1+2:"], "answer": "3"}]', "rejected_unparseable"),
        ('[{"problem": "1+2+\\ud800:", "answer": "3"}]', "rejected_unparseable"),
        ('[{"problem": "1+2", "answer": "3"}]', "rejected_of_another_kind"),
        ('[{"problem": "__import__(\'os\')", "answer": "3"}]', "rejected_of_another_kind"),
        ('[{"problem": "", "answer": "3"}]', "rejected_unparseable"),
    ],
)
def test_nonsense_is_rejected_and_asked_for_again(group: Class, tmp_path: Path, said: str, reason: str) -> None:
    with serving(lambda number, body: said if number < len(group.wrong) else good(number)) as server:
        table, counts = group.round(tmp_path, *ENDPOINT, f"recipe.teacher.url={server.url}")
    assert len(table) == len(group.wrong) == counts[reason]
    assert len(server.bodies) == 2 * len(table) == counts["requested"]
    assert "could not be used" in server.bodies[-1]["messages"][-1]["content"]


def test_the_same_item_forever_ends_and_can_be_resumed(group: Class, tmp_path: Path) -> None:
    n = len(group.wrong)
    same = True
    with serving(lambda number, body: good(7 if same else number)) as server:
        options = [*ENDPOINT, f"recipe.teacher.url={server.url}", "recipe.attempts=2"]
        with pytest.raises(UserError, match=rf"recipe.attempts=2: is not enough: {n - 1} of {n} .*run again"):
            group.round(tmp_path, *options)
        assert len(server.bodies) == n + n - 1
        same = False
        table, _ = group.round(tmp_path, *options)
    assert len(table) == n and len(server.bodies) == n + 2 * (n - 1)


DRAFT, ANSWER = (f'[{{"problem": "{a}+1+2:", "answer": "{b}"}}]' for a, b in ((5, 0), (6, 9)))


@pytest.mark.parametrize(
    "said",
    [
        f"<think>{DRAFT}</think>{ANSWER}",
        f"<think>\n{DRAFT} or {DRAFT}\n</think>\n\nHere:\n```json\n{ANSWER}\n```",
        f"{DRAFT}</think>{ANSWER}",  # some templates put <think> into the prompt
        f"<think>one <think>two</think> {DRAFT}</think> {ANSWER}",
        f"<think>{DRAFT}</think>{ANSWER}<think>{DRAFT}</think>",
        f"<Thinking>{DRAFT}</Thinking>{ANSWER}",
        f"<seed:think>{DRAFT}</seed:think>{ANSWER}",
        f"[THINK]{DRAFT}[/THINK]{ANSWER}",
        f"◁think▷{DRAFT}◁/think▷{ANSWER}",
        f"<|START_THINKING|>{DRAFT}<|END_THINKING|>{ANSWER}",
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>",
        f"First try: {DRAFT}. No, 5+1+2 is 8. {ANSWER}",
        f"{ANSWER} []",
        f"{ANSWER}<think>{DRAFT}",  # cut off
    ],
)
def test_drafts_are_no_answers(said: str) -> None:
    text = read(json.dumps({"choices": [{"message": {"content": said}}]}).encode()).text
    assert final_list(without_thoughts(text)) == json.loads(ANSWER)


@pytest.mark.parametrize("said", [f"<think>{DRAFT}", f"<think>{DRAFT}</think>", f"{DRAFT}</think>"])
def test_a_thought_without_an_answer_is_unparseable(group: Class, tmp_path: Path, said: str) -> None:
    with serving(lambda number, body: said if number < len(group.wrong) else good(number)) as server:
        table, counts = group.round(tmp_path, *ENDPOINT, f"recipe.teacher.url={server.url}")
    assert counts["rejected_unparseable"] == len(table) == len(group.wrong)
    assert "5+1+2:" not in table.column("prompt").to_pylist()


def test_a_teacher_of_nonsense_is_stopped(group: Class, tmp_path: Path) -> None:
    with serving(lambda number, body: "I would rather not.") as server:
        options = [*ENDPOINT, f"recipe.teacher.url={server.url}", "recipe.attempts=100"]
        with pytest.raises(UserError, match=r"budget.refused=0.95: 100 of the last 100 .* \(100 unparseable\)"):
            group.round(tmp_path, *options)
    assert 100 <= len(server.bodies) <= 104


def test_a_budget_that_is_raised_goes_on(group: Class, tmp_path: Path) -> None:
    n = len(group.wrong)
    with serving(good) as server:
        options = [*ENDPOINT, f"recipe.teacher.url={server.url}"]
        with pytest.raises(UserError, match=r"^recipe.teacher.budget.round.requests=3: is spent \(3\)"):
            group.round(tmp_path, *options, "recipe.teacher.budget.round.requests=3")
        assert len(server.bodies) == 3
        table, counts = group.round(tmp_path, *options, f"recipe.teacher.budget.round.requests={n}")
    assert len(table) == len(server.bodies) == counts["requests"] == n and counts["tokens_sent"] > n
    assert "money" not in counts
    poor, rich = (
        Experiment(compose([*TINY, *options, f"recipe.teacher.budget.sweep.requests={limit}"])).cfg for limit in (1, 2)
    )
    assert arm_id(poor) == arm_id(rich)


def test_arms_of_a_sweep_share_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four requests an arm and a greeting, and six for both."""
    for name in ("commit", "committed"):  # takes seconds, and DVC is not asked
        monkeypatch.setattr(f"genloss.workflow.arm.{name}", lambda folder: True)
    home = Project.make(tmp_path / "project")
    small = [*TINY, "size=4", "rounds=1", "trainer.steps=2", "recipe.errors=all"]
    with serving(good) as server:
        command = ["run", "-m", *small, *ENDPOINT, f"recipe.teacher.url={server.url}", "seed=0,1"]
        result = home.call(*command, "recipe.teacher.budget.sweep.requests=6")
        assert result.code == 1 and "1 of 2 arms failed" in result.err and len(server.bodies) == 6
        assert "recipe.teacher.budget.sweep.requests=6: is spent (6)" in result.err
        [account] = home.root.glob("runs/**/spent.json")
        assert (account.parent / "sweep.json").is_file() and json.loads(account.read_text())["requests"] == 6
        home.ok(*command, "recipe.teacher.budget.sweep.requests=9")
        assert len(server.bodies) == 9 and json.loads(account.read_text())["requests"] == 9


def test_a_rerun_is_free_and_the_same(group: Class, tmp_path: Path) -> None:
    """Of the whole round, and after a failure in the middle; with copies, of which the order decides."""
    with serving(lambda number, body: good(number // 2)) as server:
        options = [*ENDPOINT, f"recipe.teacher.url={server.url}"]
        table, counts = group.round(tmp_path / "a", *options)
        asked = len(server.bodies)
        again, more = group.round(tmp_path / "b", *options)
        assert again == table and len(server.bodies) == asked and more["requests"] == 0
        assert more["replies_found"] == asked == counts["requests"] and counts["rejected_repeated"] > 0
        other = Class(group.data, group.model, group.wrong)
        changed = Experiment(compose([*TINY, *options]))
        request = replace(other.request(tmp_path / "c", changed), seed=8)  # another stream
        changed.recipe.generate(request)
        assert len(server.bodies) > asked


def test_replies_that_are_cut_off_are_no_problems(group: Class, tmp_path: Path) -> None:
    """Though a list is whole in them: it may be a draft."""

    def behave(number: int, body: dict[str, Any]) -> Any:
        cut = number < len(group.wrong)
        choice = {"message": {"content": good(number)}, "finish_reason": "length" if cut else "stop"}
        return 200, json.dumps({"choices": [choice]}).encode()

    with serving(behave) as server:
        table, counts = group.round(tmp_path, *ENDPOINT, f"recipe.teacher.url={server.url}")
    assert counts["rejected_cut_off"] == len(group.wrong) == len(table)


def test_other_prompts(group: Class, tmp_path: Path) -> None:
    """A file of the user's: what it says is sent, and its hash is in the key and in the results."""
    file = tmp_path / "words.yaml"
    file.write_text(PROMPTS.read_text().replace("experienced tutor", "old sailor").replace("version: 1", "version: 7"))
    options = [*ENDPOINT, f"recipe.teacher.prompts={file}"]
    with serving(good) as server:
        x = Experiment(compose([*TINY, *options, f"recipe.teacher.url={server.url}"]))
        _, result = x.recipe.generate(group.request(tmp_path, x))
        assert "old sailor" in server.bodies[0]["messages"][0]["content"]
    assert result["prompts"] == {"version": 7, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    for text, words in (("version: 1", "exactly the keys"), ("a: [", "no file of prompts"), (None, "no file")):
        file.unlink() if text is None else file.write_text(text)
        with pytest.raises(UserError, match=rf"recipe.teacher.prompts={file}: .*{words}"):
            Experiment(compose([*TINY, *options]))


def test_a_wrong_label_of_an_endpoint_is_measured(group: Class, tmp_path: Path) -> None:
    def behave(number: int, body: dict[str, Any]) -> str:
        return json.dumps([{"problem": f"{number}+1+2:", "answer": number + 3 + number % 2}])

    with serving(behave) as server:
        table, _ = group.round(tmp_path, *ENDPOINT, f"recipe.teacher.url={server.url}")
    right = able(Experiment(compose(TINY)).domain, Reasoning).verify(table).right
    assert right.tolist() == [int(p.partition("+")[0]) % 2 == 0 for p in table.column("prompt").to_pylist()]


KILLED = """
import sys
from pathlib import Path
from genloss.workflow.compose import compose
from genloss.experiment import Experiment
from genloss.core.contracts import HISTORY, Inputs, Runtime
from genloss.generate import Request
data, model, scratch, *overrides = sys.argv[1:]
x = Experiment(compose(overrides))
nothing_before = Inputs({HISTORY: ()})
scratch, runtime = Path(scratch), Runtime(workers=1)
request = Request(x.domain, 1, 7, Path(model), Path(data), nothing_before, scratch, runtime, account=scratch / "a.json")
x.recipe.generate(request)
"""


def test_a_kill_loses_no_reply(group: Class, tmp_path: Path) -> None:
    reached = threading.Event()

    def behave(number: int, body: dict[str, Any]) -> Any:
        if number == 6 and not reached.is_set():  # six were answered, and with one thread received
            reached.set()
            return slow
        return good(number)

    with serving(behave) as server:
        options = [*ENDPOINT, f"recipe.teacher.url={server.url}"]
        arguments = [str(group.data), str(group.model), str(tmp_path), *TINY, *options]
        child = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], env=dict(os.environ))
        assert reached.wait(120)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert server.given == 6 == received(tmp_path)
        table, _ = group.round(tmp_path, *options)
        assert len(table) == len(group.wrong) == server.given


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["recipe.choose=error"], ["recipe.choose=error", "did you mean errors"]),
        (["recipe.errors=some"], ["recipe.errors=some", "seeds"]),
        (["recipe.shortfall=ignore"], ["recipe.shortfall", "accept"]),
        (["recipe.k=0"], ["recipe.k=0", "at least 1"]),
        (["recipe.n=0"], ["recipe.n=0", "null"]),
        (["recipe.seed_problems=16"], ["recipe.seed_problems=16", "mixing.real.n=32"]),
        (["recipe.teacher.noise=2"], ["recipe.teacher.noise=2", "[0, 1]"]),
        (["recipe.teacher._target_=genloss.domains.reasoning.solve.Solve"], ["recipe.teacher._target_", "Teacher"]),
        (["recipe/teacher=model", "recipe.teacher.path=nowhere"], ["recipe.teacher.path=nowhere", "config.json"]),
        (
            ["recipe/teacher=model", "recipe.teacher.path=x", "recipe.teacher.template='{prompt}{response}'"],
            ["recipe.teacher.template"],
        ),
        ([*ENDPOINT, "recipe.teacher.url=ftp://x"], ["recipe.teacher.url=ftp://x", "http"]),
        ([*ENDPOINT, "recipe.teacher.url=https://u:hidden@x"], ["recipe.teacher.url:", "environment variable"]),
        ([*ENDPOINT, "recipe.teacher.key=sk-hidden"], ["recipe.teacher.key:", "environment variable"]),
        ([*ENDPOINT, "recipe.teacher.attempts=0"], ["recipe.teacher.attempts=0"]),
        ([*ENDPOINT, "recipe.teacher.timeout=0"], ["recipe.teacher.timeout=0"]),
    ],
)
def test_bad_input(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Experiment(compose([*TINY, *overrides]))
    for word in words:
        assert word in str(error.value)
    assert "hidden" not in str(error.value)


def test_it_needs_problems_with_answers() -> None:
    with pytest.raises(UserError, match="recipe=LLM2LLM: needs models that answer prompts, and domain=text has none"):
        Experiment(compose(["recipe=llm2llm"]))


def test_the_key_of_a_stage_holds_the_teacher() -> None:
    first, second = (
        GENERATE.code(Experiment(compose([*TINY, *options]))).modules()
        for options in ([], [*ENDPOINT, "recipe.teacher.url=http://x"])
    )
    assert "genloss.systems.llm2llm.teachers.program" in first.keys() - second.keys()
    assert {"genloss.systems.llm2llm.teachers.endpoint", "genloss.backends.endpoint"} <= second.keys() - first.keys()


# -- a student that was schooled ---------------------------------------------------------------------------------------

SCHOOL = ["model=schooled", "model.examples=80", "model.steps=20", "model.batch=16"]


def test_a_schooled_student_starts_from_one_base(group: Class, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import load_file

    x = Experiment(compose([*TINY, *SCHOOL]))
    assert isinstance(x.model, Schooled) and isinstance(x.trainer, Supervised)
    found = []
    for name, seed in (("a", 1), ("b", 2)):  # another seed of the run, another store: the same base
        monkeypatch.setenv("GENLOSS_STORE", str(tmp_path / name))
        fit = Fit(
            x.model,
            replace(x.trainer, steps=1, lr=1e-9),
            group.data,
            [group.data / "train.parquet"],
            [1.0],
            None,
            seed,
            tmp_path / f"fit-{name}",
            x.domain.config("train"),
        )
        fit.out.mkdir()
        x.trainer.train(fit)
        (base,) = (tmp_path / name / "bases").glob("[!.]*")
        made = (base / "model.safetensors").stat().st_mtime_ns
        assert x.model.base(fit) == base and (base / "model.safetensors").stat().st_mtime_ns == made
        found.append(load_file(base / "model.safetensors"))
        for key, value in load_file(fit.out / "model" / "model.safetensors").items():
            np.testing.assert_allclose(value, found[-1][key], atol=1e-7)
    assert all((found[0][key] == found[1][key]).all() for key in found[0])


def test_the_school_knows_no_problem_of_the_splits(group: Class) -> None:
    x = Experiment(compose([*TINY, *SCHOOL, "model.examples=500", "model.tasks.sums.operations=[1]"]))
    assert isinstance(x.model, Schooled)
    with pytest.raises(UserError, match=r"model.tasks.sums: has only \d+ other problems, and 500 are asked for"):
        x.model.problems(group.data)
    table = replace(x.model, examples=150).problems(group.data)
    taught = {normal(p) for p in table.column("prompt").to_pylist()}
    assert len(taught) == len(table) == 150
    for split in ("train", "validation", "test"):
        assert not taught & {normal(p) for p in ids_and_prompts(group.data / f"{split}.parquet").values()}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*TINY, *SCHOOL, "~model.tasks"], ["model.tasks"]),
        ([*TINY, *SCHOOL, "model.tasks.sums.operations=[9]"], ["model.tasks.sums.operations=9"]),
        ([*TINY, *SCHOOL, "model.lr=0"], ["model.lr=0"]),
        (["model=schooled"], ["model=Schooled: needs problems with exact answers", "use domain=reasoning"]),
    ],
)
def test_bad_schools(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Experiment(compose(overrides))
    for word in words:
        assert word in str(error.value)


def test_the_schedule_of_an_experiment_can_be_dropped_or_shortened() -> None:
    whole, shorter, none = (
        compose(["experiment=llm2llm", *more]) for more in ([], ["rounds=2", "~schedule.3"], ["~schedule"])
    )
    assert [sorted(cfg.schedule) for cfg in (whole, shorter, none)] == [["1", "2", "3"], ["1", "2"], []]
    assert [able(Experiment(cfg).at_round(2).trainer, Supervised).steps for cfg in (whole, shorter, none)] == [
        300,
        300,
        100,
    ]
    assert none.dvc.rounds["02"].overrides == {}
