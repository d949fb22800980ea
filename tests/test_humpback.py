"""Humpback: both directions of the same splits, instructions to documents, ratings by digits and in words."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genloss.core import records
from genloss.core.contracts import FIRST, LAST, Inputs, Runtime
from genloss.core.errors import UserError
from genloss.curate import Context
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.domains.instruct.chats import backward
from genloss.domains.instruct.judging import Rating, chosen, grade_of
from genloss.domains.instruct.world import World
from genloss.experiment import Experiment
from genloss.generate import Request
from genloss.language.chat import SYSTEM, wrong
from genloss.systems.humpback.recipe import Backtranslate
from genloss.workflow.compose import compose
from support import Project, serving, undocumented

TINY = [
    *("domain.corpus.skills.answer=0.6", "domain.corpus.skills.rate=0.4"),
    *("hydra.mode=RUN", "seed=0", "tracking=none", "domain.examples=64", "domain.validation=16", "domain.test=32"),
    *("model.layers=1", "model.width=32", "model.feed_forward=32", "trainer.batch=8"),
]
BEFORE = [*TINY, "experiment=humpback/backward", "size=16", "trainer.steps=60"]
AFTER = [
    *(
        *TINY,
        "experiment=humpback",
        "size=64",
        "domain.documents=48",
        "recipe.n=48",
        "recipe.author.chunk=8",
        "rounds=2",
    ),
    *("trainer.steps=4", "curation.rating.least=null", "curation.rating.fraction=0.5"),
    *("recipe.author.model=runs/humpback-backward-*-s0-*/rounds/00/model",),
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    home = Project.make(tmp_path_factory.mktemp("humpback") / "project")
    home.ok("run", *BEFORE)
    return home, home.root / home.ok("run", *AFTER, "runtime.workers=1").folder


@pytest.fixture
def work(ran: tuple[Project, Path], tmp_path: Path) -> Iterator[tuple[Experiment, Request, Context]]:
    """What the recipe and the curator of round 1 are handed."""
    home, folder = ran
    with home.here():
        x = Experiment(compose([o for o in AFTER if not o.startswith("hydra.")]))
        last = Inputs({FIRST: (), LAST: (folder / "rounds/00/model",)})
        (tmp_path / "scratch").mkdir()
        request = Request(
            x.domain,
            1,
            7,
            last[LAST],
            folder / "data",
            last,
            tmp_path / "scratch",
            Runtime(1),
            account=tmp_path / "spent",
        )
        yield x, request, Context(x.domain, 1, 3, folder / "data", last, Runtime(1), scratch=tmp_path / "scratch")


def messages_of(table: pa.Table) -> list[list[dict[str, str]]]:
    found: list[list[dict[str, str]]] = table.column("messages").to_pylist()
    return found


def generated(folder: Path, n: int) -> pa.Table:
    return records.read(folder / f"rounds/{n:02d}/generated.parquet")


# -- directions --------------------------------------------------------------------------------------------------------


def test_backward_data_are_the_pairs_reversed(tmp_path: Path) -> None:
    """Of every split, in its order, and nothing else: what one direction is tested on the other does not learn."""
    corpus = {"_target_": "genloss.domains.instruct.world.World", "skills": {"answer": 0.5, "rate": 0.5}}
    options: dict[str, Any] = {"corpus": corpus, "examples": 100, "validation": 20, "test": 30, "pool": 10}
    Instruct(**options).prepare(tmp_path / "forward")
    counts = Instruct(**options, direction="backward").prepare(tmp_path / "backward")
    world = World(skills=corpus["skills"])  # type: ignore[arg-type]
    for split in ("train", "validation", "test", "prompts"):
        there = messages_of(records.read(tmp_path / f"forward/{split}.parquet"))
        pairs = [m for m in there if len(m) == 2 and world.skill(m) == "answer"]
        made = messages_of(records.read(tmp_path / f"backward/{split}.parquet"))
        assert made == [backward(m) for m in pairs] and counts[split] == len(made) and 0 < len(made) < len(there)
        assert [backward(m) for m in made] == pairs
    domain = Instruct(**options, direction="backward")
    assert not isinstance(domain.source, World) and set(domain.parts()) == {"corpus"}


def test_nothing_to_reverse(tmp_path: Path) -> None:
    corpus = {"_target_": "genloss.domains.instruct.world.World", "skills": {"answer": 0.0, "rate": 1.0}}
    with pytest.raises(UserError, match=r"domain\.direction=backward: needs pairs .*test has none; raise domain\.test"):
        Instruct(corpus=corpus, examples=20, validation=4, test=8, pool=4, direction="backward").prepare(tmp_path)


def test_a_tag_is_the_system_prompt_of_those_that_have_none(tmp_path: Path) -> None:
    corpus = {"_target_": "genloss.domains.instruct.world.World", "systems": 0.5}
    options: dict[str, Any] = {"corpus": corpus, "examples": 60, "validation": 4, "test": 30, "pool": 10}
    Instruct(**options).prepare(tmp_path / "plain")
    Instruct(**options, system="so.").prepare(tmp_path / "tagged")
    for split in ("train", "test"):
        plain, tagged = (
            messages_of(records.read(tmp_path / f"{name}/{split}.parquet")) for name in ("plain", "tagged")
        )
        own = [m[0]["role"] == SYSTEM for m in plain]
        assert any(own) and not all(own)
        tag = [{"role": SYSTEM, "content": "so."}]
        assert tagged == [m if has else [*tag, *m] for m, has in zip(plain, own, strict=True)]
        assert World().verify(tagged).right.all()


# -- candidates --------------------------------------------------------------------------------------------------------


def test_candidates_are_documents_with_instructions(ran: tuple[Project, Path]) -> None:
    _, folder = ran
    table = generated(folder, 1)
    documents = records.read(folder / "data/documents.parquet")
    text = dict(zip(documents.column("id").to_pylist(), documents.column("text").to_pylist(), strict=True))
    metrics = json.loads((folder / "rounds/01/metrics.json").read_text())
    counts = {name.removeprefix("generate/"): n for name, n in metrics.items() if name.startswith("generate/")}
    assert counts["documents"] == 48 and counts["written"] == len(table) > 0
    assert counts["written"] + sum(n for name, n in counts.items() if name.startswith("rejected_")) == 48
    parents = table.column("parents").to_pylist()
    assert all(len(some) == 1 for some in parents) and len({some[0] for some in parents}) == len(table)
    for (parent,), messages in zip(parents, messages_of(table), strict=True):
        assert messages[-1]["content"] == text[parent] and not wrong(messages)
        assert messages[0] == {"role": SYSTEM, "content": "as the web has it."}
    train = messages_of(records.read(folder / "data/train.parquet"))
    assert {m[0]["content"] for m in train} == {"as an assistant."}
    assert {"phi", "psi", "p_star"} & metrics.keys() and not undocumented(metrics)


def test_later_rounds_rate_the_same_candidates(ran: tuple[Project, Path]) -> None:
    _, folder = ran
    one, two = generated(folder, 1), generated(folder, 2)
    assert one.equals(two)
    scores = []
    for n in (1, 2):
        both = [records.read(folder / f"rounds/{n:02d}/{name}.parquet") for name in ("kept", "rejected")]
        found = {i: s for t in both for i, s in zip(t["id"].to_pylist(), t["score"].to_pylist(), strict=True)}
        assert found.keys() == set(one["id"].to_pylist()) and len(both[0]) == round(0.5 * len(one))
        scores.append(found)
    assert any(scores[0][i] != scores[1][i] for i in scores[0])  # by another model


def test_any_workers_give_the_same(ran: tuple[Project, Path]) -> None:
    home, folder = ran
    again = Project.make(home.root.parent / "again")
    shutil.copytree(home.root / "runs", again.root / "runs", ignore=lambda _, names: [n for n in names if "synth" in n])
    other = again.root / again.ok("run", *AFTER, "rounds=1", "runtime.workers=2").folder
    assert generated(other, 1).equals(generated(folder, 1))


def test_of_the_same_document_one_is_written(work: tuple[Experiment, Request, Context], tmp_path: Path) -> None:
    x, request, _ = work
    data = tmp_path / "data"
    shutil.copytree(request.data, data)
    good = messages_of(generated(request.data.parent, 1))[0][-1]["content"]
    made = records.make_table({"text": [good, good.upper(), f" {good}"]}, origin="real", generation=0, recipe="web")
    records.write(made, data / "documents.parquet")
    table, told = x.recipe.generate(replace(request, data=data))
    assert told["counts"]["rejected_duplicate"] == 2 and len(table) == 1
    assert table["parents"].to_pylist() == [[made["id"][0].as_py()]]


@pytest.mark.parametrize(
    ("said", "end", "why"),
    [
        (" ", "stop", "empty"),
        ("what is it?", "length", "cut_off"),
        ("{document}", "stop", "copy"),
        ("what " * 400, "stop", "too_long"),
    ],
)
def test_what_is_no_instruction_is_counted(
    said: str, end: str, why: str, work: tuple[Experiment, Request, Context], tmp_path: Path
) -> None:
    """Of an author behind a server that is told in words, to documents of files."""
    _, request, _ = work
    talks = [{"prompt": f"what is {i}?", "response": f"it is {i}."} for i in range(40)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    corpus = {"_target_": "genloss.domains.instruct.chats.ChatTable", "path": str(tmp_path / "talks.jsonl")}
    domain = Instruct(corpus=corpus, context=160)

    def behave(_: int, body: dict[str, Any]) -> Any:
        document = body["messages"][-1]["content"].partition("\n\n")[2]
        asked = "what else?" if "first" in document else said.replace("{document}", document.upper())
        finish = "stop" if "first" in document else end
        return 200, json.dumps({"choices": [{"message": {"content": asked}, "finish_reason": finish}]}).encode()

    data = tmp_path / "data"
    shutil.copytree(request.data, data)
    texts: dict[str, Any] = {"text": ["the first one", "another text", "a third"]}
    records.write(records.make_table(texts, origin="real", generation=0, recipe="web"), data / "documents.parquet")
    with serving(behave) as server:
        node = {"_target_": "genloss.backends.openai.OpenAI", "model": "m", "url": server.url, "api": "chat"}
        author = {"_target_": "genloss.backends.author.Author", "backend": node, "new_tokens": 600}
        table, told = Backtranslate(ask="words", author=author).generate(replace(request, domain=domain, data=data))
        assert len({body["messages"][-1]["content"] for body in server.bodies}) == 3
        records.write(records.read(data / "documents.parquet", rows=(1, 2)), data / "documents.parquet")
        with pytest.raises(UserError, match=rf"recipe\.author.*wrote no instruction to any of 2 documents \(2 {why}\)"):
            Backtranslate(ask="words", author=author).generate(replace(request, domain=domain, data=data))
    assert told["counts"]["written"] == 1 and told["counts"][f"rejected_{why}"] == 2 and told["prompts"]["version"] == 1
    assert messages_of(table)[0][0]["content"] == "what else?"


# -- ratings -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1, 5), min_size=1))
def test_a5_is_a_part_of_a4(scores: list[float]) -> None:
    a4, a5 = (chosen(np.array(scores), least, None) for least in (4.0, 4.5))
    assert not (a5 & ~a4).any() and a5.sum() == sum(score >= 4.5 for score in scores)


def test_cuts_of_one_model_are_nested(work: tuple[Experiment, Request, Context]) -> None:
    """And the judge sees the tag of the seeds, as it was trained."""
    _, request, context = work
    table = generated(request.data.parent, 1)
    score = Rating(least=1.0).decide(table, context).score
    kept = [
        set(np.flatnonzero(Rating(least=float(np.quantile(score, q))).decide(table, context).keep))
        for q in (0, 0.5, 0.9)
    ]
    assert kept[0] > kept[1] > kept[2]
    said = Rating(least=1.0, reply="text").decide(table, context)
    assert (said.keep == ~np.isnan(said.score)).all() and set(said.reason[~said.keep]) <= {"unparseable"}
    assert ((said.score[said.keep] >= 1) & (said.score[said.keep] <= 5)).all()
    bare = replace(context, domain=replace(context.domain, system=""))  # type: ignore[type-var]
    assert not np.allclose(Rating(least=1.0).decide(table, bare).score, score)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("5", 5),
        ("It is focused.\nScore: 4", 4),
        ("Score: 2, no:\n**Score: 4.5**", 4.5),
        ("score:3/5.", 3),
        ("Score: 10502", np.nan),
        ("Score: 0", np.nan),
        ("Score: 5.5", np.nan),
        ("I give it 5 of 5", np.nan),
        ("", np.nan),
    ],
)
def test_grades_in_words(text: str, grade: float) -> None:
    np.testing.assert_equal(grade_of(text), grade)


def test_a_judge_in_words(
    work: tuple[Experiment, Request, Context], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that always says 5 keeps all, and a line says so; what has no score is dropped and counted."""
    _, _, context = work
    rows = [
        [{"role": SYSTEM, "content": "tag"}, *({"role": r, "content": f"{r} {i}"} for r in ("user", "assistant"))]
        for i in range(4)
    ]
    table = pa.table({"messages": pa.array(rows, MESSAGES)})
    elsewhere = Instruct(corpus={"_target_": "genloss.domains.instruct.tasks.SeedTasks"})
    names = itertools.count()

    def rate(say: Callable[[str], str], **options: Any) -> tuple[Any, list[str]]:
        def behave(_: int, body: dict[str, Any]) -> Any:
            said = {"message": {"content": say(body["messages"][-1]["content"])}, "finish_reason": "stop"}
            return 200, json.dumps({"choices": [said]}).encode()

        folder = tmp_path / str(next(names))
        folder.mkdir()
        with serving(behave) as server:
            node = {"_target_": "genloss.backends.openai.OpenAI", "model": "m", "url": server.url, "api": "chat"}
            author = {"_target_": "genloss.backends.author.Author", "backend": node, "new_tokens": 20}
            at = replace(context, domain=elsewhere, scratch=folder)
            made = Rating(author=author, reply="text", **options).decide(table, at)
            return made, [body["messages"][-1]["content"] for body in server.bodies]

    made, asked = rate(lambda _: "It is good.\nScore: 5")
    assert made.keep.all() and "the judge gives all 4 records 5" in capsys.readouterr().err
    assert all("Request: tag\n" in text for text in asked)
    made, asked = rate(lambda text: "Score: 4" if "user 1" in text else "none", system=False, least=4.0)
    assert made.keep.tolist() == [False, True, False, False] and not any("tag" in text for text in asked)
    assert made.reason[[0, 2, 3]].tolist() == ["unparseable"] * 3 and np.isnan(made.score[0])
    made, _ = rate(lambda text: f"Score: {text.split('user ')[1][0]}", least=None, fraction=0.5)
    assert made.keep.tolist() == [False, False, True, True]  # 0 is no grade


