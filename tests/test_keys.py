"""A stage's key covers all project code that the stage executes: every stage of every domain runs under a tracer."""

from __future__ import annotations

import importlib
import inspect
import shutil
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from conftest import Trained
from genloss.core import code, source
from genloss.core.errors import UserError
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.experiment import Experiment
from genloss.language.trainer import Supervised
from genloss.loop import Loop
from genloss.stages import ALL, BEFORE_WORK, Job, Stage
from genloss.workflow.compose import compose, to_yaml
from support import REPOSITORY, Project, frozen

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
CHATS = [
    "domain=instruct",
    "domain.corpus.topics=1",
    "domain.corpus.entities=3",
    "domain.examples=200",
    "domain.validation=8",
    "domain.test=16",
    "domain.pool=48",
    "size=200",
    "rounds=2",
    "recipe.n=24",
    "recipe.chunk=24",
    "trainer.steps=120",
    "trainer.batch=8",
    "model=llama",
    "metrics.following.chunk=16",
]
DIGITS = [
    "domain=images",
    "domain/corpus=digits",
    "size=48",
    "rounds=2",
    "model.channels=[8,16]",
    "trainer.steps=4",
    "trainer.batch=8",
    "trainer.validate_every=2",
    "recipe.chunk=16",
    "recipe.steps=3",
    "metrics.denoising.max_records=8",
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
    "images": [*DIGITS, "recipe.bias=0.5", "trainer.start=previous", "mixing=accumulate", "curation=random"],
    "images, sprites": [*DIGITS[:1], *DIGITS[2:], "domain.corpus.n=200", "recipe.scheduler=euler"],
    "instruct": [*CHATS, "recipe.samples=2", "curation=[best_of,novelty,exact]", "curation.novelty.threshold=1"],
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
    "images, fabric": [
        "experiment=fabric",
        "size=64",
        "rounds=2",
        "trainer.steps=4",
        "trainer.batch=8",
        "model.channels=[8,16]",
        "recipe.n=3",
        "recipe.sessions=2",
        "recipe.steps=3",
        "recipe.dropout=0.3",
    ],
}


@pytest.mark.parametrize("arm", ARMS)
def test_the_key_covers_what_is_executed(
    arm: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracer: None
) -> None:
    overrides = [*tiny, *ARMS[arm]] if arm.startswith("text") else ARMS[arm]
    found = traced(overrides, tmp_path / "run", monkeypatch)
    assert set(found) == {stage.name for stage in ALL}


def test_the_key_covers_adapters(
    trained: Trained, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracer: None
) -> None:
    base = ["model=pretrained", f"model.path={trained.llama}", "model/adapter=lora", "curation=perplexity_low"]
    traced([*tiny, *base, "trainer.start=stacked"], tmp_path / "run", monkeypatch)


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
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # an edit within a second looks the same to it
    forget()
    yield folder
    forget()


def forget() -> None:
    """What is known of the package's files."""
    for cached in (*vars(code).values(), *vars(source).values()):
        if hasattr(cached, "cache_clear"):
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


def test_an_unknown_name_is_an_error_in_genloss_alone(package: Path) -> None:
    (package / "plugin.py").write_text("from mykeys import nothing, helper\n\n\nclass Mine:\n    x = nothing\n")
    assert "mykeys.helper" in code._reach.__wrapped__((("mykeys.plugin", "Mine"),), ()).modules()
    with pytest.raises(LookupError, match=r"genloss\.stages has no Nothing"):
        code._reach.__wrapped__((("genloss.stages", "Nothing"),), ())
    with pytest.raises(LookupError, match=r"no module genloss\.nothing"):
        source.parse("genloss.nothing")


UPGRADE = """
import sys
from pathlib import Path

from genloss import cli
from genloss.core.replaced import HOME
from genloss.loop import Loop

assert HOME.is_relative_to(Path.cwd())
go_on = Loop.round

def after_an_upgrade(self, n):
    (HOME / "domains/lab/rewards.py").write_text("# its parts have other names now")
    return go_on(self, n)

Loop.round = after_an_upgrade
cli.main(["run", *sys.argv[1:]])
"""


