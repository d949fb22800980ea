"""The examples of CONTRIBUTING.md work as they are printed: written to a project, the files compose, check and run."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from genloss import systems
from genloss.core.contracts import Fit, Sampling
from genloss.core.errors import UserError
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.curate import Context, Decision
from genloss.evaluate import Evidence
from genloss.experiment import Experiment
from genloss.generate import Request
from genloss.loop import Loop
from genloss.stages import GENERATE, TRAIN
from genloss.workflow.compose import compose
from support import REPOSITORY, Project


def blocks() -> dict[str, str]:
    """{path: content} of the fenced blocks that begin with a path."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return dict(found)


def write(root: Path) -> None:
    for path, block in blocks().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(block, encoding="utf-8")


@pytest.fixture
def example(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with the files of all examples, as with PYTHONPATH=$PWD."""
    write(project)
    monkeypatch.syspath_prepend(project)
    importlib.invalidate_caches()
    yield project
    for name in [m for m in sys.modules if m.split(".")[0] == "mylab"]:
        del sys.modules[name]


def run(root: Path, *overrides: str) -> Loop:
    x = Experiment(compose([*overrides, "tracking=none"]))
    loop = Loop(x, RunDir(root / "run", Store(root / "store")))
    loop.run()
    return loop


def metrics(loop: Loop, n: int) -> dict[str, float]:
    return json.loads((loop.run_dir.round(n) / "metrics.json").read_text())


def test_every_kind_has_an_example() -> None:
    kinds = {str(Path(path).parent) for path in blocks() if path.startswith("conf")}
    groups = (
        "curation",
        "mixing",
        "metrics",
        "domain/corpus",
        "model",
        "recipe",
        "trainer",
        "hydra/launcher",
        "domain",
    )
    assert kinds == {f"conf/{group}" for group in (*groups, "experiment")}
    assert {"src/genloss/systems/keeping/study.py", "mylab/callbacks.py", "tests/test_ending.py"} <= set(blocks())


def test_the_curator_passes_its_printed_test(example: Path, tmp_path: Path) -> None:
    runpy.run_path(str(example / "tests/test_ending.py"))["test_ending"](tmp_path)


def test_the_curator_chains_and_refuses(example: Path) -> None:
    assert list(Experiment(compose(["curation=[dedup,ending]"])).curators) == ["dedup", "ending"]
    with pytest.raises(UserError, match=r"curation\.ending\.marks=: must be at least one character"):
        Experiment(compose(["curation=ending", "curation.ending.marks=''"]))
    with pytest.raises(UserError, match=r"curation\.ending\.mark=x: unknown option; did you mean marks"):
        Experiment(compose(["curation=ending", "+curation.ending.mark=x"]))
    with pytest.raises(UserError, match=r"needs records that hold a text, .* use domain=instruct, reasoning, text"):
        Experiment(compose(["curation=ending", "domain=gaussian"]))


def test_the_regime_takes_what_it_says(example: Path) -> None:
    mixing = Experiment(compose(["mixing=half_real", "size=100"])).mixing
    parts = {p.name: p.take for p in mixing.plan(3, 500, {1: 80, 2: 80, 3: 80}, used=100)}
    assert parts == {"real": 50, "g02": 25, "g03": 25}


def test_the_metric_and_its_floor(example: Path, tiny: list[str], tmp_path: Path) -> None:
    loop = run(tmp_path, *tiny, "rounds=1", "metrics=[questions]")
    found = metrics(loop, 1)
    texts = pq.read_table(loop.run_dir.round(1) / "generated.parquet")["text"].to_pylist()
    assert found["questions"] == pytest.approx(sum("?" in t for t in texts) / len(texts))  # the sample is all there is
    assert found["questions_floor"] == 0  # of made-up sentences that end in a full stop


def test_the_corpus_and_the_model(example: Path, tiny: list[str], tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {i} says that a lab has corpora of its own." for i in range(40))
    (tmp_path / "mine.txt").write_text(text)
    own = [o for o in tiny if not o.startswith(("domain/corpus", "domain.corpus"))]
    mine = ["domain/corpus=paragraphs", f"domain.corpus.path={tmp_path}/mine.txt", "size=16"]
    loop = run(tmp_path, *own, *mine, "model=neox", "model.width=16", "rounds=1")
    assert metrics(loop, 1)["n_generated"] == 16
    assert "GPTNeoX" in (loop.run_dir.round(1) / "model" / "config.json").read_text()
    table = pq.read_table(loop.run_dir.data / "train.parquet")
    assert all(text.startswith("Paragraph ") for text in table["text"].to_pylist())


def test_the_system_of_recipe_curator_and_metric(example: Path, tiny: list[str], tmp_path: Path) -> None:
    own = [o for o in tiny if not o.startswith(("recipe", "size", "rounds"))]
    loop = run(tmp_path, *own, "experiment=shuffling", "size=32")
    table = pq.read_table(loop.run_dir.round(2) / "generated.parquet")
    assert set(table["recipe"].to_pylist()) == {"shuffled"}
    before = pq.read_table(loop.run_dir.round(1) / "kept.parquet")
    texts = dict(zip(before["id"].to_pylist(), before["text"].to_pylist(), strict=True))
    for row in table.to_pylist():
        (parent,) = row["parents"]
        assert sorted(row["text"].split()) == sorted(texts[parent].split())
    assert metrics(loop, 2)["generate/shuffled"] == len(before)
    x = Experiment(compose([*own, "experiment=shuffling"]))
    assert {"mylab.recipes"} <= set(GENERATE.code(x).modules())  # an edit of it makes its stages new


def test_the_callback_and_the_trainer(example: Path, tiny: list[str], tmp_path: Path) -> None:
    stop = "+trainer.callbacks={stop: {_target_: mylab.callbacks.Stop, after: 3}}"
    loop = run(tmp_path / "a", *tiny, "rounds=0", stop)
    done = loop.run_dir.done("train", 0)
    assert done is not None and done.result["steps"] == 3
    assert "mylab.callbacks" in TRAIN.code(loop.experiment).modules()
    smoothed, plain = (
        run(tmp_path / name, *tiny, "rounds=0", f"trainer={name}") for name in ("smoothed", "fixed_steps")
    )
    losses = [(d := loop.run_dir.done("train", 0)) and d.result["loss"] for loop in (smoothed, plain)]
    assert losses[0] != losses[1]


def test_the_launcher_and_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Project.make(tmp_path / "project", PYTHONPATH=str(tmp_path / "project"))
    write(home.root)
    sweep = ["domain=gaussian", "mixing=replace,accumulate", "rounds=2", "size=20", "domain.chains=20", "tracking=none"]
    result = home.spawn("genloss", "run", "-m", "hydra/launcher=pair", *sweep)
    assert result.code == 0, result.err
    assert len(list(result.folder.glob("arms/*.json"))) == 2
    # the study's folder, as if the project were the checkout of genloss
    monkeypatch.setattr(systems, "__path__", [*systems.__path__, str(home.root / "src/genloss/systems")])
    assert home.ok("replicate", "keeping", "--write", "--jobs", "1")  # every line holds
    page = (home.root / "docs/keeping.md").read_text()
    assert "accumulating keeps more of the variance" in page and "holds" in page
    del sys.modules["genloss.systems.keeping"], sys.modules["genloss.systems.keeping.study"]


@pytest.mark.parametrize("cls", [Context, Decision, Request, Evidence, Fit, Sampling])
def test_the_table_of_what_a_plug_in_is_handed(cls: Any) -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{cls.__name__}` \|.*$", text, re.MULTILINE)
    _, fields, file = row.strip("| ").rsplit(" | ", 2)
    named = re.findall(r"`(\w+)`", fields.split("; computed")[0])
    assert named == [field.name for field in dataclasses.fields(cls)]
    assert (REPOSITORY / "src/genloss" / file.strip("`")) == Path(inspect.getfile(cls))


def test_the_domain(example: Path, tmp_path: Path) -> None:
    loop = run(tmp_path, "domain=coins", "rounds=2", "size=40", "curation=random")
    for n in (1, 2):
        tosses = pq.read_table(loop.run_dir.round(n) / "kept.parquet")["toss"].to_pylist()
        assert len(tosses) == 20 and metrics(loop, n)["chance"] == tosses.count("heads") / 20
    with pytest.raises(UserError, match=r"model=Scratch: is no model of domain=coins, which takes Chance"):
        Experiment(compose(["domain=coins", "model=llama"]))
    with pytest.raises(UserError, match=r"recipe=Draw: needs .* domain=coins has none; use domain=categorical"):
        Experiment(compose(["domain=coins", "recipe=draw"]))
