"""Nothing is ignored in silence: for every domain and every option of every group, either the option is refused in one
line before any work, or one tiny round runs to its end and every field that can be changed changes the key of the stage
that uses the option."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from genloss.core.contracts import Runtime, silent
from genloss.core.errors import UserError, one_of
from genloss.core.plugin import flatten, plain
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.stages import CURATE, EVALUATE, GENERATE, MIX, TRAIN, Job
from genloss.workflow.compose import compose
from support import REPOSITORY, undocumented

STAGE = {
    "model": TRAIN,
    "trainer": TRAIN,
    "recipe": GENERATE,
    "recipe/backend": GENERATE,
    "recipe/teacher": GENERATE,
    "curation": CURATE,
    "mixing": MIX,
    "metrics": EVALUATE,
}
LAB = ["size=32", "domain.chains=16"]
SMALL = {
    "gaussian": LAB,
    "categorical": LAB,
    "gmm": LAB,
    "regression": [*LAB, "domain.dimension=3"],
    "classification": [*LAB, "domain.dimension=3"],
    "reasoning": [
        "domain/tasks=arithmetic",
        "domain.tasks.arithmetic.operations=[1]",
        "domain.context=48",
        "domain.vocabulary=300",
        "domain.examples=64",
        "domain.validation=8",
        "domain.test=16",
        "domain.pool=48",
        "size=32",
    ],
    "instruct": [
        "domain.examples=64",
        "domain.validation=8",
        "domain.test=16",
        "domain.pool=48",
        "model=llama",
        "size=32",
    ],
    "images": ["domain/corpus=digits", "size=32"],
}
# What makes an option of a group tiny, where the config has the key
TINY = {
    "trainer.steps": 4,
    "trainer.batch": 4,
    "trainer.validate_every": 2,
    "trainer.updates": 2,
    "trainer.prompts": 2,
    "trainer.group": 2,
    "recipe.n": 48,
    "recipe.chunk": 16,
    "metrics.accuracy.chunk": 16,
    "metrics.following.chunk": 16,
    "metrics.following.max_records": 8,
    "metrics.response_loss.max_records": 8,
    "metrics.accuracy.max_records": 8,
    "metrics.evolution.max_records": 8,
    "metrics.evolution.chunk": 8,
    "metrics.critique.max_records": 8,
    "model.examples": 16,
    "model.batch": 4,
    "curation.agree.chunk": 16,
    "recipe.max_tokens": 32,
    "recipe.steps": 3,
    "metrics.denoising.max_records": 8,
}
# What an option asks for by its own words before it can work; without this it is refused, which is as good
HELP = {
    ("reasoning", "recipe=llm2llm"): ["mixing=accumulate"],
    ("reasoning", "recipe=evol_instruct"): ["recipe.label=exact", "recipe.samples=1"],
    ("reasoning", "curation=best_of"): ["recipe.samples=2"],
    ("reasoning", "curation=evol_reward"): ["recipe=evol_instruct", "recipe.samples=2"],
    ("reasoning", "curation=instruction_reward"): ["recipe=evol_instruct", "recipe.samples=2"],
    ("reasoning", "curation=process_reward"): ["recipe=evol_instruct", "recipe.samples=2"],
    ("reasoning", "metrics=critique"): ["domain/tasks=[critique,arithmetic]", "domain.context=96"],
    ("reasoning", "trainer=grpo"): ["trainer.start=previous", "mixing=accumulate"],
    ("reasoning", "metrics=evolution"): ["recipe=evol_instruct", "recipe.label=exact", "recipe.samples=1"],
    ("text", "curation=rules"): [
        f"curation.rules.{k}" for k in ("max_repeated=1", "max_top_word=1", "min_characters=0")
    ],
    ("text", "metrics=validity"): ["+metrics.validity.checker._target_=genloss.evaluate.validity.Python"],
    ("text", "metrics=topics"): ["metrics.topics.topics=[river]"],
    ("instruct", "metrics=topics"): ["metrics.topics.topics=[number]"],
    ("text", "curation=novelty"): ["curation.novelty.threshold=0.99"],
    ("reasoning", "curation=novelty"): ["curation.novelty.threshold=0.99", "curation.novelty.real=false"],
    ("instruct", "curation=novelty"): ["curation.novelty.threshold=0.99", "curation.novelty.real=false"],
    ("instruct", "curation=best_of"): ["recipe.samples=2"],
    ("images", "curation=clicks"): ["curation.clicks.liked=[0]"],
    ("classification", "curation=linear_verifier"): ["domain.geometry=halfspace"],
    ("gaussian", "curation=bradley_terry"): ["curation.bradley_terry.k=2"],
}


def options(group: str) -> list[str]:
    """Without a real model, whose rounds take minutes: tests/test_pretrained.py has its options on tiny ones."""
    return sorted(path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml") if path.stem != "smollm2")


def config(domain: str, choice: str, tiny: list[str], more: Sequence[str] = ()) -> DictConfig:
    """A config of one round, as small as it can be made."""
    group, _, option = choice.partition("=")
    metrics = f"metrics=[{option}]" if group == "metrics" else ""
    curation = choice if group != "metrics" else ""
    recipe = ["recipe=llm2llm", "mixing=accumulate"] if group == "recipe/teacher" else []
    small = tiny if domain == "text" else SMALL[domain]
    overrides = [
        *small,
        f"domain={domain}",
        *recipe,
        *filter(None, [curation, metrics]),
        *HELP.get((domain, choice), []),
        *more,
    ]
    last = {override.partition("=")[0]: override for override in overrides}
    cfg = compose([*last.values(), "rounds=1", "tracking=none", "runtime.workers=1"])
    for key, value in TINY.items():
        if isinstance(OmegaConf.select(cfg, key), int):
            OmegaConf.update(cfg, key, value)
    if OmegaConf.select(cfg, "recipe.seed_problems"):
        cfg.recipe.seed_problems = cfg.size
    return cfg


def node_of(cfg: DictConfig, group: str, option: str) -> str:
    """The key of the option's fields."""
    if group == "curation":
        return f"curation.{next(iter(cfg.curation), '')}"
    return f"metrics.{option}" if group == "metrics" else group.replace("/", ".")