@pytest.mark.parametrize("sweep", [False, True])
def test_code_that_is_replaced_under_a_run_ends_it_in_one_line(tmp_path: Path, sweep: bool) -> None:
    home = Project.make(tmp_path / "project")
    shutil.copytree(REPOSITORY / "src", home.root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    here = Project(home.root, {**home.env, "PYTHONPATH": str(home.root / "src")})
    command = ["domain=gaussian", "size=8", "rounds=1", "tracking=none"]
    command += ["curation=top_reward", "recipe.n=16", *(["-m", "seed=0"] if sweep else [])]
    done = here.spawn(sys.executable, "-c", UPGRADE, *command)
    assert done.code == (1 if sweep else 2) and "Traceback" not in done.err, done.err
    [told] = [line for line in done.err.splitlines() if "LookupError" in line]
    assert told.startswith("genloss: ") and "rewards.py: was written anew while this ran" in told
    assert "run the same command again" in told
    before = frozen(home.store)
    assert before
    shutil.copy(REPOSITORY / "src/genloss/domains/lab/rewards.py", home.root / "src/genloss/domains/lab/rewards.py")
    again = here.spawn("genloss", "run", *command)
    assert again.code == 0, again.err
    assert before.items() <= frozen(home.store).items()


F = "def f(n=0):\n    return VALUE\n"
REGISTRY = "T = {}\n\ndef put(f):\n    T[f.__name__] = f\n    return f\n"
GET = "from mykeys.helper import f"
FIRST = "from mykeys.registry import T\n"


def mine(value: str, head: str = "", rest: str = "") -> str:
    return f"{head}\nclass Mine:\n    def decide(self):\n        return {value}\n{rest}"


# What users may write: file: its text. Mine().decide() is VALUE.
PATTERNS: dict[str, dict[str, str]] = {
    "star": {"helper.py": F, "plugin.py": mine("f()", "from mykeys.helper import *")},
    "star in a package": {
        "__init__.py": "from mykeys.helper import *",
        "helper.py": F,
        "plugin.py": mine("f()", "from mykeys import f"),
    },
    "try": {
        "helper.py": F,
        "plugin.py": mine("f()", "try:\n    from mykeys.helper import f\nexcept ImportError:\n    f = None"),
    },
    "exception": {
        "helper.py": "E = (KeyError, ValueError)[VALUE - 1]",
        "plugin.py": mine("v", "from mykeys import helper\ntry:\n    v = 1\n    {}[1]\n"
                          "except helper.E:\n    pass\nexcept LookupError:\n    v = 2"),
    },
    "attribute of a module": {
        "helper.py": "S = 0\n\ndef f():\n    return VALUE + S",
        "plugin.py": mine("helper.f() - 2", "from mykeys import helper\nhelper.S = 2"),
    },
    "item by a module": {
        "helper.py": "A = 1\n" + F,
        "plugin.py": mine("helper.f()", "from mykeys import helper\nT = {}\nT[helper.A] = 2"),
    },
    "with": {
        "helper.py": F,
        "plugin.py": mine("f()", "import contextlib\nwith contextlib.suppress(ImportError):\n"
                          "    from mykeys.helper import f"),
    },
    "for": {"helper.py": "for _ in [1]:\n    def f():\n        return VALUE", "plugin.py": mine("f()", GET)},
    "while": {"helper.py": "while True:\n    f = VALUE\n    break", "plugin.py": mine("f", GET)},
    "match": {"helper.py": "match VALUE:\n    case f:\n        pass", "plugin.py": mine("f", GET)},
    "match, more": {
        "helper.py": "match [{'a': VALUE}]:\n    case [{**f}]:\n        pass",
        "plugin.py": mine("f['a']", GET),
    },
    "walrus": {"helper.py": "X = (f := VALUE)", "plugin.py": mine("f", GET)},
    "not TYPE_CHECKING": {
        "helper.py": F,
        "plugin.py": mine("f()", "from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n"
                          "    from mykeys.helper import f"),
    },
    "not main": {"helper.py": F, "plugin.py": mine("f()", f"if __name__ != '__main__':\n    {GET}")},
    "two of one name": {
        "helper.py": F,
        "other.py": "f = 1",
        "plugin.py": mine("self.f()", "", "    def f(self):\n        from mykeys.helper import f\n        return f()\n"
                          "    def g(self):\n        from mykeys.other import f\n        return f\n"),
    },
    "one of two names": {
        "helper.py": F,
        "other.py": "f = 1",
        "plugin.py": mine("f()", GET,
                          "    def g(self):\n        from mykeys.other import f\n        return f\n"),
    },
    "decorated": {
        "registry.py": REGISTRY,
        "helper.py": "from mykeys.registry import put\n@put\n" + F,
        "plugin.py": mine("T['f']()", FIRST + "import mykeys.helper"),
    },
    "decorated, lazily": {
        "registry.py": REGISTRY,
        "helper.py": "from mykeys.registry import put\n@put\n" + F,
        "plugin.py": mine("[h, T['f']()][1]", FIRST + "def g():\n    from mykeys import helper", "h = g()"),
    },
    "called": {
        "registry.py": REGISTRY,
        "helper.py": "from mykeys.registry import put\n" + F + "g = put(f)",
        "plugin.py": mine("T['f']()", FIRST + "from mykeys import helper"),
    },
    "called by another": {
        "registry.py": REGISTRY,
        "helper.py": "from mykeys.registry import put\n" + F + "g = list(map(put, [f]))",
        "plugin.py": mine("T['f']()", FIRST + "from mykeys import helper"),
    },
    "grown": {
        "registry.py": "T = []",
        "helper.py": "from mykeys.registry import T\nT += [VALUE]",
        "plugin.py": mine("T[0]", FIRST + "from mykeys import helper"),
    },
    "subclass": {
        "registry.py": "T = {}\n\nclass B:\n    def __init_subclass__(cls):\n        T[cls.__name__] = cls\n",
        "helper.py": "from mykeys.registry import B\n\nclass L(B):\n    v = VALUE",
        "plugin.py": mine("T['L'].v", FIRST + "import mykeys.helper"),
    },
    "member": {
        "registry.py": REGISTRY,
        "helper.py": "from mykeys.registry import put\n\nclass L:\n    @put\n    def f():\n        return VALUE",
        "plugin.py": mine("T['f']()", FIRST + "import mykeys.helper"),
    },
    "patched by its package": {
        "__init__.py": "from mykeys import plugin\nplugin.Mine.v = VALUE",
        "plugin.py": mine("self.v"),
    },
    "check": {"plugin.py": mine("self.check()", "", "    def check(self):\n        return VALUE\n")},
    "parts": {"plugin.py": mine("self.parts()", "V = VALUE", "    def parts(self):\n        return V\n")},
    "import a.b": {"helper.py": F, "plugin.py": mine("mykeys.helper.f()", "import mykeys.helper")},
    "import a.b, a.c": {
        "helper.py": F,
        "other.py": "k = 0",
        "plugin.py": mine("mykeys.helper.f() + mykeys.other.k", "import mykeys.helper\nimport mykeys.other"),
    },
    "module of a package": {
        "__init__.py": "from . import helper",
        "helper.py": F,
        "plugin.py": mine("helper.f()", "from mykeys import helper"),
    },
    "name of its module": {
        "__init__.py": "from .f import f\nimport mykeys.f",
        "f.py": F,
        "plugin.py": mine("f()", "from mykeys import f"),
    },
    "parameter": {
        "helper.py": F,
        "plugin.py": mine("helper.f() + self.g({})", "from mykeys import helper",
                          "    def g(self, helper):\n        return len(helper.copy())\n"),
    },
    "__getattr__": {
        "__init__.py": "def __getattr__(name):\n    import importlib\n    if name != 'f':\n"
        "        raise AttributeError(name)\n    return importlib.import_module('mykeys.helper').f\n",
        "helper.py": F,
        "plugin.py": mine("mykeys.f()", "import mykeys"),
    },
    "global": {
        "helper.py": "def g():\n    global f\n    f = VALUE\n\ng()",
        "plugin.py": mine("f", GET),
    },
    "missing": {
        "helper.py": F,
        "plugin.py": mine("f()", "try:\n    from mykeys.fast import f\nexcept ImportError:\n"
                          "    from mykeys.helper import f"),
    },
    "made by a call": {
        "plugin.py": "from dataclasses import make_dataclass\n\ndef d(self):\n    return VALUE\n\n"
        "Mine = make_dataclass('Mine', [], namespace={'decide': d})\n",
    },
    "made by a function": {
        "helper.py": "def make(n):\n    class A:\n        def decide(self):\n            return n\n    return A\n",
        "plugin.py": "from mykeys.helper import make\n\nMine = make(VALUE)\n",
    },
    "replaced by a decorator": {
        "helper.py": "def more(cls):\n    class More(cls):\n        pass\n    return More\n",
        "plugin.py": "from mykeys.helper import more\n@more" + mine("VALUE"),
    },
}  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_edit_that_changes_the_result_changes_the_key(package: Path, pattern: str) -> None:
    keys = []
    for value in (1, 2):
        for file, text in PATTERNS[pattern].items():
            (package / file).write_text(text.replace("VALUE", str(value)))
        forget()
        cls = importlib.import_module("mykeys.plugin").Mine
        keys.append(code.reach([cls], {cls: BEFORE_WORK}).modules())
        assert cls().decide() == value
    assert keys[0] != keys[1]


def test_what_is_exact_stays_exact(package: Path) -> None:
    """Packages that import everything, a curator beside another, and texts below fields."""
    (package / "__init__.py").write_text("from .helper import *\nfrom .plugin import *\n")
    text = mine("rule(n=4)", "from genloss.curate import Curator\nfrom mykeys import rule")
    other = (
        '@dataclass(frozen=True)\nclass Other(Curator):\n    v: list = field(default_factory=list)\n    """Says."""\n'
    )
    text = f"from dataclasses import dataclass, field\n{text}\n{other}"
    before = hashes(package, "plugin.py", text)
    assert hashes(package, "plugin.py", text + "    w: int = 1\n") == before
    assert hashes(package, "helper.py", (package / "helper.py").read_text() + "MORE = [1]\n") == before
    text = text.replace("class Other", "class _Other").replace("class Mine", "class Other").replace("_Other", "Mine")
    before = hashes(package, "plugin.py", text)
    assert hashes(package, "plugin.py", text.replace("Says.", "Says more.")) == before


def test_the_script_that_runs_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, keys = types.ModuleType("__main__"), []
    monkeypatch.setitem(sys.modules, "__main__", script)
    for value in (1, 2):
        text = mine("V", "V = 0", f"if __name__ == '__main__':\n    V = {value}")
        (tmp_path / "script.py").write_text(text)
        script.__file__ = str(tmp_path / "script.py")
        exec(text, vars(script))
        forget()
        keys.append(code.reach([vars(script)["Mine"]]).modules())
    assert "__main__" in keys[0] and keys[0] != keys[1]
    script.__file__ = "<stdin>"
    forget()
    with pytest.raises(UserError, match=r"__main__\.Mine: has no source"):
        code.reach([vars(script)["Mine"]])
    forget()


def test_arguments_of_callbacks_count(package: Path) -> None:
    (package / "plugin.py").write_text(mine("1") + "def make():\n    return 1\n")
    inner = {"_target_": "mykeys.helper.rule"}
    node = {"_target_": "mykeys.plugin.Mine", "a": [{"_target_": "mykeys.plugin.make", "b": inner}]}
    reached = code.reach(Supervised(callbacks={"mine": node}).classes())
    wanted = {
        ("mykeys.plugin", "Mine"),
        ("mykeys.plugin", "make"),
        ("mykeys.helper", "rule"),
        ("mykeys.helper", "LIMIT"),
    }
    assert wanted <= reached.found


def test_a_curator_is_in_no_key_of_a_training() -> None:
    x = Experiment(compose(["curation=[dedup,rules]", "mixing=accumulate"]))
    reached = {stage.name: set(stage.code(x).modules()) for stage in ALL}
    assert {"genloss.curate.duplicates", "genloss.curate.rules"} <= reached["curate"]
    for stage in ("data", "generate", "mix", "train"):
        assert not {m for m in reached[stage] if m.startswith("genloss.curate")}
    assert not {m for m in reached["train"] if m.startswith(("genloss.domains", "genloss.mix", "genloss.generate"))}