# -- bad values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["domain.documents=0"], r"domain\.documents=0: must be at least 1: texts to write instructions to"),
        (["recipe.n=49"], r"recipe\.n=49: must be at most domain\.documents=48"),
        (["recipe.n=0"], r"recipe\.n=0: must be at least 1 document"),
        (["recipe.ask=word"], r"recipe\.ask=word: .*did you mean words"),
        (
            ["recipe.author.model=last"],
            r"recipe\.author\.model=last: answers requests; name a run of domain\.direction",
        ),
        (["recipe.author.model=last", "recipe.ask=words"], r"domain\.corpus\.skills\.recall=0: must be above 0"),
        (["recipe.author.model=runs/no-*/rounds/00/model"], r"recipe\.author\.model=.*: no folder has this name"),
        (["domain.direction=backward"], r"domain\.direction=backward: must be forward"),
        (["domain.direction=back"], r"domain\.direction=back: .*did you mean backward"),
        (["curation.rating.reply=word"], r"curation\.rating\.reply=word"),
        (["curation=exact", "domain.direction=backward"], r"needs exact answers, and nobody can check these"),
    ],
)
def test_bad_values(overrides: list[str], words: str, ran: tuple[Project, Path]) -> None:
    own = [o for o in AFTER if not o.startswith(("hydra.", *(["curation"] if "curation=exact" in overrides else [])))]
    with ran[0].here(), pytest.raises(UserError, match=words):
        Experiment(compose([*own, *overrides]))
