"""A stage's key covers all project code that the stage executes: every stage of every domain runs under a tracer."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from genloss.core import code
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.stages import ALL, Job, Stage
from genloss.workflow.compose import compose, to_yaml

Place = tuple[str, str]  # module, qualified name

executed: set[Place] | None = None  # what the tracer sees now; None: it looks away


def _look(frame: FrameType, event: str, argument: Any) -> None:
    if event == "call" and executed is not None:
        made = frame.f_code
        body = made.co_flags & inspect.CO_OPTIMIZED  # no module and no class that is being made by an import
        if body and "genloss" in made.co_filename and not made.co_filename.startswith("<"):
            executed.add((frame.f_globals["__name__"], made.co_qualname))


@pytest.fixture
def tracer() -> Iterator[None]:
    sys.setprofile(_look)
    threading.setprofile(_look)
    yield
    sys.setprofile(None)
    threading.setprofile(None)


def uncovered(seen: set[Place], reach: code.Reach) -> set[Place]:
    """What was executed and is not in the key. Members that a class is hashed without count as not in it."""
    missing = set()
    for module, name in seen:
        if not module.startswith("genloss") or module in code.PLUMBING:
            continue
        top, _, rest = name.partition(".")
        skipped = rest.partition(".")[0] in reach.without.get((module, top), ())
        if skipped or not ((module, top) in reach.found or (top == "<lambda>" and (module, "") in reach.found)):
            missing.add((module, name))
    return missing


def traced(overrides: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Place]]:
    """Run an arm; every stage is compared with its key. Returns what was executed, by stage."""
    found: dict[str, set[Place]] = {}

    def watch(stage: Stage, patch: pytest.MonkeyPatch) -> None:
        plain = type(stage).execute

        def execute(self: Stage, job: Job, out: Path, scratch: Path) -> dict[str, Any]:
            global executed
            executed = set()
            try:
                result = plain(self, job, out, scratch)
            finally:
                seen, executed = executed, None
            assert seen
            found.setdefault(self.name, set()).update(seen)
            assert not uncovered(seen, self.code(job.x))
            return result

        patch.setattr(type(stage), "execute", execute)

    cfg = compose([*overrides, "tracking=none", "runtime.workers=2"])
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(to_yaml(cfg))
    with monkeypatch.context() as patch:
        for stage in ALL:
            watch(stage, patch)
        Loop(Experiment(cfg), RunDir(folder, Store(folder.parent / "store"))).run()
    return {stage: sorted(places) for stage, places in found.items()}


SUMS = [
    "domain=reasoning",
    "domain/tasks=arithmetic",
    "domain.tasks.arithmetic.operations=[1,2]",
    "domain.context=48",
    "domain.vocabulary=300",
    "domain.examples=48",
    "domain.validation=16",
    "domain.test=16",
    "domain.pool=48",
    "size=48",
    "rounds=2",
    "recipe.chunk=16",
    "trainer.steps=8",
    "trainer.batch=8",
    "metrics.accuracy.chunk=16",
]
LAB = ["rounds=2", "size=30", "domain.chains=40"]
TEXT = "curation=[dedup,near_dedup,rules,top,novelty,perplexity_low,random]"
LOOSE = ["curation.rules.max_repeated=1", "curation.rules.max_top_word=1", "curation.rules.min_characters=0"]
ARMS: dict[str, list[str]] = {
    "text": [TEXT, *LOOSE, "curation.novelty.threshold=1", "mixing=accumulate", "recipe.prompts=previous"],
    "text, gpt2": [
        "model=gpt2",
        "recipe.repetition_penalty=1.1",
        "recipe.top_k=50",
        "recipe.bias=0.9",
        "mixing=replace_keep",
    ],
    "gaussian": [
        "domain=gaussian",
        *LAB,
        "curation=truncate",
        "mixing=accumulate_subsample",
        "model.estimator=unbiased",
    ],
    "gaussian, rewards": ["domain=gaussian", *LAB, "curation=[bradley_terry,random]", "recipe.n=90", "recipe.bias=0.9"],
    "gaussian, kernel": ["domain=gaussian", *LAB, "model.estimator=kde", "mixing=weighted_fresh"],
    "categorical": ["domain=categorical", *LAB, "recipe.top_p=0.9", "mixing=replace_keep"],
    "categorical, text": [
        "domain=categorical",
        *LAB,
        "domain.distribution=text",
        "domain/corpus=sotu",
        "domain.chains=4",
    ],
    "gmm": ["domain=gmm", *LAB, "trainer.start=previous"],
    "regression": ["domain=regression", *LAB, "domain.dimension=3", "curation=random"],
    "regression, fresh": ["domain=regression", *LAB, "domain.dimension=3", "domain.design=fresh", "model.ridge=0.1"],
    "classification": ["domain=classification", *LAB, "domain.dimension=3", "curation=verifier"],
    "classification, linear": [
        "domain=classification",
        *LAB,
        "domain.dimension=3",
        "domain.geometry=halfspace",
        "curation=linear_verifier",
    ],
    "solve": [*SUMS, "recipe=solve", "recipe.n=12", "recipe.samples=2", "curation=[best_of,noisy]"],
    "solve, judged": [
        *SUMS[:1],
        *SUMS[3:],
        "domain/tasks=gcd",
        "domain.context=64",
        "recipe=solve",
        "recipe.n=24",
        "trainer.steps=60",
        "curation=agree",
        "curation.agree.chunk=16",
    ],
    "gym": [
        *SUMS[:1],
        *SUMS[3:],
        "domain/tasks=gcd",
        "domain.context=64",
        "recipe=solve",
        "recipe.n=12",
        "curation=likelihood",
    ],
    "eigenvalues": [*SUMS[:1], *SUMS[3:], "domain/tasks=eigenvalues", "recipe=solve", "recipe.n=12"],
    "llm2llm": [*SUMS, "recipe=llm2llm", "mixing=accumulate"],
    "evol_instruct": [
        *SUMS,
        "recipe=evol_instruct",
        "recipe.n=24",
        "recipe.label=exact",
        "recipe.samples=1",
        "curation=evol_reward",
        "curation.evol_reward.select=sample",
        "mixing=accumulate",
        "metrics=[accuracy,evolution]",
        "model=schooled",
        "model.examples=16",
        "model.steps=4",
        "model.batch=4",
        "+model.tasks.more={_target_: genloss.domains.reasoning.arithmetic.Arithmetic, operations: [1]}",
    ],
    "grpo": [
        *SUMS,
        "recipe=evol_instruct",
        "recipe.n=24",
        "curation=none",
        "trainer=grpo",
        "trainer.start=previous",
        "trainer.updates=2",
        "trainer.steps=8",
        "trainer.batch=8",
        "mixing=accumulate",
    ],
}


@pytest.mark.parametrize("arm", ARMS)
def test_the_key_covers_what_is_executed(
    arm: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracer: None
) -> None:
    overrides = [*tiny, *ARMS[arm]] if arm.startswith("text") else ARMS[arm]
    found = traced(overrides, tmp_path / "run", monkeypatch)
    assert set(found) == {stage.name for stage in ALL}


def test_the_key_covers_critics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracer: None) -> None:
    critic = [
        "experiment=critic", *SUMS[4:], "domain.context=80", "rounds=0", "recipe.n=1",
        "metrics.critique.max_records=8", "metrics.critique.chunk=8",
    ]  # fmt: skip
    traced(critic, tmp_path / "critic" / "run", monkeypatch)
    judged = [*SUMS, "recipe=refine", "recipe.n=12", "recipe.revisions=1", f"recipe.critic={tmp_path}/critic/run"]
    by = [
        "curation=critic",
        "curation.critic.select=best",
        "recipe.samples=2",
        f"curation.critic.path={tmp_path}/critic/run",
    ]
    found = traced([*judged, *by, "metrics=[accuracy,refinement]"], tmp_path / "arm" / "run", monkeypatch)
    assert ("genloss.systems.shepherd.critic", "find") in found["curate"]


def test_the_comparison_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracer: None) -> None:
    """Take one module out of the key of a stage: the comparison names it."""
    overrides = ARMS["gaussian, rewards"]
    found = traced(overrides, tmp_path / "run", monkeypatch)
    x = Experiment(compose(overrides))
    for stage in ALL:
        seen, reach = set(found[stage.name]), stage.code(x)
        for module in {m for m, _ in seen if m not in code.PLUMBING}:
            less = code.Reach({p for p in reach.found if p[0] != module}, reach.without)
            assert {m for m, _ in uncovered(seen, less)} == {module}
    curate = found["curate"]
    assert ("genloss.domains.lab.curate", "curate_chains") in curate  # which the hand-written lists had missed


# -- what a key does and does not depend on ----------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of a user: a curator that calls a helper of another module."""
    folder = tmp_path / "mykeys"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text('"""Docs."""\nLIMIT = 3\nUNUSED = 1\n\ndef rule(n):\n    return n > LIMIT\n')
    (folder / "plugin.py").write_text(
        "from mykeys import helper\n\n\nclass Mine:\n    def decide(self):\n        return helper.rule(4)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield folder
    forget()


def forget() -> None:
    """What is known of the package's files."""
    for cached in (code.parse, code._statements, code._text, code._reach, code.is_module, code.is_project):
        cached.cache_clear()
    for name in [m for m in sys.modules if m.split(".")[0] == "mykeys"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def hashes(folder: Path, file: str = "", text: str = "") -> dict[str, str]:
    """What is reached of the package, after a change of one file."""
    if file:
        (folder / file).write_text(text)
    forget()
    mine = importlib.import_module("mykeys.plugin").Mine
    return code.reach([mine]).modules()


def test_packages_of_users_are_followed(package: Path) -> None:
    assert set(hashes(package)) == {"mykeys.plugin", "mykeys.helper"}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (
            '"""Other docs."""\nLIMIT = 3  # why\nUNUSED = 1\n\n\n'
            'def rule(n):\n    """Says."""\n    return (n > LIMIT)\n',
            True,
        ),
        ("LIMIT = 3\nUNUSED = 2\n\ndef rule(n):\n    return n > LIMIT\n", True),
        ("LIMIT = 4\nUNUSED = 1\n\ndef rule(n):\n    return n > LIMIT\n", False),
        ("LIMIT = 3\nUNUSED = 1\n\ndef rule(n):\n    return n >= LIMIT\n", False),
        ("from math import inf as LIMIT\n\ndef rule(n):\n    return n > LIMIT\n", False),
        ("LIMIT = 3\nprint()\n\ndef rule(n):\n    return n > LIMIT\n", False),  # runs when it is imported
    ],
)
def test_comments_docs_and_layout_are_no_code(package: Path, text: str, same: bool) -> None:
    before = hashes(package)
    assert (hashes(package, "helper.py", text) == before) == same


def test_an_unknown_module_is_an_error(package: Path) -> None:
    (package / "plugin.py").write_text("from mykeys import nothing\n\n\nclass Mine:\n    x = nothing\n")
    with pytest.raises(LookupError, match=r"mykeys has no nothing"):
        code._reach.__wrapped__((("mykeys.plugin", "Mine"),), ())
    with pytest.raises(LookupError, match=r"no module genloss\.nothing"):
        code.parse("genloss.nothing")


def test_a_curator_is_in_no_key_of_a_training() -> None:
    x = Experiment(compose(["curation=[dedup,rules]", "mixing=accumulate"]))
    reached = {stage.name: set(stage.code(x).modules()) for stage in ALL}
    assert {"genloss.curate.duplicates", "genloss.curate.rules"} <= reached["curate"]
    for stage in ("data", "generate", "mix", "train"):
        assert not {m for m in reached[stage] if m.startswith("genloss.curate")}
    assert not {m for m in reached["train"] if m.startswith(("genloss.domains", "genloss.mix", "genloss.generate"))}
