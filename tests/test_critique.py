"""Critiques in words: their types, what is selected by them, and what is rewritten."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from genloss.core import records
from genloss.core.errors import UserError
from genloss.experiment import Experiment
from genloss.systems.shepherd.critique import exchange, verdict
from genloss.workflow.compose import compose
from support import Project, serving, undocumented

SMALL = [
    *("domain=instruct", "domain.examples=48", "domain.validation=8", "domain.test=16", "domain.pool=24", "size=48"),
    *("model=llama", "trainer.steps=4", "trainer.batch=4", "recipe.n=12", "recipe.chunk=8", "recipe.new_tokens=12"),
    *("rounds=1", "tracking=none", "runtime.workers=1", "recipe.backend.kernel=torch"),
]
KINDS = ("none", "veracity", "arithmetic", "what")


def behave(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
    """Criticises by a hash of what it is shown; a fourth of its critiques has a type that there is not."""
    said = body["messages"][-1]["content"]
    kind = KINDS[zlib.crc32(said.encode()) % 4]
    text = "Better." if "Critique:" in said else f"Hm. Error: none?\nI think again.\n**Error:** {kind}"
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"completion_tokens": min(9, body["max_tokens"])}
    return 200, json.dumps({"choices": [choice], "usage": usage}).encode()


def asking(url: str, key: str) -> list[str]:
    of = f"{key}.author"
    options = {"model": "m", "api": "chat", "seeds": "false", "url": url}
    return [
        f"recipe/backend@{of}.backend=openai",
        *(f"{of}.backend.{name}={value}" for name, value in options.items()),
        f"{of}.new_tokens=40",
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.make(tmp_path_factory.mktemp("critique") / "project")


def read(home: Project, arguments: list[str]) -> tuple[Path, dict[str, float]]:
    folder = home.root / home.ok("run", *SMALL, *arguments).folder
    return folder, json.loads((folder / "rounds/01/metrics.json").read_text())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("It is wrong.\nError: veracity", "veracity"),
        ("Error: none\nNo, wait.\n  **Error:** Arithmetic.", "arithmetic"),
        ("error : coherence, mostly", "coherence"),
        ("There is an Error: veracity", "unparseable"),  # not at the beginning of a line
        ("Error: style", "unparseable"),
        ("", "unparseable"),
    ],
)
def test_the_type_of_a_critique(text: str, kind: str) -> None:
    assert verdict(text) == kind


def test_who_said_what_is_told_of_several_messages() -> None:
    talk = [
        {"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    assert exchange(talk[:2]) == ("a", "b") and exchange(talk) == ("user: a\nassistant: b\nuser: c", "d")


def test_a_critic_selects(home: Project) -> None:
    with serving(behave) as server:
        folder, found = read(home, ["curation=critique", *asking(server.url, "curation.critique")])
        asked = [body for body in server.bodies if "judge the answer" in body["messages"][-1]["content"]]
    kept, dropped = (records.read(folder / f"rounds/01/{name}.parquet") for name in ("kept", "rejected"))
    why = Counter(dropped.column("reason").to_pylist())
    assert len(kept) + len(dropped) == 12 and len(kept) > 0 and not undocumented(found)
    wanted = Counter(KINDS[zlib.crc32(body["messages"][-1]["content"].encode()) % 4] for body in asked[-12:])
    assert len(kept) == wanted["none"] and why["critique: unparseable"] == wanted["what"]
    assert why["critique: veracity"] == wanted["veracity"] and why["critique: arithmetic"] == wanted["arithmetic"]


def test_what_is_criticised_is_rewritten(home: Project) -> None:
    with serving(behave) as server:
        folder, found = read(home, ["recipe=revise", *asking(server.url, "recipe"), "curation=none"])
    table = records.read(folder / "rounds/01/generated.parquet")
    answers = [messages[-1]["content"] for messages in table.column("messages").to_pylist()]
    kinds = [verdict(text) for text in table.column("critique").to_pylist()]
    first = table.column("first").to_pylist()
    for answer, kind, before in zip(answers, kinds, first, strict=True):
        assert answer == ("Better." if kind in ("veracity", "arithmetic") else before)
    counts = Counter(kinds)
    assert {kind: found.get(f"generate/critique/{kind}", 0) for kind in counts} == counts
    assert found["generate/revised"] == counts["veracity"] + counts["arithmetic"] > 0
    assert found["generate/criticised"] == 12 and not undocumented(found)


def test_a_critic_that_says_the_same_of_all_is_told(home: Project) -> None:
    """The model itself, which has not learned to criticise."""
    done = home.call("run", *SMALL, "curation=critique", "curation.critique.author.new_tokens=8")
    assert done.code != 0 and "the critic says unparseable of all 12 answers" in done.err
    assert "curation=critique: kept none of 12 records" in done.err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["recipe=revise", "recipe.revises=some"], "recipe.revises=some"),
        (["recipe=revise", "recipe.prompts=nowhere.yaml"], "recipe.prompts=.*is no file of prompts"),
        (["curation=critique", "curation.critique.author.model=base"], "curation.critique.author.model=base: is what"),
    ],
)
def test_bad_values(overrides: list[str], words: str, project: Path) -> None:
    with pytest.raises(UserError, match=words):
        Experiment(compose([*SMALL, *overrides]))
