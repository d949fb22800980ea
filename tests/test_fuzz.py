"""Every key of every option, with values that nobody means: refused in one line before any work, or used; never a
traceback, a hang, or a name that leaves the project.

`make fuzz` tries every key with every value, which takes minutes; `make test` a seeded sample of them.
"""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genloss.core.errors import UserError
from genloss.core.plugin import plain
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.experiment import SCHEDULED, Experiment
from genloss.loop import Loop
from genloss.workflow.compose import resolve, to_yaml
from genloss.workflow.identity import arm_id, label
from test_pairs import SMALL, STAGE, config, node_of, options

WORDS: list[Any] = ["banana", "", " ", "a/b", "../../x", "a\nb", "\0", "~", "$" + "{size", "é" * 300, ".x", "-1", "1e3"]
NUMBERS: list[Any] = [-1, -0.5, 10**18, -(10**18), 2**63, 1e300, -1e300, 1e-320, float("inf"), float("nan")]
SHAPES: list[Any] = [None, True, [], [None], ["banana"], {}, {"banana": 1}, {"_target_": ".x"}, [[1]], {1: 2}]
ABSENT = object()
BAD = [*WORDS, *NUMBERS, *SHAPES, ABSENT]
LATER = "schedule.1."  # before a key: that of round 1

# What any text may be: it is written down, or asked of a server; and what nobody asks for: a critic
# where no factor is one, a corpus where the distribution is none
FREE = re.compile(
    r"tracking\.experiment|domain\.corpus\.pattern|.*\.critic\b.*|.*teacher\.(model|key)|categorical domain\.corpus.*"
    r"|recipe\.backend\.(model|key|system|begin)"
)
HANG = 5.0  # seconds of CPU; a check takes a fiftieth
TOP = ["size", "rounds", "seed", "control", "schedule", "runtime", "tracking"]
GROUPS = [*STAGE, "model/adapter"]
BASES = [(d, c) for d in ("text", *SMALL) for c in ("", *(f"{g}={name}" for g in GROUPS for name in options(g)))]

Case = tuple[str, str, str, Any]  # domain, option (GROUP=NAME, or '' for what is in every config), key, value


# What an option asks for that is made first (`lab`), where it asks for no more than an option (HELP of test_pairs)
CRITIC = "{lab}/critic"
SAVED = ["model.path={lab}/model", "domain.tokenizer={lab}/critic/data/tokenizer"]
MADE = {
    "curation=critic": [f"curation.critic.path={CRITIC}"],
    "recipe=refine": [f"recipe.critic={CRITIC}"],
    "metrics=refinement": ["recipe=refine", f"recipe.critic={CRITIC}"],
    "model=pretrained": SAVED,
    **{f"model/adapter={name}": ["model=pretrained", *SAVED] for name in options("model/adapter")},
    "recipe/backend=openai": ["recipe.backend.model=m", "recipe.prompts=real"],
    "recipe/teacher=endpoint": ["recipe.teacher.model=m"],
    "recipe/teacher=model": ["recipe.teacher.path={lab}/model"],
}


@cache
def lab(corpus: Path) -> Path:
    """A folder with a critic's run and a saved model."""
    folder = corpus.parent / "lab"
    cfg = config("reasoning", "metrics=critique", [])
    cfg.rounds = 0
    run = Loop(Experiment(cfg), RunDir(folder / "critic", Store(folder / "store")))
    run.run()
    (folder / "critic/params.yaml").write_text(to_yaml(cfg))
    shutil.copytree(run.run_dir.round(0) / "model", folder / "model")
    return folder


@cache
def base(domain: str, choice: str, corpus: Path) -> DictConfig | None:
    """A config that is in order; None if the option does not fit the domain."""
    small = ["size=48", "domain/corpus=folder", f"domain.corpus.path={corpus}", "domain.context=32"]
    asked = [word.format(lab=lab(corpus)) for word in MADE.get(choice, [])]
    small += ["domain.vocabulary=300", *([] if choice.startswith("recipe/teacher") else ["recipe.max_tokens=32"])]
    try:
        cfg = config(domain, choice or "mixing=replace", small, asked)
        Experiment(cfg)
    except UserError:
        return None
    return cfg


def keys(node: Any, at: str) -> Iterator[str]:
    yield at
    if isinstance(node, dict):
        for name, value in node.items():
            yield from keys(value, f"{at}.{name}")


