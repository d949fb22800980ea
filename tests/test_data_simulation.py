"""Data simulation: a broad model's run, and a narrow one that learns from what it writes."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest

from genloss.core import records
from genloss.core.errors import UserError
from genloss.domains.instruct.world import World
from genloss.experiment import Experiment
from genloss.language.chat import wrong
from genloss.workflow.compose import compose
from support import Project, undocumented

BROAD = [
    *("experiment=broad", "domain.examples=48", "domain.validation=8", "domain.test=16", "size=48", "trainer.steps=3"),
    *("trainer.batch=4", "model.layers=1", "model.width=16", "model.feed_forward=16", "tracking=none"),
]
NARROW = [
    *("experiment=data_simulation", "hydra.mode=RUN", "domain.examples=48", "domain.validation=8", "domain.test=16"),
    *("size=48", "recipe.n=24", "recipe.author.chunk=8", "recipe.author.new_tokens=24", "trainer.steps=3"),
    *("trainer.batch=4", "tracking=none", "seed=0", "curation=none", "metrics.elsewhere.max_records=16"),
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    home = Project.make(tmp_path_factory.mktemp("simulated") / "project")
    home.ok("run", *BROAD)
    return home, home.root / home.ok("run", *NARROW, "runtime.workers=1").folder


def test_a_narrow_task_is_of_the_same_world() -> None:
    world, narrow = World(), World(about=["bird"])
    assert narrow.facts == world.facts and narrow.subjects == ("bird",)
    assert sum(narrow.law.values()) == pytest.approx(1) and {cell[0] for cell in narrow.law} == {"bird"}
    for messages in itertools.islice(narrow.conversations(), 200):
        read = narrow.read(messages)
        assert read.right and {turn.request.topic for turn in read.turns if turn.request} == {"bird"}
    with pytest.raises(UserError, match=r"about=brid: .*did you mean bird"):
        World(about=["brid"])


def test_a_broad_model_writes_what_a_narrow_one_learns(ran: tuple[Project, Path]) -> None:
    """Conversations of what the broad model wrote: no real parents, counts that add up, its files in the key."""
    _, folder = ran
    table = records.read(folder / "rounds/01/generated.parquet")
    metrics = json.loads((folder / "rounds/01/metrics.json").read_text())
    counts = {name.removeprefix("generate/"): n for name, n in metrics.items() if name.startswith("generate/")}
    assert counts["asked"] == 24 == counts["written"] + counts["unwritten"] + counts["unanswered"]
    assert len(table) == counts["written"] and not any(table.column("parents").to_pylist())
    assert not any(wrong(messages) for messages in table.column("messages").to_pylist())
    assert {"elsewhere", "elsewhere_se", "followed", "generate/unwritten"} <= metrics.keys()
    assert not undocumented(metrics)


def test_any_workers_give_the_same(ran: tuple[Project, Path]) -> None:
    home, folder = ran
    whole = records.read(folder / "rounds/01/generated.parquet")
    again = Project.make(home.root.parent / "again")
    shutil.copytree(
        home.root / "runs", again.root / "runs", ignore=lambda _, names: [n for n in names if "narrow" in n]
    )
    other = again.root / again.ok("run", *NARROW, "runtime.workers=2").folder
    assert other.name == folder.name and records.read(other / "rounds/01/generated.parquet").equals(whole)


def test_labels_of_a_task_are_answers(ran: tuple[Project, Path]) -> None:
    """Without a world: a label in the prompt, what is written to it as the request, up to the mark."""
    home, _ = ran
    labels = ("good", "bad")
    gold = [{"prompt": f"Is this review positive? {i}", "response": labels[i % 2]} for i in range(60)]
    (home.root / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    options = [
        *("domain=instruct", "domain/corpus=chats", "domain.corpus.path=gold.jsonl", "recipe=data_simulation"),
        *("recipe.labels=[good, bad]", "recipe.attributes=[a film, a shop]", "recipe.n=12", "recipe.author.chunk=8"),
        *("domain.examples=40", "domain.validation=4", "domain.test=8", "domain.pool=4", "size=40", "trainer.steps=3"),
        *("recipe.author.new_tokens=12", "model=llama", "rounds=1", "tracking=none", "domain.context=160"),
    ]
    words = (Path(__file__).parents[1] / "src/genloss/systems/data_simulation/words.yaml").read_text()
    (home.root / "words.yaml").write_text(words.replace("stop: '\"'", "stop: 'e'"))
    done = home.call("run", *options, "recipe.prompts=words.yaml")
    assert done.code == 0 or "wrote none of 12 records" in done.err, done.err
    refused = home.call("run", *options, "recipe.labels=[good]")
    assert refused.code != 0 and "recipe.labels=" in refused.err and "at least 2 labels" in refused.err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["recipe.author.model=runs/nobody-*/rounds/00/model"], "recipe.author.model=.*: no folder has this name"),
        (["recipe.labels=[good, bad]"], "recipe.labels=set: must be empty: the world has"),
        (["recipe.author.model=last", "recipe.author.template=chatml"], "recipe.author.template=chatml"),
        (["recipe.n=0"], "recipe.n=0"),
        (["domain.corpus.about=[]", "recipe.author.model=last"], "metrics.elsewhere.*needs domain.corpus.about"),
        (["recipe.author.model=base"], "recipe.author.model=base: is what adapters stand on"),
    ],
)
def test_bad_values(overrides: list[str], words: str, project: Path) -> None:
    with pytest.raises(UserError, match=words):
        Experiment(compose([*(o for o in NARROW if not o.startswith("hydra.")), *overrides]))