def others(value: Any) -> list[Any]:
    """Other values of the same kind, near at hand."""
    if isinstance(value, bool):
        return [not value]
    near: list[Any] = []
    if isinstance(value, int):
        near = [value + 1, value * 2, value - 1]
    elif isinstance(value, float):
        near = [value * 0.9, value * 1.1, 0.5, value + 1]
    return [v for v in near if v != value]


def changed(cfg: DictConfig, key: str) -> list[tuple[str, Experiment]]:
    """Experiments that differ in one field below `key`, and are valid."""
    found = []
    node = OmegaConf.select(cfg, key)
    for name, value in (plain(node) or {}).items() if node is not None else ():
        for other in others(value):
            new = cfg.copy()
            OmegaConf.update(new, f"{key}.{name}", other)
            try:
                found.append((f"{key}.{name}", Experiment(new)))
            except UserError:
                continue
            break
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("pairs") / "store")


def tried(domain: str, choice: str, tiny: list[str], folder: Path, store: Store) -> str:
    """'refused', or what was checked of an option that runs."""
    group, _, option = choice.partition("=")
    try:
        cfg = config(domain, choice, tiny)
        x = Experiment(cfg)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 400, error
        return f"refused: {error}"
    run = RunDir(folder, store)
    try:
        Loop(x, run).run()
    except UserError as error:  # a tiny model makes nothing that a selector could keep: after all checks, and by name
        assert f"curation={option}: kept none" in str(error), (domain, choice, error)
        return "kept none"
    names = {name for path in folder.glob("rounds/*/metrics.json") for name in json.loads(path.read_text())}
    assert not undocumented(names), (domain, choice)
    stage = STAGE[group]
    key = stage.work(Job(x, 1, run, silent)).key
    fields = changed(cfg, node_of(cfg, group, option))
    for name, other in fields:
        if name.rpartition(".")[2] in ("name", "checkpoint_minutes"):
            continue
        if name in ("trainer.validate_every", "trainer.validation_rows"):
            continue
        assert stage.work(Job(other, 1, run, silent)).key != key, f"{domain} {choice}: {name} changes nothing"
    return f"ran, {len(fields)} fields"