def keys_of(domain: str, choice: str, corpus: Path) -> list[str]:
    """The keys of an option, or with '' of what every config has; none if the option does not fit the domain."""
    cfg = base(domain, choice, corpus)
    if cfg is None:
        return []
    group, _, option = choice.partition("=")
    tops = [node_of(cfg, group, option)] if choice else ["domain", *(TOP if domain == "text" else ())]
    found = [key for top in tops for key in keys(plain(OmegaConf.select(cfg, top)), top)]
    return [*found, *(LATER + key for key in found if key.partition(".")[0] in SCHEDULED)]


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {HANG} s of CPU")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def tried(case: Case, corpus: Path) -> str:
    """What became of a bad value: 'refused: ...', 'used', or what is wrong."""
    domain, choice, key, value = case
    made = base(domain, choice, corpus)
    assert made is not None
    cfg = made.copy()
    before = OmegaConf.select(cfg, key.removeprefix(LATER))
    if plain(before) == value and type(before) is type(value):
        return "used"
    try:
        with no_hang():
            parent, _, last = key.rpartition(".")
            try:
                if value is ABSENT:
                    del (OmegaConf.select(cfg, parent) if parent else cfg)[last]
                else:
                    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
            except OmegaConfBaseException as error:  # Hydra sets values in the same way, and its errors become a line
                return f"refused: {error}"
            new = resolve(cfg)
            Experiment(new)
            arm_id(new)
            folder = label(new)
    except UserError as error:
        line = str(error)
        named = key.removeprefix(LATER).split(".")[0] in line
        return f"refused: {line}" if line.isprintable() and named else f"no line: {line!r}"
    except BaseException as error:
        return f"traceback: {type(error).__name__}: {error}"
    if Path(folder).name != folder or len(folder.encode()) > 200:
        return f"a folder elsewhere: {folder!r}"
    if key.endswith(("seed", ".name")) or FREE.fullmatch(key) or FREE.fullmatch(f"{domain} {key}"):
        return "used"
    kind = type(before) if isinstance(before, str | bool) else float if isinstance(before, int | float) else object
    number = isinstance(value, int | float) and not isinstance(value, bool)
    same = isinstance(value, kind) or (kind is float and number)
    if kind is float and value in ("-1", "1e3"):  # a number all the same
        return "used"
    if value is ABSENT:  # what has a default, or is none of several options
        return "used"
    if isinstance(value, str) or (number and not 1e-12 <= abs(value) <= 1e12) or not (same or value is None):
        return f"nonsense: in place of {before!r}"
    return "used"


def wrong(bases: list[tuple[str, str]], corpus: Path, rng: random.Random | None = None, cases: int = 0) -> list[str]:
    """What is wrong, of all bad values of these options' keys, or of `cases` an option."""
    found = []
    for domain, choice in bases:
        every = [(domain, choice, key, value) for key in keys_of(domain, choice, corpus) for value in BAD]
        every = [case for case in every if not (case[3] is ABSENT and case[2].startswith(LATER))]
        for case in rng.sample(every, min(cases, len(every))) if rng else every:
            if not (what := tried(case, corpus)).startswith(("refused", "used")):
                found.append(f"{domain} {choice} {case[2]}={case[3]!r}: {what}")
    return found


@pytest.mark.fuzz
def test_every_option_is_tried(corpus: Path, project: Path) -> None:
    assert {choice for _, choice in BASES} - {c for d, c in BASES if keys_of(d, c, corpus)} == set()


def test_a_sample_of_bad_values(corpus: Path, project: Path) -> None:
    rng = random.Random(1)
    assert wrong([("text", ""), *rng.sample(BASES, 12)], corpus, rng, 25) == []


@pytest.mark.fuzz
@pytest.mark.timeout(3600)  # minutes on an idle core
@pytest.mark.parametrize("group", ["", *GROUPS])
@pytest.mark.parametrize("domain", ["text", *SMALL])
def test_every_bad_value(domain: str, group: str, corpus: Path, project: Path) -> None:
    bases = [(d, c) for d, c in BASES if d == domain and c.partition("=")[0] == group]
    assert wrong(bases, corpus) == []
    assert not [p for p in project.parent.iterdir() if p != project]  # nothing was written beside the project
