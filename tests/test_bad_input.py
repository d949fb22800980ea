"""Bad input ends with exit code 2 and one line that names the key, the value and the remedy; never with a traceback.

What can be known before training is refused before it: then the store holds no trained model. After a failure the same
command goes on, and nothing that was finished is computed again or lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import REPOSITORY
from genloss.core.errors import UserError
from genloss.experiment import Experiment
from genloss.workflow.compose import compose


def check_line(outcome, *words: str) -> str:
    """Exit code 2, and one line with these words."""
    assert outcome.code == 2, (outcome.code, outcome.err)
    passed = (": round ", "genloss: warning: ", "genloss: needs at most ")  # of disk; progress of stages that finished
    lines = [line for line in outcome.err.splitlines() if not any(part in line for part in passed)]
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("genloss: ") and "Traceback" not in outcome.err
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
    return lines[0]


def trainings(project: Path) -> int:
    """Trainings in the store, finished or begun."""
    store = project / ".genloss" / "store"
    return len(list(store.glob("stages/train/*"))) + len(list(store.glob("scratch/*/out/model")))


# -- refused before any work ---------------------------------------------------------------------------------------

WRONG = ["http:", "http://", "http://a b", "https://h:port", "http://h:0", "sqlite:", "sqlite:x", "sqlite:///"]
WRONG += ["postgresql:", "mysql://", "file:", "banana://h"]
POINTS = ["domain=gaussian", "recipe=draw"]
TUTOR = ["domain=reasoning", "recipe=llm2llm", "recipe/teacher=endpoint", "recipe.teacher.model=m"]
BAD = {
    # overrides -> words of the one line
    "unknown corpus": (["domain/corpus=stou"], ["domain/corpus", "stou", "did you mean sotu?"]),
    "unknown mixing": (["mixing=acumulate"], ["mixing", "acumulate", "did you mean accumulate?"]),
    "unknown curation": (["curation=dedupe"], ["curation", "dedupe", "did you mean dedup?"]),
    "unknown model": (["model=lama"], ["model", "lama", "did you mean llama?"]),
    "name that leaves runs/": (["mixing.name=../../evil"], ["mixing.name='../../evil'", "must be a name"]),
    "name with a folder": (["domain.name=a/b"], ["domain.name='a/b'", "must be a name"]),
    "name of nothing": (["domain.name="], ["domain.name=''", "must be a name"]),
    "no name": (["~mixing.name"], ["mixing.name=null", "must be a name"]),
    "name of two lines": (['recipe.name="a\nb"'], ["recipe.name='a\\nb'", "must be a name"]),
    "name of a round": (["+schedule.1.mixing.name=.."], ["schedule.1.mixing.name='..'", "must be a name"]),
    "password of a server": (
        ["tracking=mlflow", "tracking.uri=http://me:hush@host"],
        ["tracking.uri: must be without"],
    ),
    "token of a server": (["tracking=mlflow", "tracking.uri=https://hush@host/x"], ["MLFLOW_TRACKING_TOKEN"]),
    "password of a database": (
        ["tracking=mlflow", "tracking.uri=mysql://me:hush@h/d"],
        ["tracking.uri: must be without"],
    ),
    "password in a query": (["tracking=mlflow", "tracking.uri='mysql://h/d?password=hush'"], ["tracking.uri: must"]),
    "password in what is no override": (["tracking.uri:http://me:hush@host"], ["is no override"]),
    "password and a sign of Hydra's": (
        ["tracking.uri=http://me:hush@h/d?token=hush"],
        ["holds signs that Hydra reads"],
    ),
    **{
        f"address {uri}": (["tracking=mlflow", f"tracking.uri='{uri}'"], [f"tracking.uri={uri}", "must be"])
        for uri in WRONG
    },
    "keys that stay": (["mixing.budget={}"], ["mixing.budget={}", "leaves kind, n, power there"]),
    "no control": (["~control"], ["control: is missing"]),
    "size taken away": (["~size"], ["recipe.n: ", "'size' not found"]),
    "no experiment": (["tracking=mlflow", "tracking.experiment=' '"], ["tracking.experiment=' '", "a name"]),
    "misspelt key": (["sizes=10"], ["sizes", "did you mean size?"]),
    "misspelt nested key": (["recipe.temprature=1"], ["recipe.temprature", "did you mean temperature?"]),
    "misspelt deep key": (["mixing.real.number=1"], ["mixing.real.number", "known: kind, n"]),
    "unknown added key": (["+recipe.heat=1"], ["recipe.heat", "1", "unknown option", "known: backend, bias"]),
    "misspelt key of another group": (["model=gpt2", "model=pretrained", "model.pth=1"], ["did you mean path?"]),
    "new key in a value": (
        ["domain.corpus={pth: x}"],
        ["domain.corpus.pth", "no such key", "+domain.corpus.pth=... adds it"],
    ),
    "unknown added top key": (["+rouns=3"], ["rouns", "did you mean rounds?"]),
    "wrong type of size": (["size=abc"], ["size=abc", "whole number"]),
    "fraction of a record": (["size=1.5"], ["size=1.5", "whole number"]),
    "size as yes": (["size=true"], ["size=True", "whole number"]),
    "wrong type in a plug-in": (["trainer.steps=many"], ["trainer.steps=many", "Integer"]),
    "wrong type of seed": (["seed=-1"], ["seed=-1", "at least 0"]),
    "no rounds": (["rounds=-1"], ["rounds=-1", "at least 0"]),
    "no size": (["size=0"], ["size=0", "at least 1"]),
    "fraction above one": (
        ["curation=random", "curation.random.fraction=1.5"],
        ["curation.random.fraction=1.5", "(0, 1]"],
    ),
    "fraction below zero": (["mixing=replace_keep", "mixing.value=-0.1"], ["mixing.value=-0.1", "[0, 1]"]),
    "share above one": (["mixing=replace_keep", "mixing.value=10"], ["mixing.value=10", "[0, 1]"]),
    "top_p": (["recipe.top_p=0"], ["recipe.top_p=0", "(0, 1]"]),
    "temperature": (["recipe.temperature=0"], ["recipe.temperature=0", "at least 1e-06", "bias=0"]),
    "counts with value": (["mixing.value=0.5"], ["mixing.value=0.5", "by=counts"]),
    "fraction without value": (["mixing=replace_keep", "mixing.value=null"], ["mixing.value", "by=fraction"]),
    "fixed without n": (["mixing.budget.kind=fixed"], ["mixing.budget.n", "kind=fixed"]),
    "power without schedule": (["mixing.budget.power=2"], ["mixing.budget.power=2", "schedule"]),
    "replacement with grow": (["mixing.replacement=true"], ["mixing.replacement=True", "budget.kind"]),
    "nothing to train on": (["mixing.window=none"], ["mixing.window=none", "real.kind=none"]),
    "window of a wrong word": (["mixing.window=lats"], ["mixing.window=lats", "did you mean last?"]),
    "window of zero": (["mixing.window=0"], ["mixing.window=0", "at least 1"]),
    "fraction without real": (["mixing.by=fraction", "mixing.value=0.5"], ["mixing.by=fraction", "counts"]),
    "kind of a wrong word": (["mixing.real.kind=freesh"], ["mixing.real.kind=freesh", "did you mean fresh?"]),
    "prompt as long as the record": (
        ["recipe.prompts=real", "recipe.prompt_tokens=32"],
        ["recipe.prompt_tokens=32", "max_tokens=32"],
    ),
    "record longer than the context": (["recipe.max_tokens=33"], ["recipe.max_tokens=33", "context, 32"]),
    "control without curation": (["control=random"], ["control=random", "curation"]),
    "control of a wrong word": (["control=randm"], ["control=randm", "random"]),
    "heads that do not divide": (["model.heads=7"], ["model.width=64", "heads=7"]),
    "accumulate that does not divide": (["trainer.accumulate=3"], ["trainer.accumulate=3", "batch=4"]),
    "vocabulary below bytes": (["domain.vocabulary=100"], ["domain.vocabulary=100", "257"]),
    "shares above one": (["domain.test_share=0.95"], ["domain.test_share=0.95", "less than 1"]),
    "judge that is not there": (
        ["curation=perplexity_low", "curation.perplexity_low.judge=/nowhere"],
        ["curation.perplexity_low.judge=/nowhere", "folder"],
    ),
    "target that is not there": (["recipe._target_=nolab.Recipe"], ["recipe._target_=nolab.Recipe", "imported"]),
    "target of another kind": (["recipe._target_=genloss.mix.Mixing"], ["recipe._target_", "derived from Recipe"]),
    "schedule past the end": (["+schedule.9.recipe.temperature=0.5"], ["schedule.9", "1 to 2"]),
    "schedule of the data": (
        ["+schedule.1.domain.max_characters=99"],
        ["schedule.1.domain", "the whole run", "recipe"],
    ),
    "schedule of the size": (["+schedule.1.size=9"], ["schedule.1.size", "the whole run", "mixing"]),
    "schedule of no key": (["+schedule.1.recipes.n=9"], ["schedule.1.recipes", "no such key", "recipe"]),
    "schedule of an option's name": (
        ["+schedule.1.curation=dedup"],
        ["schedule.1.curation=dedup", "schedule.1.curation.KEY"],
    ),
    "schedule of one value": (["+schedule.1=5"], ["schedule.1=5", "schedule.1.KEY"]),
    "schedule with a bad value": (
        ["+schedule.2.recipe.temperature=-1"],
        ["schedule.2.recipe.temperature=-1", "at least 1e-06"],
    ),
    "schedule of no number": (["+schedule.one.recipe.temperature=0.7"], ["schedule.one", "number of a round, 1 to 2"]),
    "schedule that is a number": (["schedule=5"], ["schedule=5", "keys below it"]),
    "schedule that is a list": (["schedule=[1]"], ["schedule=[1]", "another shape"]),
    "schedule without a plus": (
        ["schedule.1.recipe.temperature=0.7"],
        ["schedule.1.recipe.temperature", "write +schedule.1.recipe.temperature=..."],
    ),
    "schedule of null": (["+schedule.1.recipe=null"], ["schedule.1.recipe=null", "schedule.1.recipe.KEY"]),
    "schedule of a curator that is a number": (["+schedule.1.curation.x=5"], ["schedule.1.curation.x=5", "keys below"]),
    **{
        f"{group} as null": ([f"{group}=null"], [f"{group}=null", "no name of an option", "known: "])
        for group in ("domain", "model", "recipe", "curation", "mixing", "trainer", "metrics")
    },
    **{
        f"{group} as a number": ([f"{group}=5"], [f"{group}=5", "no name of an option", "known: "])
        for group in ("domain", "model", "recipe", "curation", "mixing", "trainer", "metrics", "experiment")
    },
    **{
        f"two of {group}": (
            [f"{group}=[{two}]"],
            [f"{group}=[{two}]", f"takes one option; a sweep is -m {group}={two}"],
        )
        for group, two in {
            "domain": "text,gaussian",
            "model": "llama,gpt2",
            "recipe": "sample,draw",
            "mixing": "replace,accumulate",
            "trainer": "fixed_steps,answers",
            "experiment": "demo,critic",
        }.items()
    },
    "a number among curators": (["curation=[dedup,5]"], ["curation=5", "no name of an option"]),
    "no recipe": (["recipe=[]"], ["recipe=[]", "takes one option"]),
    "no metrics": (["metrics=[]"], ["metrics", "is missing; choose metrics=NAME of accuracy, "]),
    "no mixing": (["~mixing"], ["mixing", "is missing; choose mixing=NAME of accumulate, "]),
    "runtime as null": (["runtime=null"], ["runtime=null", "keys below it"]),
    "runtime as a number": (["runtime=3"], ["runtime=3", "keys below it"]),
    "curator as a number": (["+curation.x=5"], ["curation.x=5", "keys below it"]),
    "curator as null": (["+curation.x=null"], ["curation.x=null", "keys below it"]),
    "curator that is not chosen": (["curation.x=3"], ["curation.x", "curation=NAME chooses, known: adversarial"]),
    "metric as a list": (["+metrics.x=[1]"], ["metrics.x=[1]", "keys below it"]),
    "metric as a number": (["metrics.heldout=3"], ["metrics.heldout=3", "keys below it"]),
    "part as a number": (["mixing.real=3"], ["mixing.real=3", "keys below it"]),
    "plug-in of a plug-in as a number": (["domain.corpus=5"], ["domain.corpus=5", "keys below it"]),
    "key below what is no key": (["recipe.foo.bar=1"], ["recipe.foo", "no such key", "known: _target_"]),
    "rounds of dvc": (["dvc.rounds=3"], ["dvc.rounds", "leave it out"]),
    "rounds without end": (["rounds=100000"], ["rounds=100000", "[0, 10000]"]),
    "a batch of no machine": (["trainer.batch=1000000000000"], ["trainer.batch=1000000000000", "[1, 1000000]"]),
    "threads of no machine": (["trainer.threads=1000000"], ["trainer.threads=1000000", "[1, 1024]"]),
    "a spread below nothing": (["model.initial_std=-1"], ["model.initial_std=-1", "lie in"]),
    "a temperature that is none": (["recipe.temperature=1e-320"], ["recipe.temperature=1e-320", "at least 1e-06"]),
    "a budget below nothing": (["mixing.budget.n=-1"], ["mixing.budget.n=-1"]),
    "devices of no machine": (["runtime.devices=1000000"], ["runtime.devices=1000000", "[1, 4096]"]),
    "permutations without end": (
        ["curation=near_dedup", "curation.near_dedup.permutations=10000000"],
        ["curation.near_dedup.permutations=10000000", "[16, 4096]"],
    ),
    "threshold that no permutations find": (
        ["curation=near_dedup", "curation.near_dedup.threshold=0.001"],
        ["curation.near_dedup.threshold=0.001", "[0.002, 1]"],
    ),
    "a rate of no training": (["trainer.lr=1e31"], ["trainer.lr=1e+31", "[1e-12, 1e+06]"]),
    "no rate": (["trainer.lr=0"], ["trainer.lr=0", "[1e-12, 1e+06]"]),
    "a penalty of no model": (["recipe.repetition_penalty=0"], ["recipe.repetition_penalty=0", "[0.01, 100]"]),
    "a truncation without end": (
        [*POINTS, "recipe.truncation=1e-3"],
        ["recipe.truncation=0.001", "must be 0, or 0.01 and more"],
    ),
    "a temperature below the least": (
        [*POINTS, "recipe.temperature=1e-7"],
        ["recipe.temperature=1e-07", "[1e-06, 1000]"],
    ),
    "a seed of no machine": (
        ["domain.split_seed=9223372036854775808"],
        ["domain.split_seed", "[0, 9223372036854775807]"],
    ),
    "a budget of no machine": (
        [*TUTOR, "recipe.teacher.budget.round.requests=1000000000000000"],
        ["recipe.teacher.budget.round.requests=1000000000000000", "[0, 1000000000]"],
    ),
    "a budget of nothing": (
        [*TUTOR, "recipe.teacher.budget.round.requests=-1"],
        ["recipe.teacher.budget.round.requests=-1", "more than 0"],
    ),
    "a misspelt budget": (
        [*TUTOR, "+recipe.teacher.budget.round.request=1"],
        ["recipe.teacher.budget.round.request", "did you mean requests?"],
    ),
    "money without prices": (
        [*TUTOR, "recipe.teacher.budget.sweep.money=1"],
        ["recipe.teacher.budget.sweep.money=1.0", "price_sent"],
    ),
    "a column that no record has": (
        ["curation=novelty", "curation.novelty.column=banana"],
        ["curation.novelty.column=banana", "text"],
    ),
    "target with a dot before it": (["recipe._target_=.x"], ["recipe._target_=.x", "package.module.Class"]),
    "a character that no path has": (['domain.tokenizer="a\0b"'], ["domain.tokenizer=a", "control characters"]),
    "infinite": (["recipe.temperature=inf"], ["recipe.temperature=inf", "finite"]),
    "infinite share": (["mixing=prev_ratio", "mixing.value=inf"], ["mixing.value=inf", "finite"]),
    "no number in a part": (["mixing.budget.power=nan"], ["mixing.budget.power=nan", "finite"]),
    "no number in a round": (["+schedule.1.recipe.temperature=nan"], ["schedule.1.recipe.temperature=nan", "finite"]),
    "infinite in a list": (["+metrics.x={_target_: x, at: [1, inf]}"], ["metrics.x.at.1=inf", "finite"]),
    "unknown key of tracking": (["+tracking.urll=x"], ["tracking.urll=x", "did you mean uri?"]),
    "tracking neither true nor false": (["tracking.enabled=5"], ["tracking.enabled=5", "true or false"]),
    "tracking nowhere": (["tracking.uri=banana"], ["tracking.uri=banana", "http, https, sqlite"]),
    "switch neither true nor false": (["recipe.keep_prompt=5"], ["recipe.keep_prompt=5", "true or false"]),
    "prompt tokens without prompts": (
        ["recipe.prompt_tokens=8"],
        ["recipe.prompt_tokens=8", "has no effect with recipe.prompts=none; leave it at 16"],
    ),
    "kept prompt without prompts": (["recipe.keep_prompt=true"], ["recipe.keep_prompt=True", "no effect"]),
    "architecture of a warm start": (
        ["trainer.start=previous", "+schedule.1.model.layers=1"],
        ["schedule.1.model", "no effect", "architecture of the model before", "trainer.start=base"],
    ),
    "architecture of a round that starts warm": (
        ["+schedule.2.trainer.start=previous", "+schedule.2.model.layers=1"],
        ["schedule.2.model", "no effect"],
    ),
    "no such folder": (["domain.corpus.path=/nowhere"], ["domain.corpus.path=/nowhere", "folder"]),
    "pattern that matches nothing": (["domain.corpus.pattern=*.md"], ["domain.corpus.path", "*.md"]),
    "missing value": (["domain/corpus=table"], ["domain.corpus.path"]),
    "syntax": (["size=[1,"], ["size=[1,"]),
    "no value": (["size"], ["size"]),
    "negative workers": (["runtime.workers=-1"], ["runtime.workers=-1", "at least 0"]),
    "runtime of a wrong word": (["runtime.accelerator=gpuu"], ["runtime.accelerator=gpuu", "did you mean gpu?"]),
    "unknown runtime key": (["+runtime.wrkers=1"], ["runtime.wrkers", "did you mean workers?"]),
}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["mixing.real.kind=fixed", "mixing.real.n=0"],
            "mixing.real.n=0: must be at least 1 record; mixing.real.kind=none",
        ),
        (["recipe.max_tokens=8", "recipe.prompt_tokens=9"], "has no effect with recipe.prompts=none"),
        (["recipe/backend=torch", "~recipe.backend._target_"], "; '~recipe.backend' takes away"),
        (["recipe/backend=torch", "recipe.backend.compute_type=int8"], "; set recipe.backend.kernel=fused too"),
        (["recipe/backend=openai", "recipe.backend.model=m", "recipe.prompts=none"], ", or recipe.backend.begin=TEXT"),
        (
            [
                "recipe.author.model=round0",
                "recipe/backend@recipe.author.backend=openai",
                "recipe.author.backend.model=m",
            ],
            "; name its model with recipe.author.backend.model=NAME",
        ),
    ],
)
def test_what_a_message_tells_to_type_is_a_whole_key(overrides: list[str], words: str) -> None:
    base = ["experiment=self_instruct", "recipe.author.new_tokens=9"] if "author" in str(overrides) else []
    with pytest.raises(UserError) as caught:
        Experiment(compose([*base, *overrides]))
    assert words in str(caught.value)


def test_keys_of_a_message_are_placed_once() -> None:
    error = UserError(
        "seeds", 0, "set ask=words, author.model=last or kind=a; tasks=x.ask=1, not /ask=2, domain.ask=3; ~ask"
    )
    placed = error.under("author", ["model"]).under("recipe", ["ask", "author", "seeds"])
    assert placed.key == "recipe.author.seeds"
    told = (
        "set recipe.ask=words, recipe.author.model=last or kind=a; tasks=x.ask=1, not /ask=2, domain.ask=3; ~recipe.ask"
    )
    assert placed.remedy == told


@pytest.mark.parametrize("case", BAD)
def test_bad_config(main, project: Path, tiny: list[str], case: str) -> None:
    overrides, words = BAD[case]
    assert "hush" not in check_line(main("run", *tiny_without(tiny, overrides), *overrides), *words)
    assert trainings(project) == 0
    assert not (project / "runs").exists()


def tiny_without(tiny: list[str], overrides: list[str]) -> list[str]:
    """TINY without what these overrides choose otherwise (Hydra refuses to choose a group twice)."""
    if any(o.startswith("domain=") for o in overrides):  # the rest of TINY is about texts
        tiny = [t for t in tiny if t.partition("=")[0] in ("size", "rounds", "tracking")]
    if any(o.startswith("domain/corpus=") for o in overrides):
        tiny = [t for t in tiny if not t.startswith(("domain/corpus", "domain.corpus"))]
    return [t for t in tiny if t != "tracking=none"] if "tracking=mlflow" in overrides else tiny


@pytest.mark.parametrize(
    ("override", "quoted"),
    [
        ("domain.corpus.path=~/texts", 'domain.corpus.path="~/texts"'),
        ("domain.corpus.path=a=b", 'domain.corpus.path="a=b"'),
        ("domain.corpus.path=my(texts", 'domain.corpus.path="my(texts"'),
        ("domain.corpus.path=a#b", 'domain.corpus.path="a#b"'),
        ("domain.corpus.path=Übung", 'domain.corpus.path="Übung"'),
        ("++domain.corpus.path=(", '++domain.corpus.path="("'),
        ("domain.corpus.path=it's", 'domain.corpus.path="it\'s"'),
        ('domain.corpus.path=5" disk', "domain.corpus.path='5\" disk'"),
    ],
)
def test_a_value_that_needs_quotes(override: str, quoted: str) -> None:
    """The remedy is an override that works."""
    with pytest.raises(UserError) as error:
        compose(["domain/corpus=folder", override])
    assert "quote the value" in str(error.value) and str(error.value).endswith(shlex.quote(quoted))
    path = compose(["domain/corpus=folder", quoted]).domain.corpus.path
    assert path == override.partition("=")[2]


@pytest.mark.parametrize("override", ["domain.corpus.path", "a b=c"])
def test_what_is_no_override(override: str) -> None:
    with pytest.raises(UserError, match="write key=value"):
        compose([override])


SERVER = ["recipe/backend@recipe.author.backend=openai", "recipe.author.backend.model=m"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["experiment=data_simulation/real", "curation=none"],
            "curation.pointwise_information: has no _target_, .*; '~curation.pointwise_information' takes away",
        ),
        (
            ["experiment=llm2llm/real", "recipe/teacher=endpoint", "recipe.teacher.model=m"],
            "recipe.teacher.path=.*: unknown option; .*; ~ before its key takes away",
        ),
        (
            ["experiment=baize/real", *SERVER, "recipe.author.backend.options={min_p: .1}"],
            r"recipe.author.backend.options.min_p: is not there yet; write \+recipe.author.backend.options.min_p=...",
        ),
    ],
)
def test_what_an_experiment_leaves_for_another_choice(overrides: list[str], said: str) -> None:
    """Hydra merges: what an experiment says of a part stays when another one is chosen."""
    with pytest.raises(UserError, match=said):
        Experiment(compose(overrides))


def test_bad_arm_of_a_sweep_is_refused_before_the_good_ones_run(main, project: Path, tiny: list[str]) -> None:
    check_line(main("run", "-m", *tiny, "recipe.top_p=0.9,2"), "recipe.top_p=2", "(0, 1]")
    assert trainings(project) == 0


def test_what_the_schedule_would_do_in_a_late_round_is_checked_first(main, project: Path, tiny: list[str]) -> None:
    outcome = main("run", *tiny, "+schedule.2.recipe.max_tokens=99")
    check_line(outcome, "schedule.2", "max_tokens=99", "context")
    assert trainings(project) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], ["rnu", "did you mean run?"]),
        (["round", "1", "--dir", "nowhere"], ["nowhere/params.yaml", "compose"]),
        (["trace", "nowhere", "abc"], ["nowhere"]),
        (["report", "nowhere"], ["nowhere"]),
        (["verify", "nowhere"], ["nowhere"]),
        (["compose", "rounds=-1"], ["rounds=-1", "at least 0"]),
        (["compose", "mixing=[replace,accumulate]"], ["mixing=[replace,accumulate]", "takes one option"]),
        (["run", "-m", "mixing=[replace,accumulate],fresh"], ["mixing=[replace,accumulate]", "takes one option"]),
        (["run", "-m", "model=llama,5"], ["model=5", "no name of an option"]),
        (["run", "domain=reasoning", "domain.tasks=banana"], ["domain.tasks=banana", "keys below it"]),
        (["golden", "inf"], ["budget=inf", "[0, 1e+09]"]),
        (["golden", "9", "--rounds", "1000000"], ["--rounds=1000000"]),
        (["compose", "~control"], ["control: is missing"]),
        (["ui", "--port", "-1"], ["--port=-1", "65535"]),
        (["run", "domain=gaussian", "domain.chains=10000000", "size=1000000"], ["domain.chains=10000000", "at most"]),
        (["ui", "--tracking-uri", "banana"], ["--tracking-uri=banana", "must be"]),
        (["ui", "--tracking-uri", "http://me:hush@host"], ["--tracking-uri: must be without a password"]),
        (["report", "nowhere", "--tracking-uri", "sqlite:"], ["--tracking-uri=sqlite:", "sqlite:///FILE"]),
        (["replicate", "--jobs", "many"], ["--jobs=many", "whole number"]),
    ],
)
def test_bad_verbs_and_folders(main, arguments: list[str], words: list[str]) -> None:
    check_line(main(*arguments), *words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("mixing=accumulate", ["values alone, as in mixing.KEY=VALUE", "genloss run mixing=accumulate"]),
        ("curation=truncate", ["values alone", "genloss run curation=truncate"]),
        ("domain=text", ["values alone", "genloss run domain=text"]),
        ("model=3", ["model=3", "values alone"]),
        ("schedule=3", ["schedule=3", "values alone, as in schedule.KEY=VALUE"]),
        ("dvc.rounds=3", ["dvc.rounds", "leave it out"]),
        ("recipe.temperatur=1", ["recipe.temperatur", "did you mean temperature? known: _target_, bias, n,"]),
    ],
)
def test_other_options_of_a_run_directory(main, project: Path, override: str, words: list[str]) -> None:
    assert main("compose", "domain=gaussian").code == 0
    (project / "here").mkdir()
    shutil.copyfile(project / "params.yaml", project / "here" / "params.yaml")
    before = (project / "here" / "params.yaml").read_bytes()
    check_line(main("compose", "--dir", "here", override), *words)
    assert (project / "here" / "params.yaml").read_bytes() == before


def test_an_arm_that_is_named_twice_is_one(main, project: Path) -> None:
    lab = ["domain=gaussian", "domain.chains=5", "rounds=1", "size=20", "tracking=none"]
    outcome = main("run", "-m", *lab, "seed=1,1,2", "runtime.workers=1,2")
    assert outcome.code == 0 and "4 of 6 combinations" in outcome.err
    assert len(list((project / "runs").glob("gaussian-*"))) == 2
    [sweep] = (project / "runs").glob("sweep-*")
    assert len(json.loads((sweep / "sweep.json").read_text())["arms"]) == 2


# -- bad data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.txt", b"", ["x.txt", "is empty", "remove it"]),
        ("x.txt", b"  \n \n", ["x.txt", "is empty"]),
        ("x.txt", "UTF-16 without a mark of its order".encode("utf-16-le"), ["x.txt", "NUL", "UTF-16"]),
        ("x.txt", b"caf\xe9 au lait " * 20, ["x.txt", "not UTF-8 (byte 3)", "iconv"]),
    ],
)
def test_bad_text_file(main, project, tiny, corpus, name: str, content: bytes, words: list[str]) -> None:
    folder = project / "texts"
    shutil.copytree(corpus, folder)
    (folder / name).write_bytes(content)
    command = ["run", *tiny, "domain.corpus.path=texts", "rounds=1"]
    check_line(main(*command), "domain.corpus.path", *words)
    assert trainings(project) == 0
    if "iconv" in words:  # the remedy works
        (folder / name).write_text(content.decode("latin-1"), encoding="utf-8")
        assert main(*command).code == 0


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        (
            "x.jsonl",
            b'{"body": "text"}\n',
            ["domain.corpus.column=boody"],
            ["domain.corpus.column=boody", "did you mean body?"],
        ),
        ("x.jsonl", b'{"body": "text"\n', [], ["domain.corpus.path", "x.jsonl, line 1", "no JSON"]),
        ("x.jsonl", b"", [], ["domain.corpus.path", "x.jsonl", "empty"]),
        ("x.parquet", b"PAR1 and nothing else", [], ["domain.corpus.path", "x.parquet", "Parquet"]),
        ("x.csv", b"body\ntext\n", [], ["domain.corpus.path", "x.csv", ".parquet"]),
    ],
)
def test_bad_table(main, project: Path, tiny, name: str, content: bytes, options: list[str], words: list[str]) -> None:
    (project / name).write_bytes(content)
    own = tiny_without(tiny, ["domain/corpus=table"])
    check_line(main("run", *own, "domain/corpus=table", f"domain.corpus.path={name}", *options), *words)
    assert trainings(project) == 0


def test_table_of_numbers(main, project: Path, tiny) -> None:
    pq.write_table(pa.table({"text": list(range(9))}), project / "x.parquet")
    own = tiny_without(tiny, ["domain/corpus=table"])
    outcome = main("run", *own, "domain/corpus=table", "domain.corpus.path=x.parquet")
    check_line(outcome, "domain.corpus.column=text", "int", "not text")
    assert trainings(project) == 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["size=100000"], ["100000", "real training records", "lower it"]),
        (["mixing=fresh", "rounds=30"], ["mixing.real.n=48", "rounds 0 to 30", "lower it"]),
        (["mixing.real.n=100000", "mixing.real.kind=fixed"], ["mixing.real.n=100000", "real training records"]),
        (
            ["mixing=real_only", "mixing.budget.kind=fixed", "mixing.budget.n=60"],
            ["mixing.budget.n=60", "48 are in reach", "replacement"],
        ),
    ],
)
def test_more_real_records_than_exist(main, project: Path, tiny, overrides: list[str], words: list[str]) -> None:
    check_line(main("run", *tiny, *overrides), *words)
    assert trainings(project) == 0


# -- what only a later round can know ------------------------------------------------------------------------------


def manifests(folder: Path) -> dict[str, dict]:
    """{round/stage: files} of what a run has finished."""
    return {
        f"{path.parent.name}/{stage}": entry["files"]
        for path in sorted(folder.glob("rounds/*/manifest.json"))
        for stage, entry in json.loads(path.read_text())["stages"].items()
    }


def test_a_curator_that_keeps_nothing(main, project: Path, tiny) -> None:
    command = ["run", *tiny, "curation=rules", "curation.rules.min_characters=5000"]
    check_line(main(*command), "curation=rules", "kept none of 48", "too short", "loosen")
    [folder] = (project / "runs").iterdir()
    before = manifests(folder)
    assert set(before) == {"00/data", "00/mix", "00/train", "00/evaluate", "01/generate"}
    check_line(main(*command), "kept none")  # again at once: nothing was trained twice
    assert trainings(project) == 1 and manifests(folder) == before
    assert main(*command[:-1], "curation.rules.min_characters=1").code == 0  # the remedy


def test_a_budget_that_curation_leaves_no_records_for(main, project: Path, tiny) -> None:
    command = ["run", *tiny, "mixing.budget.kind=fixed", "mixing.budget.n=48", "curation=random"]
    check_line(main(*command), "mixing.budget.n=48", "24 are in reach", "replacement=true")
    assert main(*command, "mixing.replacement=true").code == 0


# -- files that are damaged between two runs -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tiny, tmp_path_factory) -> tuple[Path, str]:
    """A project with a finished run, made once: each test damages a copy."""
    from genloss.cli import main

    root = tmp_path_factory.mktemp("template") / "project"
    root.mkdir()
    shutil.copytree(REPOSITORY / "conf", root / "conf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENLOSS_PROJECT", str(root))
        patch.setenv("GENLOSS_STORE", str(root / ".genloss" / "store"))
        patch.setattr(sys, "argv", ["genloss"])
        patch.chdir(root)
        main(["run", *tiny])
    [folder] = (root / "runs").iterdir()
    return root, folder.name


@pytest.fixture
def finished(template, project: Path, tiny):
    """(command, folder, hashes) of a finished run."""
    root, name = template
    subprocess.run(["cp", "-a", f"{root}/.", str(project)], check=True)  # keeps hard links within the project
    folder = project / "runs" / name
    assert (folder / "data/train.parquet").stat().st_nlink > 1
    return ["run", *tiny], folder, manifests(folder)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.chmod(0o644)
    with path.open("r+b") as file:  # in place, as a failing disk would: hard links share it
        if how == "truncated":
            file.truncate(len(content) // 2)
        else:
            file.seek(len(content) // 2)
            file.write(bytes(b ^ 0xFF for b in content[len(content) // 2 : len(content) // 2 + 16]))
    # a damage that keeps size and time is for `verify`, which reads every byte; runs look at changed files
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10_000_000))


def follow(line: str, project: Path) -> None:
    """Do what the line says: delete the files that it names."""
    assert "delete" in line and "again" in line, line
    named = [Path(w.rstrip(",:;")) for w in line.split() if w.startswith(str(project))]
    assert named
    for path in named:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("data/train.parquet", "truncated"),
        ("data/tokenizer/tokenizer.json", "corrupted"),
        ("rounds/00/model/model.safetensors", "truncated"),
        ("rounds/00/model/model.safetensors", "corrupted"),
        ("rounds/01/generated.parquet", "corrupted"),
        ("rounds/01/kept.parquet", "truncated"),
    ],
)
def test_damaged_artifact(main, project: Path, finished, name: str, how: str) -> None:
    command, folder, before = finished
    damage(folder / name, how)
    line = check_line(main(*command), "is damaged", "sha256")
    count = 0
    while line:  # a file has more than one name when rounds share it; every line that is printed leads on
        follow(line, project)
        outcome = main(*command)
        line = check_line(outcome) if outcome.code else ""
        count += 1
        assert count <= 3, "the remedy leads nowhere"
    assert manifests(folder) == before
    for key, files in before.items():
        place = folder / "data" if key == "00/data" else folder / "rounds" / key[:2]
        for file, digest in files.items():
            assert hashlib.sha256((place / file).read_bytes()).hexdigest() == digest


def test_lost_artifacts_are_restored(main, project: Path, finished) -> None:
    command, folder, before = finished
    shutil.rmtree(folder / "rounds" / "01" / "model")
    (folder / "rounds" / "00" / "train" / "mix.json").unlink()
    assert main(*command).code == 0
    assert manifests(folder) == before
    assert (folder / "rounds/01/model/model.safetensors").is_file() and (folder / "rounds/00/train/mix.json").is_file()


@pytest.mark.parametrize("content", ["{", "", '{"stages": {"train": {}}}', "[]"])
def test_damaged_manifest(main, project: Path, finished, content: str) -> None:
    command, folder, before = finished
    path = folder / "rounds" / "01" / "manifest.json"
    path.write_text(content)
    line = check_line(main(*command), str(path), "damaged", "nothing computed is lost")
    models = trainings(project)
    follow(line, project)
    assert main(*command).code == 0
    assert manifests(folder) == before and trainings(project) == models


@pytest.mark.parametrize("content", ["{", "", "[]", '{"key": 1}'])
def test_damaged_store_record(main, project: Path, finished, content: str) -> None:
    command, folder, before = finished
    records = list((project / ".genloss" / "store" / "stages" / "train").iterdir())
    for record in records:
        record.write_text(content)
    shutil.rmtree(folder)
    for _ in records:
        follow(check_line(main(*command), "stages/train", "damaged"), project)
    assert main(*command).code == 0
    assert manifests(folder) == before


def test_a_lost_store_costs_nothing_that_the_run_holds(main, project: Path, finished) -> None:
    command, folder, before = finished
    shutil.rmtree(project / ".genloss" / "store")
    assert main(*command).code == 0
    assert manifests(folder) == before
    # adopted, not trained again: no stage took its seconds anew
    assert not list((project / ".genloss" / "store" / "scratch").iterdir())


def test_params_of_another_config(main, project: Path, finished) -> None:
    command, folder, _ = finished
    params = folder / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("temperature: 1.0", "temperature: 0.5"))
    check_line(main(*command), str(folder), "another config", "recipe.temperature", "delete it")
    params.write_text("recipe: [")
    check_line(main(*command), "params.yaml", "not readable YAML")
    params.write_text(text)
    assert main(*command).code == 0


def test_store_that_cannot_be_written(main, project: Path, tiny, monkeypatch) -> None:
    (project / "file").write_text("")
    monkeypatch.setenv("GENLOSS_STORE", str(project / "file" / "store"))
    check_line(main("run", *tiny), "store", str(project / "file" / "store"), "GENLOSS_STORE")
    monkeypatch.setenv("GENLOSS_STORE", str(project / "store"))
    assert main("run", *tiny, "rounds=1").code == 0


def test_the_command_itself_prints_one_line(genloss, project: Path) -> None:
    """In a process of its own, as a user sees it."""
    done = genloss("run", "curation=dedupp")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("genloss: curation=dedupp: ")
