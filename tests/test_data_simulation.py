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
from genloss.systems.data_simulation.recipe import Simulate
from genloss.systems.data_simulation.reviews import Reviews
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
    refused = home.call("run", *options, "recipe.about=[bird]")
    assert refused.code != 0 and "recipe.about=set: must be empty: it is of domain/corpus=world" in refused.err


def test_models_take_turns(tmp_path: Path) -> None:
    """Iterated: a small model learns what the broad one before it answered and nothing else, and the next broad one
    real data and what the small one answered; questions are those of round 0's model."""
    home = Project.make(tmp_path / "project")
    sizes = ("recipe.author.new_tokens=0", "recipe.assistant.chunk=8", "trainer.steps=20", "rounds=3")
    tiny = [o for o in BROAD[1:] if not o.startswith("trainer.steps")]
    options = ("experiment=data_simulation/iterated", *tiny, "recipe.n=24", "recipe.author.chunk=8", *sizes)
    folder = home.root / home.ok("run", *options).folder
    rounds = [folder / f"rounds/{n:02d}" for n in range(4)]
    widths = [json.loads((at / "model/config.json").read_text())["hidden_size"] for at in rounds]
    assert widths == [16, 48, 16, 48]
    for at, real in zip(rounds[1:], (0, 48, 0), strict=True):
        shards = json.loads((at / "train/mix.json").read_text())["shards"]
        kept = len(records.read(at / "kept.parquet"))
        assert [s["realised"] for s in shards] == ([real, kept] if real else [kept])
    made = [json.loads((at / "manifest.json").read_text())["stages"]["generate"]["inputs"] for at in rounds[1:]]
    first = made[0]["last"]
    assert [inputs["round0"] for inputs in made] == [first] * 3 and len({inputs["last"] for inputs in made}) == 3


def test_reviews_ask_what_is_simulated() -> None:
    """The gold reviews are put in the words of the task, as many of each label, none twice."""
    found = list(Reviews().conversations())
    before, after = Simulate().words()["task"].split("$text")
    assert after == "" and all(asked["content"].startswith(before) for asked, _ in found)
    assert len({asked["content"] for asked, _ in found}) == len(found) == 72
    assert sorted(label["content"] for _, label in found) == ["negative"] * 36 + ["positive"] * 36


def test_labels_are_counted(tmp_path: Path) -> None:
    """A model that has learned which label is which has them all, white space and case aside, an unlearned one none."""
    home = Project.make(tmp_path / "project")
    gold = [{"prompt": f"{i}: {word}?", "response": f"{word} "} for i in range(32) for word in ("Yes", "no")]
    (home.root / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    options = [
        *("domain=instruct", "domain/corpus=chats", "domain.corpus.path=gold.jsonl", "metrics=[labelled]", "rounds=0"),
        *("domain.examples=40", "domain.validation=4", "domain.test=16", "domain.pool=4", "size=40", "model=llama"),
        *("trainer.batch=4", "tracking=none", "domain.context=64", "recipe.n=1"),
    ]
    folders = [home.root / home.ok("run", *options, f"trainer.steps={n}").folder for n in (200, 1)]
    learned, fresh = (json.loads((folder / "rounds/00/metrics.json").read_text()) for folder in folders)
    assert 0.5 <= learned["labelled_floor"] < 1 and learned["labelled"] == 1 and learned["labelled_se"] == 0
    assert fresh["labelled"] == 0 and not undocumented(learned)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["recipe.about=[brid]"], "recipe.about=brid: unknown; did you mean bird"),
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