@pytest.mark.parametrize("group", STAGE)
@pytest.mark.parametrize("domain", ["text", *SMALL])
def test_an_option_is_used_or_refused(domain: str, group: str, tiny: list[str], tmp_path: Path, store: Store) -> None:
    found = {}
    for option in options(group):
        found[option] = tried(domain, f"{group}={option}", tiny, tmp_path / option, store)
    print(domain, group, found)
    ran = [o for o, what in found.items() if what.startswith("ran")]
    assert ran or group in ("recipe/teacher", "recipe/backend")


def test_the_trainer_of_another_domain_is_refused() -> None:
    """trainer=grpo on text trained supervised, and had an arm of its own."""
    with pytest.raises(UserError, match=r"trainer=Grpo: needs .*; use domain=instruct, reasoning"):
        Experiment(compose(["trainer=grpo", "trainer.start=previous"]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["recipe=draw"],
            r"recipe=Draw: needs .*domain=text has none; use domain=categorical, classification, gaussian",
        ),
        (["metrics=[estimates]"], r"metrics\.estimates=Estimates: needs .*; use domain=categorical"),
        (
            ["domain=reasoning", "metrics=[estimates]"],
            r"metrics\.estimates=Estimates: needs .*; use domain=categorical",
        ),
        (["domain=reasoning", "recipe=sample"], r"recipe=Sample: needs records that are documents: .* use domain=text"),
        (
            ["domain=gaussian", "curation=dedup"],
            r"curation\.dedup=Deduplicate: needs .*; use domain=instruct, reasoning, text",
        ),
        (
            ["curation=exact"],
            r"curation\.exact=Exact: needs exact answers, and domain=text has none; use domain=instruct, reasoning",
        ),
        (["domain=gmm", "curation=truncate"], r"curation\.truncate=Truncate: needs models with one mean .*gaussian"),
        (
            ["domain=gaussian", "model=llama"],
            r"model=Scratch: is no model of domain=gaussian, which takes GaussianModel",
        ),
        (["trainer=closed_form"], r"trainer=ClosedForm: is no trainer of domain=text, which takes"),
        (["domain=gaussian", "trainer=answers"], r"is no trainer of domain=gaussian, which takes ClosedForm"),
    ],
)
def test_what_does_not_fit_names_the_domains_that_do(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Experiment(compose(overrides))


# -- every value of every choice ---------------------------------------------------------------------------------------


def choices(cfg: DictConfig, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, list[str]]]:
    """{key in the config: (class, names)} of every option that takes one of some names, as the plug-ins check it."""
    found: dict[str, tuple[str, list[str]]] = {}
    asked: list[tuple[Any, str, list[str]]] = []

    def heard(key: str, value: Any, names: Any) -> None:
        one_of(key, value, names)
        asked.append((sys._getframe(1).f_locals.get("self"), key, list(names)))

    Experiment(cfg)  # loads what would otherwise import the listener
    with monkeypatch.context() as patch:
        for module in [m for name, m in sys.modules.items() if name.startswith("genloss.")]:
            if getattr(module, "one_of", None) is one_of and not module.__name__.endswith("errors"):
                patch.setattr(module, "one_of", heard)
        Experiment(cfg)
    nodes = {k.removesuffix("._target_"): v for k, v in flatten(plain(cfg)) if k.endswith("._target_")}
    for plugin, name, names in asked:
        where = [key for key, target in nodes.items() if target.rpartition(".")[2] == type(plugin).__name__]
        for key in ["runtime"] if isinstance(plugin, Runtime) else where:
            found[f"{key}.{name}"] = (type(plugin).__name__, [n for n in names if " " not in n])
    for key, _ in flatten(plain(cfg)):
        above, _, name = key.rpartition(".")
        if above in nodes and name in WORDS:
            found[key] = (nodes[above].rpartition(".")[2], WORDS[name])
    return found


