"""LLM2LLM on conversations: which seeds are parents, what is like them, a teacher in words, and bad values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from genloss.core import records
from genloss.core.contracts import Decoding, Runtime
from genloss.core.errors import UserError
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.domains.instruct.world import World
from genloss.experiment import Experiment
from genloss.systems.llm2llm.subjects import Requests
from genloss.workflow.compose import compose
from support import Project, serving, undocumented

SMALL = [
    *(
        "experiment=llm2llm/instruct",
        "hydra.mode=RUN",
        "seed=0",
        "tracking=none",
        "rounds=2",
        "size=200",
        "recipe.n=null",
    ),
    *("domain.examples=200", "domain.validation=8", "domain.test=24", "domain.corpus.topics=1", "~schedule"),
    *("trainer.steps=60", "trainer.batch=8", "recipe.chunk=32", "metrics.following.chunk=8"),
]
TASKS = [
    *("domain=instruct", "domain/corpus=seed_tasks", "domain.context=400", "domain.too_long=drop", "tracking=none"),
    *("domain.examples=12", "size=12", "domain.validation=8", "domain.test=15", "domain.pool=1", "model=llama"),
    *("trainer.steps=2", "trainer.batch=2", "metrics=[response_loss]", "mixing=accumulate", "rounds=1"),
    *("recipe=llm2llm", "recipe.chunk=4"),
]


def composed(options: list[str]) -> Experiment:
    return Experiment(compose([o for o in options if not o.startswith("hydra.")]))


def world_of(options: list[str]) -> tuple[Instruct, World]:
    domain = composed(options).domain
    assert isinstance(domain, Instruct) and isinstance(domain.source, World)
    return domain, domain.source


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = Project.make(tmp_path_factory.mktemp("llm2llm") / "project")
    yield home.root / home.ok("run", *SMALL).folder


def test_every_new_request_has_a_seed_that_was_wrong(ran: Path, tmp_path: Path) -> None:
    domain, world = world_of(SMALL)
    seeds = records.read(ran / "data/train.parquet")
    rows = dict(zip(seeds.column("id").to_pylist(), seeds.column("messages").to_pylist(), strict=True))
    texts = Counter(domain.texts(seeds))
    for split in ("test", "validation"):
        texts.update(domain.texts(records.read(ran / f"data/{split}.parquet")))
    for n in (1, 2):
        backend = domain.backend(ran / f"rounds/0{n - 1}/model", ran / "data", Runtime(1))
        greedy = Decoding(domain.context, bias=0.0, chunk=32)
        said = backend.respond(domain.prompts(seeds), greedy, seed=5, scratch=tmp_path / str(n)).texts
        right = domain.verify(domain.answered(seeds, said)).right
        wrong = {i for i, ok in zip(rows, right, strict=True) if not ok}
        made = records.read(ran / f"rounds/0{n}/generated.parquet")
        assert [p for (p,) in made.column("parents").to_pylist()] == [i for i in rows if i in wrong]  # k = 1 of each
        assert domain.verify(made).right.all()
        for (parent,), messages in zip(
            made.column("parents").to_pylist(), made.column("messages").to_pylist(), strict=True
        ):
            asked, before = (world.request(m[0]["content"]) for m in (messages, rows[parent]))
            assert asked and before and asked.cell == before.cell
        texts.update(domain.texts(made))
        found = json.loads((ran / f"rounds/0{n}/metrics.json").read_text())
        assert found["generate/wrong_seeds"] == len(wrong) == len(made) and not undocumented(found)
        assert found["train_records"] == 200 + sum(
            len(records.read(ran / f"rounds/0{m}/generated.parquet")) for m in range(1, n + 1)
        )
    assert max(texts.values()) == 1  # nothing is asked twice, nor what is held out


def test_requests_like_another() -> None:
    world = World()
    parent = "please state the colour of the friend of fada, if you would. as a list."
    made = world.like(parent, 3, 200)
    assert made == world.like(parent, 3, 200) != world.like(parent, 4, 200)
    wanted = world.request(parent)
    assert wanted
    for asked, answer in made:
        request = world.request(asked)
        assert request and request.cell == wanted.cell and world.answers(request, world.read_reply(answer))
        assert world.grade(asked, world.wrong_answer(asked, 1)) == 2
    assert len({asked for asked, _ in made}) > 50 and world.like("hello?", 3, 5) == []


def test_noise_is_the_share_of_wrong_answers(tmp_path: Path) -> None:
    home = Project.make(tmp_path / "project")
    options = [*SMALL, "rounds=1", "recipe.n=200", "recipe.choose=random", "recipe.teacher.noise=0.5"]
    folder = home.root / home.ok("run", *options, "trainer.steps=1").folder
    right = world_of(SMALL)[0].verify(records.read(folder / "rounds/01/generated.parquet")).right
    assert 0.35 < right.mean() < 0.65


def test_a_teacher_in_words_on_tasks_that_nobody_can_check(tmp_path: Path) -> None:
    """It sees task and gold answer; what it writes becomes a conversation with the task as its parent."""

    def behave(number: int, body: dict[str, Any]) -> str:
        asked = body["messages"][-1]["content"].partition("\n")[2].partition("Correct answer")[0]
        if "cut" in asked:
            return "I cannot."
        return json.dumps([{"problem": f"Another one: {number}. {asked.strip()[:20]}", "answer": "Yes."}])

    home = Project.make(tmp_path / "project")
    with serving(behave) as server:
        of = ["recipe/teacher=endpoint", "recipe.teacher.model=m", f"recipe.teacher.url={server.url}"]
        folder = home.root / home.ok("run", *TASKS, *of, "recipe.teacher.pause=0", "recipe.shortfall=accept").folder
        shown = [body["messages"][-1]["content"] for body in server.bodies if len(body["messages"]) > 1]
    seeds = {row["id"]: row["messages"] for row in records.read(folder / "data/train.parquet").to_pylist()[:12]}
    made = records.read(folder / "rounds/01/generated.parquet").to_pylist()
    found = json.loads((folder / "rounds/01/metrics.json").read_text())
    assert len(made) == found["generate/parents"] - found["generate/missing"] > 0
    for row in made:
        task, answer = (m["content"] for m in seeds[row["parents"][0]])
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
        assert row["messages"][0]["content"].startswith("Another one") and row["messages"][1]["content"] == "Yes."
        assert any(task in text and answer in text for text in shown)
    assert not undocumented(found)


def test_an_answer_like_the_label_is_right() -> None:
    domain = Instruct(corpus={"_target_": "genloss.domains.instruct.tasks.SeedTasks"})
    told = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "The river is very long."}]] * 3
    table = pa.table({"messages": pa.array(told, MESSAGES)})
    said = ["the river is long", "A lake.", ""]
    assert Requests(domain).right(table, said).tolist() == [True, False, False]
    system = [{"role": "system", "content": "b"}, *told[0]]
    assert len(Requests(domain).usable(pa.table({"messages": pa.array([told[0], system], MESSAGES)}))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (TASKS, r"recipe\.teacher\._target_=Program: writes problems of the world alone; use recipe/teacher=endpoint"),
        ([*SMALL, "recipe.seed_problems=10"], "recipe.seed_problems=10: must be mixing.real.n=200"),
    ],
)
def test_bad_values(options: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        composed(options)
