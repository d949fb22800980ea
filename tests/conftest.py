"""What tests share: a project of its own for each test, tiny overrides, and one tiny trained model for the session."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from support import Result

if TYPE_CHECKING:
    from genloss.domains.text import Text

# Tests are not timed: a busy machine is not a bug. The suite draws the same examples each time, so that what is green
# stays green; `pytest --hypothesis-profile=explore` draws new ones.
settings.register_profile("explore", deadline=None)
settings.register_profile("genloss", deadline=None, derandomize=True)
settings.load_profile("genloss")

REPOSITORY = Path(__file__).resolve().parents[1]

# A run of a second or two. `domain.corpus.path` points at `corpus` (see `tiny`).
TINY = [
    "size=48",
    "rounds=2",
    "tracking=none",
    "domain/corpus=folder",
    "trainer.steps=6",
    "trainer.batch=4",
    "recipe.chunk=16",
    "recipe.max_tokens=32",
    "runtime.workers=1",
    "domain.context=32",
    "domain.max_characters=80",
    "domain.vocabulary=300",
]

NOUNS = [
    "state",
    "people",
    "nation",
    "river",
    "harbour",
    "winter",
    "treaty",
    "engine",
    "garden",
    "letter",
    "market",
    "bridge",
    "council",
    "island",
    "forest",
]
VERBS = [
    "builds",
    "keeps",
    "finds",
    "follows",
    "carries",
    "forgets",
    "measures",
    "answers",
    "repairs",
    "divides",
    "remembers",
    "crosses",
]
WORDS = [
    "old",
    "quiet",
    "northern",
    "second",
    "bright",
    "common",
    "distant",
    "careful",
    "honest",
    "narrow",
    "early",
    "public",
]


def sentences(seed: int, count: int) -> str:
    """Lines of made-up English; no two lines are equal within one seed, and rarely between seeds."""
    rng = random.Random(seed)
    lines = []
    for i in range(count):
        subject, thing = rng.sample(NOUNS, 2)
        lines.append(
            f"The {rng.choice(WORDS)} {subject} {rng.choice(VERBS)} the {rng.choice(WORDS)} {thing} {seed}.{i}."
        )
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 small text files."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(12):
        (folder / f"{i:02d}.txt").write_text(sentences(i, 40), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny(corpus: Path) -> list[str]:
    """The overrides TINY, with the path of the corpus."""
    return [*TINY, f"domain.corpus.path={corpus}"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own: a copy of conf/, an empty store, and the working directory in it."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copytree(REPOSITORY / "conf", root / "conf")
    monkeypatch.setenv("GENLOSS_PROJECT", str(root))
    monkeypatch.setenv("GENLOSS_STORE", str(root / ".genloss" / "store"))
    monkeypatch.chdir(root)
    return root


Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def genloss(project: Path) -> Command:
    """`genloss("run", ...)` runs the command in a process of its own, in `project`."""

    def run(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "genloss", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=project,
            check=False,
        )

    return run


@pytest.fixture
def main(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`main("run", ...)` calls the command in this process, which is seconds faster than a new one."""
    from genloss import cli

    monkeypatch.setattr(sys, "argv", ["genloss"])  # `run` sets it for Hydra

    def call(*arguments: str) -> Result:
        environment = dict(os.environ)
        capsys.readouterr()
        code = 0
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as exit:
            code = int(exit.code or 0)
        finally:
            os.environ.clear()
            os.environ.update(environment)  # `run` tells Hydra there to raise its errors
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@dataclass(frozen=True)
class Trained:
    """Prepared data, and a tiny llama and a tiny gpt2 that were trained on it."""

    domain: Text
    data: Path
    models: dict[str, Path]  # by their arch
    context: int

    @property
    def llama(self) -> Path:
        return self.models["llama"]

    @property
    def gpt2(self) -> Path:
        return self.models["gpt2"]


@pytest.fixture(scope="session")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from genloss.core.contracts import Fit
    from genloss.domains.text import Text
    from genloss.language.model import Scratch
    from genloss.language.trainer import Supervised
    from genloss.language.training import train

    root = tmp_path_factory.mktemp("trained")
    domain = Text(
        corpus={"_target_": "genloss.language.corpus.Folder", "path": str(corpus)},
        vocabulary=300,
        context=48,
        max_characters=80,
    )
    data = root / "data"
    domain.prepare(data)
    models = {}
    for arch in ("llama", "gpt2"):
        out = root / arch
        out.mkdir()
        fit = Fit(
            model=Scratch(arch=arch, width=32, feed_forward=64),
            trainer=Supervised(steps=30, batch=8),
            data=data,
            shards=[data / "train.parquet"],
            weights=[1.0],
            start=None,
            seed=1,
            out=out,
            options={"context": 48},
        )
        train(fit)
        models[arch] = out / "model"
    return Trained(domain, data, models, context=48)