# What a value asks for by its own words
ASKS: dict[str, dict[str, Any]] = {
    "recipe.prompts=real": {"recipe.prompt_tokens": 4},
    "recipe.prompts=previous": {"recipe.prompt_tokens": 4},
    "domain.distribution=given": {"domain.probabilities": [0.5, 0.5]},
    "domain.direction=backward": {"domain.pool": 120},  # of which the pairs are left
}
# Words that an option takes beside a path or a number, so that they are in no list
WORDS = {"judge": ["round0", "last"], "tokenizer": ["bpe"]}
# Refused, or of another machine, run or model: tests/test_training.py, test_grpo.py, test_critic.py, test_pretrained.py
NOT_HERE = (
    "runtime.strategy",
    "runtime.accelerator",
    "Grpo.start=base",
    "Supervised.start=stacked",
    "ClosedForm.start=stacked",
    "Grpo.start=stacked",
    "Diffusion.start=stacked",  # a UNet has no adapters
    "Once.start=base",  # its model stays as it is
    "Once.start=stacked",
    "ResponseReward.factors=critic",
    "EvolReward.factors=critic",
    *(f"World.skills={name}" for name in ("answer", "propose", "describe", "recall", "rate")),  # keys, not values
    "Author.tokenizer=bpe",  # names that other plug-ins have choices for: an author's are a saved tokenizer,
    "Evolve.judge=round0",  # and whether it judges
    "Evolve.judge=last",
)


# metrics and recipe/teacher have no such words; mixing: tests/test_mixing.py; runtime.strategy: tests/test_training.py
@pytest.mark.parametrize("group", ["domain", "model", "trainer", "recipe", "curation"])
def test_every_value_of_a_choice_runs(
    group: str, tiny: list[str], tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one domain at least, if any takes it: a documented value that is refused in all of them is none."""
    ran: dict[str, str] = {}
    for domain in ("text", *SMALL):
        for option in [domain] if group == "domain" else options(group):
            try:
                cfg = config(domain, f"{group}={option}", tiny)
                known = choices(cfg, monkeypatch)
            except UserError:
                continue
            for key, (cls, names) in known.items():
                if not key.startswith(node_of(cfg, group, option)) or key in NOT_HERE:
                    continue
                for value in names:
                    named_so = f"{cls}.{key.rpartition('.')[2]}={value}"
                    if named_so in NOT_HERE or ran.get(named_so, "").startswith("ran"):
                        continue
                    new = cfg.copy()
                    OmegaConf.update(new, key, [value] if OmegaConf.is_list(OmegaConf.select(cfg, key)) else value)
                    for asked, of_it in ASKS.get(f"{key}={value}", ASKS.get(key, {})).items():
                        OmegaConf.update(new, asked, of_it)
                    try:
                        x = Experiment(new)
                        Loop(x, RunDir(tmp_path / str(len(ran)) / domain / option / value, store)).run()
                        ran[named_so] = f"ran in {domain}"
                    except UserError as error:  # a tiny model makes nothing that a selector could keep: see `tried`
                        ran[named_so] = "ran, and " * ("kept none" in str(error)) + str(error)
    print(*ran.items(), sep="\n")
    assert not {k: v for k, v in ran.items() if not v.startswith("ran")}
