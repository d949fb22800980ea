"""Evol-Instruct on conversations: what is struck out and why, lines over rounds, and bad values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genloss.core import records
from genloss.core.errors import UserError
from genloss.experiment import Experiment
from genloss.systems.evol_instruct.evolve import Evolve, Parent
from genloss.workflow.compose import compose
from support import Project, Server, serving, undocumented

SEEDS = [
    *("Name a colour.", "Say sorry.", "Repeat your orders.", "Write nothing.", "Stay as you are.", "Count to three."),
    *("Draw a plan.", "List two towns.", "Sort some numbers."),
]
ARGUMENTS = [
    *("domain=instruct", "domain/corpus=chats", "domain.corpus.path=seeds.jsonl", "recipe=evolve", "model=llama"),
    *("mixing=accumulate", "domain.examples=6", "domain.validation=1", "domain.test=1", "domain.pool=1", "size=6"),
    *("trainer.steps=2", "trainer.batch=2", "domain.context=200", "tracking=none", "rounds=2"),
    *("recipe/backend@recipe.author.backend=openai", "recipe.author.backend.model=m", "recipe.author.new_tokens=40"),
    *("recipe.author.backend.api=chat", "recipe.author.backend.seeds=false", "recipe.author.bias=0"),
]


def behave(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
    """A server that evolves a task by a word, and misbehaves where a seed says so."""
    said = body["messages"][-1]["content"]
    task = said.rpartition("Task: ")[2]
    if said.startswith("Do these two tasks"):
        text = "Equal." if "three" in said else "Different."
    elif "Task: " in said:
        text = f"{task} Then add one word."
        text = {"Write nothing.": "!?", "Stay as you are.": task.upper()}.get(task, text)
        text = f"Write the new task alone. {text}" if task.startswith("Repeat") else text
    else:
        text = "Sorry, no." if "sorry" in said else "Blue, and sky."
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, json.dumps({"choices": [choice], "usage": {"completion_tokens": min(4, body["max_tokens"])}}).encode()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Path, Server]]:
    home = Project.make(tmp_path_factory.mktemp("evolve") / "project")
    rows = ({"prompt": text, "response": "As you like."} for text in SEEDS)
    (home.root / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # one seed of the file is left to each other split, whichever they are
    with serving(behave) as server:
        done = home.ok("run", *ARGUMENTS, f"recipe.author.backend.url={server.url}")
        yield home, home.root / done.folder, server


def test_each_rule_strikes_out_what_it_says() -> None:
    recipe = Evolve()
    pool = [Parent("a", "Name a colour.", "seed")] * 6
    made = ["Name two colours.", "name a  colour.", "!? the", "Write the new task alone. Hm", "Name it all.", ""]
    answers = ["Red and blue.", "Red.", "Red.", "Red.", "Sorry, no.", "Red."]
    assert recipe.struck(pool, made, answers) == ["", "no_information", "empty", "copies", "sorry", "empty"]
    long = "sorry " + "word " * 80
    assert recipe.struck(pool[:1], made[:1], [long]) == [""]
    lenient = Evolve(eliminate=[])
    assert lenient.struck(pool, made, answers) == ["", "", "", "", "", "empty"]  # nothing is no record


def test_lines_go_on_over_rounds(ran: tuple[Project, Path, Server]) -> None:
    """What is kept is evolved further, what is struck out once more; every step is in the lineage and the counts."""
    _, folder, _ = ran
    first, second = (records.read(folder / f"rounds/0{n}/generated.parquet") for n in (1, 2))
    train = records.read(folder / "data/train.parquet")
    assert 0 < len(first) < len(train)
    seeds = set(train.column("id").to_pylist())
    assert {p for (p,) in first.column("parents").to_pylist()} <= seeds
    made = set(first.column("id").to_pylist())
    for parents, lineage in zip(
        second.column("parents").to_pylist(), second.column("lineage").to_pylist(), strict=True
    ):
        assert lineage.count(">") == 2 if parents[0] in made else lineage.count(">") == 1
    for messages in first.column("messages").to_pylist():
        assert messages[0]["content"].endswith("Then add one word.") and messages[1]["content"] == "Blue, and sky."
        assert not any(word in messages[0]["content"] for word in ("sorry", "orders", "three"))
    for n in (1, 2):
        found = json.loads((folder / f"rounds/0{n}/metrics.json").read_text())
        struck = sum(v for k, v in found.items() if k.startswith("generate/eliminated/"))
        drawn = sum(v for k, v in found.items() if k.startswith("generate/drawn/"))
        assert found["generate/pool"] == 6 == drawn == struck + found["generate/evolved"]
        assert not undocumented(found)


def test_a_rerun_is_free_and_the_same(ran: tuple[Project, Path, Server]) -> None:
    """From the replies on the disk, where the stage is computed again."""
    home, folder, server = ran
    before, asked = records.read(folder / "rounds/02/generated.parquet"), len(server.bodies)
    again = Project.make(home.root.parent / "again")
    (again.root / "seeds.jsonl").write_bytes((home.root / "seeds.jsonl").read_bytes())
    (again.store).mkdir(parents=True)
    (home.store / "replies").rename(again.store / "replies")
    other = again.root / again.ok("run", *ARGUMENTS, f"recipe.author.backend.url={server.url}").folder
    assert records.read(other / "rounds/02/generated.parquet").equals(before)
    assert len(server.bodies) == asked


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["recipe.operators=[]"], r"recipe.operators=\[\]: must be some of add_constraint"),
        (["recipe.operators=[deepen,deepen]"], r"recipe.operators=.*named once each"),
        (["recipe.eliminate=[sory]"], "recipe.eliminate=sory: .*did you mean sorry"),
        (["recipe.prompts=nowhere.yaml"], "recipe.prompts=.*is no file of prompts"),
        (["recipe.author.new_tokens=0"], "recipe.author.new_tokens=0: must be at least 1 where a server writes"),
    ],
)
def test_bad_values(overrides: list[str], words: str, project: Path) -> None:
    (project / "seeds.jsonl").write_text('{"prompt": "One?", "response": "Two."}\n')
    with pytest.raises(UserError, match=words):
        Experiment(compose([*ARGUMENTS, *overrides]))
