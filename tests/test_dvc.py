"""DVC: its config, repro, push, pull, reuse of a prefix, what-if in an arm's folder, experiments, and load."""

from __future__ import annotations

import json
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import Trained
from genloss.core.errors import UserError
from genloss.core.places import load_params
from genloss.workflow.compose import compose, to_yaml
from genloss.workflow.dvc import dvc_yaml, own_data
from genloss.workflow.dvc_cache import commit, committed, md5, restored
from genloss.workflow.dvc_config import cache_dir, configure
from support import REPOSITORY, Project, forked, hashes


def plain_project(root: Path, **env: str) -> Project:
    """A project with a DVC root as the repository has it; found by its conf/, not by a variable."""
    home = Project.make(root, **env)
    del home.env["GENLOSS_PROJECT"]
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(REPOSITORY / name, root / name)
    shutil.copytree(REPOSITORY / "src/genloss", root / "src/genloss", ignore=shutil.ignore_patterns("__pycache__"))
    return home


LAB = ["domain=gaussian", "domain.chains=3", "rounds=1", "tracking=none"]  # an arm of a second


def config_of(folder: Path) -> dict[str, Any]:
    """What DVC reads there."""
    from dvc.config import Config

    return Config(str(folder / ".dvc"))


def configured(folder: Path, level: str = "repo", **sections: Any) -> None:
    """`dvc config`, without the seconds that it takes to start."""
    from dvc.config import Config, merge

    with Config(str(folder / ".dvc")).edit(level) as config:
        merge(config, sections)


def ran(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> tuple[Project, Path]:
    """A finished run of three rounds, not by DVC."""
    home = Project.make(tmp_path_factory.mktemp("base") / "project")
    return home, home.ok("run", *tiny, "rounds=3").folder


def test_committed_params_and_pipeline_are_current() -> None:
    assert (REPOSITORY / "params.yaml").read_text() == to_yaml(compose()), "run `genloss compose`"
    assert (REPOSITORY / "dvc.yaml").read_text() == dvc_yaml(REPOSITORY / "params.yaml", code=True), (
        "run `genloss compose`"
    )


# -- config --------------------------------------------------------------------------------------------------------


def test_secrets_stay_out_of_what_goes_to_git(tmp_path: Path) -> None:
    """A key of config.local, and a whole remote that is known there alone, are for the arm's config.local."""
    home = plain_project(tmp_path / "project")
    configured(
        home.root, core={"remote": "shelf", "no_scm": "true"}, remote={"shelf": {"url": "azure://shelf/genloss"}}
    )
    home.dvc("remote", "modify", "--local", "shelf", "account_key", "c2VjcmV0==")
    secrets = {"sas_token": "sv=1&sig=a%2Fb%3D", "connection_string": "A=1;K=x#y"}
    configured(home.root, "local", remote={"shelf": secrets, "own": {"url": "https://me:word@host/x?sig=a%2Fb"}})
    arm = home.ok("run", *LAB).folder
    public = (arm / ".dvc/config").read_text()
    assert "azure://shelf/genloss" in public and not any(s in public for s in ("c2VjcmV0", "a%2Fb", "K=x", "word"))
    assert (arm / ".dvc/config.local").stat().st_mode & 0o077 == 0
    assert config_of(arm)["remote"] == config_of(home.root)["remote"] and config_of(arm)["core"]["remote"] == "shelf"
    configured(arm, "local", remote={"shelf": {"account_name": "mine"}})  # credentials of who pulled the arm
    home.ok("run", *LAB)
    assert config_of(arm)["remote"]["shelf"]["account_name"] == "mine"


@settings(max_examples=60)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0")))
@example("a%2Fb")
@example('"a, b;c #d = $f ${g} [h]"')
@example("%(home)s")
@example("../ä/%20")
@example(",")  # a list, at which DVC's own check is a TypeError
def test_an_arm_reads_the_values_that_the_project_reads(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    """Whatever DVC can read; the rest is refused in a line."""
    home = Project.make(tmp_path_factory.mktemp("config") / "project")
    (home.root / ".dvc").mkdir()
    text = f"['remote \"shelf\"']\n    url = {value}\n    access_key_id = {value}\n"
    (home.root / ".dvc/config.local").write_text(text, encoding="utf-8")
    try:
        expected = config_of(home.root)["remote"]
    except Exception:  # DVC has no kind of its own for all that it cannot read
        with home.here(), pytest.raises(UserError, match="DVC cannot read its config"):
            configure(home.root / "runs/arm")
        return
    with home.here():
        configure(home.root / "runs/arm")
    assert config_of(home.root / "runs/arm")["remote"] == expected


def test_the_cache_is_the_projects_wherever_that_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
    home = plain_project(tmp_path / "project")
    arm = home.root / "runs/arm"

    def agrees(place: Path) -> None:
        with home.here():
            configure(arm)
            assert cache_dir() == place
        assert Path(config_of(arm)["cache"]["dir"]).resolve() == place

    agrees(home.root / ".dvc/cache")
    configured(home.root, "global", cache={"dir": str(tmp_path / "50% full")})
    agrees(tmp_path / "50% full")
    (home.root / ".dvc/config").write_text("[cache]\n    dir = ../../beside\n")
    agrees(tmp_path / "beside")
    assert "50%" not in (arm / ".dvc/config.local").read_text()
    configured(home.root, "local", cache={"dir": str(tmp_path / "mine")})
    agrees(tmp_path / "mine")
    assert "mine" not in (arm / ".dvc/config").read_text()  # a place of this machine


def test_relative_places_hold_where_runs_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "a/deep/disk").mkdir(parents=True)
    home = plain_project(tmp_path / "project")
    (home.root / "runs").symlink_to(tmp_path / "a/deep/disk")
    remote = "['remote \"shelf\"']\n    url = ../../shelf\n"
    (home.root / ".dvc/config").write_text(f"[core]\n    no_scm = true\n    remote = shelf\n{remote}")
    arm = home.ok("run", *LAB).folder
    home.dvc("push", cwd=arm)
    assert list((tmp_path / "shelf/files/md5").glob("*/*")) and list((home.root / ".dvc/cache/files/md5").glob("*/*"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "project", "shelf"]
    assert not list((tmp_path / "a/deep").glob("[!d]*"))


@pytest.mark.parametrize(
    "text", ["[core", "[remote]\nx = 1", "['remote \"x\"']\n    url = %(y)s", "[cache]\n  type = best"]
)
def test_a_config_that_dvc_cannot_read_is_refused_before_any_work(tmp_path: Path, text: str) -> None:
    home = Project.make(tmp_path / "project")
    (home.root / ".dvc").mkdir()
    (home.root / ".dvc/config").write_text(text)
    with home.here(), pytest.raises(UserError, match="DVC cannot read its config"):
        configure(home.root / "runs/arm")
    result = home.call("run", *LAB)
    assert result.code == 2 and result.err.count("\n") == 1 and home.stages() == {}


# -- the cache -----------------------------------------------------------------------------------------------------


def objects(home: Project) -> dict[str, Path]:
    """The objects of the cache by name."""
    return {path.parent.name + path.name: path for path in (home.root / ".dvc/cache/files/md5").glob("*/*")}


def sound(home: Project) -> bool:
    return all(md5(path) == name.removesuffix(".dir") for name, path in objects(home).items())


def names_in(arm: Path) -> dict[str, str]:
    stages = yaml.safe_load((arm / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def test_a_damaged_cache_is_healed_and_damages_no_run(tmp_path: Path) -> None:
    """Objects that are empty, or of other bytes, or not there: before they are trusted, after, and when all is done."""
    home = Project.make(tmp_path / "project")
    arm = home.ok("run", *LAB).folder
    before, names = hashes(arm), names_in(arm)
    spoilt = ("rounds/01/kept.parquet", "rounds/01/train", "rounds/01/metrics.json", "report")

    def spoil(out: str, content: bytes) -> None:
        found = objects(home)[names[out]]
        found.unlink()  # not the bytes of the run's own file
        found.write_bytes(content)
        found.chmod(0o444)

    for out in spoilt:
        spoil(out, b"")
    (arm / "dvc.lock").write_text("")  # what a kill leaves of it, and of DVC's notes on who reads and writes
    (arm / ".dvc/tmp/rwlock").write_text("")
    home.ok("run", *LAB)
    assert hashes(arm) == before and sound(home) and set(names.values()) <= objects(home).keys()
    for out in spoilt[:2]:
        spoil(out, b"other bytes")
    for out in ("rounds/01/rejected.parquet", "report"):  # what a full disk had no room for
        objects(home)[names[out]].unlink()
    home.ok("run", *LAB)
    assert hashes(arm) == before and sound(home) and set(names.values()) <= objects(home).keys()
    # one bit on the disk: run, store and cache share the file
    path = arm / "rounds/01/kept.parquet"
    path.chmod(0o644)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    for _ in range(3):  # it is mixed as it is, so another file of the run is the same
        refused = home.call("run", *LAB)
        if refused.code == 0:
            break
        for word in refused.err.split():
            if word.startswith(str(home.root)):
                Path(word.rstrip(":,")).unlink()  # what it says
    assert refused.code == 0, refused.err
    assert hashes(arm) == before and sound(home) and set(names.values()) <= objects(home).keys()


def test_what_dvc_replaced_is_the_stores_again(tmp_path: Path) -> None:
    home = Project.make(tmp_path / "project")
    arm = home.ok("run", *LAB).folder
    path, before = arm / "rounds/01/kept.parquet", hashes(arm)
    path.unlink()
    path.touch()
    with home.here():
        assert restored(arm) and hashes(arm) == before and not restored(arm)


# -- pipelines -----------------------------------------------------------------------------------------------------


def test_compose_check(tmp_path: Path) -> None:
    home = Project.make(tmp_path / "project")
    assert home.call("compose", "--check").code == 1
    assert home.ok("compose").err == ""
    assert home.call("compose", "--check").code == 0
    said = home.ok("compose", "rounds=1").err  # of what DVC's own composing would leave out
    assert said.count("\n") == 1 and "`dvc exp run -S ...` composes from conf/ alone" in said
    home.ok("compose")
    assert home.call("compose", "--check", "rounds=9").code == 1


def test_compose_takes_options_outside_the_project(tmp_path: Path) -> None:
    home = Project.make(tmp_path / "project")
    (tmp_path / "my conf/curation").mkdir(parents=True)
    half = "half:\n  _target_: genloss.curate.choose.Random\n  fraction: 0.5\n"
    (tmp_path / "my conf/curation/half.yaml").write_text(half)
    home.ok("compose", "--config-dir", "../my conf", "curation=[half]")
    assert list(load_params(home.root / "params.yaml").curation) == ["half"]
    refused = home.call("compose", "--config-dir", "nowhere", "curation=[half]")
    assert (refused.code, refused.err) == (2, "genloss: --config-dir=nowhere: is no folder\n")


def test_the_root_depends_on_packages_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package and a module below the project; neither one that lies elsewhere, nor what is installed."""
    curator = "from dataclasses import dataclass\nfrom genloss.curate.choose import Random\n"
    curator += "@dataclass\nclass Mine(Random):\n    share: float = 0.5\n"
    home = Project.make(tmp_path / "project")
    for path in ("project/ownlab/curators.py", "project/ownfile.py", "elsewhere/otherlab/curators.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(curator)
    (home.root / ".venv/lib/site-packages/someones").mkdir(parents=True)
    (home.root / ".venv/lib/site-packages/someones/curators.py").write_text(curator)
    for path in ("project", "elsewhere", "project/.venv/lib/site-packages"):
        monkeypatch.syspath_prepend(tmp_path / path)
    named = {"a": "ownlab.curators", "b": "ownfile", "c": "otherlab.curators", "d": "someones.curators"}
    home.ok("compose", *(f"+curation.{k}={{_target_: {module}.Mine}}" for k, module in named.items()))
    stages = yaml.safe_load((home.root / "dvc.yaml").read_text())["stages"]
    assert stages["round-0"]["deps"] == ["src/genloss", "ownfile.py", "ownlab"]
    assert stages["round"]["do"]["deps"][:3] == ["src/genloss", "ownfile.py", "ownlab"]
    assert "ownlab" not in dvc_yaml(home.root / "params.yaml", code=False)  # an arm's folder


def test_repro_from_nothing_adds_rounds_and_reuses_the_prefix(
    base: tuple[Project, Path], tmp_path: Path, tiny: list[str]
) -> None:
    home = plain_project(tmp_path / "project")
    home.dvc("config", "core.no_scm", "true")
    home.ok("compose", *tiny, "rounds=1")
    assert ran(home.dvc("repro")) == ["round-0", "round@01", "report"]
    assert hashes(home.root) == hashes(base[1], 1)
    assert "up to date" in home.dvc("repro")
    home.ok("compose", *tiny, "rounds=2")
    assert ran(home.dvc("repro")) == ["round@02", "report"]
    assert hashes(home.root) == hashes(base[1], 2)
    assert "heldout_bits_per_byte" in home.dvc("metrics", "show", "--md")
    assert "round@02" in home.dvc("dag", "--mermaid")
    home.dvc("plots", "show", "--out", "plots")
    assert "heldout_bits_per_byte" in (home.root / "plots/index.html").read_text()


def test_push_pull_and_what_if(base: tuple[Project, Path], tmp_path: Path, tiny: list[str]) -> None:
    there = plain_project(tmp_path / "there", GENLOSS_STORE=base[0].env["GENLOSS_STORE"])  # spares the computing
    there.git("init", "-q")
    there.dvc("remote", "add", "-d", "shelf", str(tmp_path / "shelf"))
    sweep = there.ok("run", "-m", *tiny, "rounds=3", "mixing=replace,accumulate").folder
    arms = [there.root / "runs" / p.name for p in sorted((there.root / "runs").glob("text-*"))]
    assert sweep.is_dir() and len(arms) == 2
    refused = there.call("push", str(sweep), "--remote", "self")
    assert refused.code == 2 and refused.err.startswith("genloss: --remote=self: unknown; did you mean shelf?")
    there.ok("push", str(sweep))
    clone = plain_project(tmp_path / "clone")
    there.git("add", "-f", f"--pathspec-from-file=runs/{sweep.name}/share.txt")  # as it says
    for name in there.spawn("git", "ls-files", "runs").out.split():
        (clone.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(there.root / name, clone.root / name)
    for verb in ("report", "samples", "verify"):
        refused = clone.call(verb, str(clone.root / "runs" / arms[0].name))
        assert refused.code == 2 and "its data are not here; `genloss pull" in refused.err
    refused = clone.call("report", str(clone.root / "runs" / sweep.name))
    assert refused.code == 2 and "its data are not here; `genloss pull" in refused.err
    clone.ok("pull", str(clone.root / "runs" / sweep.name))
    for arm in arms:
        copy = clone.root / "runs" / arm.name
        assert hashes(copy) == hashes(arm)
        assert "up to date" in clone.dvc("repro", cwd=copy)
        assert "up to date" in clone.dvc("status", cwd=copy)
    table = clone.ok("report", str(clone.root / "runs" / sweep.name)).out
    assert table.splitlines()[:5] == there.ok("report", str(sweep)).out.splitlines()[:5]
    copy = clone.root / "runs" / base[1].name
    before = hashes(copy)
    assert before == hashes(base[1])
    new = Path(clone.ok("compose", "--dir", str(copy), "+schedule.3.recipe.temperature=0.7").out.strip())
    assert new.parent == copy.parent and new != copy and json.loads((new / "what_if.json").read_text())["of"]
    assert ran(clone.dvc("repro", cwd=new)) == ["round@03", "report"]
    after = hashes(new)
    assert hashes(copy) == before and "up to date" in clone.dvc("status", cwd=copy)  # an arm of its own
    assert {n for n in before if before[n] != after.get(n)} >= {"rounds/03/generated.parquet"}
    assert {n for n in before if before[n] != after.get(n) and not n.startswith("rounds/03/")} == set()
    again = clone.ok("compose", "--dir", str(copy), "++schedule.3.recipe.temperature=0.7")  # the same arm
    assert Path(again.out.strip()) == new and "up to date" in clone.dvc("status", cwd=new)
    copy = Path(clone.ok("compose", "--dir", str(new), "rounds=2", "~schedule.3").out.strip())
    clone.dvc("repro", cwd=copy)
    assert not (copy / "rounds/03").exists()
    assert [line.split(",")[1] for line in (copy / "report/rounds.csv").read_text().splitlines()[1:]] == ["0", "1", "2"]
    (copy / "params.yaml").write_text((copy / "params.yaml").read_text().replace("prev: '01'", "prev: '00'"))
    refused = clone.spawn("genloss", "round", "2", cwd=copy)
    assert refused.code == 2 and "genloss compose --dir ." in refused.err


CHATS = [
    *("domain=instruct", "domain.examples=32", "domain.validation=8", "domain.test=8", "domain.pool=16"),
    *("model=llama", "size=32", "recipe.n=8", "recipe.samples=2", "curation=noisy_judge"),
]
DIGITS = [
    *("domain=images", "domain/corpus=digits", "size=32", "recipe.n=8", "recipe.steps=2", "model.channels=[8]"),
    "metrics.denoising.max_records=8",
]


@pytest.mark.parametrize("domain", [CHATS, DIGITS], ids=["conversations", "images"])
def test_a_round_is_repeated_and_shared(tmp_path: Path, domain: list[str]) -> None:
    """`dvc repro` of one round, whose stages are computed anew, and its files by a remote."""
    there = plain_project(tmp_path / "there")
    there.dvc("remote", "add", "-d", "shelf", str(tmp_path / "shelf"))
    small = [*domain, "trainer.steps=3", "trainer.batch=4", "tracking=none", "rounds=1"]
    run = there.root / there.ok("run", *small).folder
    before = hashes(run)
    shutil.rmtree(run / "rounds/01")
    shutil.rmtree(there.store)
    assert "round@01" in there.dvc("repro", "--force", "--single-item", "round@01", cwd=run)
    assert there.stages()["generate"] == there.stages()["curate"] == 1 and hashes(run) == before
    there.dvc("repro", cwd=run)  # the report: it tells the seconds
    there.ok("push", str(run))
    for left in ("rounds", "data"):
        shutil.rmtree(run / left)
    shutil.rmtree(there.root / ".dvc/cache")
    there.ok("pull", str(run))
    assert hashes(run) == before and "up to date" in there.dvc("status", cwd=run)


def test_a_corpus_is_a_dependency_and_part_of_what_an_arm_is(tmp_path: Path, tiny: list[str], corpus: Path) -> None:
    home = Project.make(tmp_path / "project")
    shutil.copytree(corpus, home.root / "my texts")
    mine = [*tiny, "rounds=1", "domain.corpus.path=my texts"]
    arm = home.ok("run", *mine).folder
    before = hashes(arm)
    assert yaml.safe_load((arm / "dvc.yaml").read_text())["stages"]["round-0"]["deps"] == ["../../my texts"]
    text = home.root / "my texts/03.txt"
    was = text.read_text()
    text.write_text(was + "And one line more, which nobody has read before.\n")
    assert "my texts" in home.dvc("status", cwd=arm)
    refused = home.call("run", *mine)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert "domain" in refused.err and str(arm) in refused.err and hashes(arm) == before
    text.unlink()
    assert home.call("run", *mine).code == 2 and hashes(arm) == before
    text.write_text(was)
    home.ok("run", *mine)
    assert "up to date" in home.dvc("status", cwd=arm) and hashes(arm) == before


def test_what_is_no_part_of_an_arm_is_no_parameter_of_its_stages(base: tuple[Project, Path], tiny: list[str]) -> None:
    home, arm = base
    assert "up to date" in home.dvc("status", cwd=arm)
    same = home.ok("run", *tiny, "rounds=3", "trainer.diverged=go_on", "tracking.experiment=other", "runtime.workers=2")
    assert same.folder == arm and load_params(arm / "params.yaml").trainer.diverged == "go_on"
    assert "up to date" in home.dvc("status", cwd=arm)
    params = yaml.safe_load((arm / "dvc.yaml").read_text())["stages"]["round-0"]["params"]
    assert {"trainer.steps", "recipe", "mixing", "seed"} - set(params) <= {"recipe"} and "trainer" not in params
    assert not [key for key in params if key.startswith(("trainer.diverged", "trainer.logger", "runtime"))]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.md", "gone.md (a link to nothing)"),
        ("deep/pipe", "deep/pipe (no file)"),
        (".dvcignore", ".dvcignore (which is for the root of a project)"),
        (os.fsdecode(b"\xff.md"), "\\xff.md (its name is not UTF-8)"),
    ],
)
def test_what_dvc_does_not_take_of_a_corpus_is_refused_before_any_work(
    tmp_path: Path, tiny: list[str], name: str, words: str
) -> None:
    """It takes the whole folder, whatever the corpus reads of it."""
    home = Project.make(tmp_path / "project")
    place = home.root / "texts" / name
    place.parent.mkdir(parents=True)
    (home.root / "texts" / "a.txt").write_text("a text\n" * 99)
    if "gone" in name:
        place.symlink_to("nothing")
    else:
        os.mkfifo(place) if "pipe" in name else place.touch()
    mine = [*tiny, "domain/corpus=folder", "domain.corpus.path=texts"]
    for command in (mine, ["-m", *mine, "seed=0,1"]):
        refused = home.call("run", *command)
        assert refused.code == 2 and refused.err.count("\n") == 1
        assert refused.err.startswith(f"genloss: domain.corpus.path=texts: holds {words}, and DVC"), refused.err
    assert not home.stages()["data"]


def test_an_unfinished_arm_is_a_dvc_project_too(tmp_path: Path, tiny: list[str]) -> None:
    home = Project.make(tmp_path / "project")
    refused = home.call("run", *tiny, "rounds=1", "curation=rules", "curation.rules.min_characters=100000")
    assert refused.code == 2 and "kept none" in refused.err
    [arm] = (home.root / "runs").glob("text-*")
    again = home.spawn("dvc", "repro", cwd=arm)
    assert "Running stage 'round-0'" in again.out and "kept none" in again.err


def test_an_arm_is_refused_whose_model_tokenizer_or_judge_has_changed(
    tmp_path: Path, tiny: list[str], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a judge that only a later round asks."""
    for name in ("commit", "committed"):  # takes seconds, and DVC is not asked
        monkeypatch.setattr(f"genloss.workflow.arm.{name}", lambda folder: True)
    home = Project.make(tmp_path / "project")
    for name in ("model", "judge", "late judge"):
        shutil.copytree(trained.llama, home.root / name)
    shutil.copytree(trained.data / "tokenizer", home.root / "tokenizer")
    mine = [*tiny, "model=pretrained", "model.path=model", "domain.tokenizer=tokenizer", "curation=perplexity_low"]
    mine += ["curation.perplexity_low.judge=judge", "+schedule.2.curation.perplexity_low.judge=late judge"]
    arm = home.ok("run", *mine).folder
    before = hashes(arm)
    for key, name in {
        "model": "model/model.safetensors",
        "domain": "tokenizer/tokenizer.json",
        "curation.perplexity_low": "judge/config.json",
        "schedule.2.curation.perplexity_low": "late judge/model.safetensors",
    }.items():
        was = (home.root / name).read_bytes()
        (home.root / name).write_bytes(was[:-1] + bytes([was[-1] ^ 1]) if name.endswith("tensors") else was + b"\n")
        refused = home.call("run", *mine)
        assert refused.code == 2 and refused.err.count("\n") == 1 and hashes(arm) == before
        assert refused.err.startswith(f"genloss: {key}: its files have changed since {arm} was made"), refused.err
        (home.root / name).write_bytes(was)
    home.ok("run", *mine)
    assert hashes(arm) == before


def test_own_data_are_what_the_config_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders; neither names of the hub, nor arms, nor what the run writes."""
    home = Project.make(tmp_path / "project")
    for place in ("a model", "data/texts", "runs/critic-1", "grammar"):
        (home.root / place).mkdir(parents=True)
    (tmp_path / "elsewhere.jsonl").touch()
    (home.root / "runs/critic-1/params.yaml").touch()
    (tmp_path / "texts").mkdir()
    named = [
        "a model",
        "data/texts",
        "runs/critic-1",
        "hub:gpt2",
        "",
        "bpe",
        str(tmp_path / "elsewhere.jsonl"),
        "~/texts",
    ]
    paths = {str(i): {"path": place} for i, place in enumerate(named)}
    text = yaml.safe_dump({"x": paths, "tokenizer": "grammar", "y": {"judge": "a model"}, "z": {"judge": "round0"}})
    (home.root / "params.yaml").write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    with home.here():
        outside = [str(tmp_path / name) for name in ("elsewhere.jsonl", "texts")]
        assert own_data(load_params(home.root / "params.yaml"), home.root) == [*outside, "a model", "grammar"]


def test_an_edited_folder_is_not_taken_for_the_old_arm(
    base: tuple[Project, Path], tmp_path: Path, tiny: list[str]
) -> None:
    home = Project.make(tmp_path / "project", GENLOSS_STORE=base[0].env["GENLOSS_STORE"])
    folder = home.ok("run", *tiny).folder
    params = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params.replace("temperature: 1.0", "temperature: 0.7", 1))
    refused = home.call("run", *tiny)
    assert refused.code == 2 and "temperature" in refused.err and str(folder) in refused.err


def test_experiments_in_a_clone(base: tuple[Project, Path], tmp_path: Path, tiny: list[str]) -> None:
    origin = plain_project(tmp_path / "origin", GENLOSS_STORE=base[0].env["GENLOSS_STORE"])
    origin.ok("compose", *tiny, "rounds=2")
    origin.git("init", "-q")
    origin.git("add", ".")
    origin.git("commit", "-qm", "project")
    origin.git("clone", "-q", str(origin.root), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone", dict(origin.env))
    settings = [part for override in tiny if not override.startswith("rounds") for part in ("-S", override)]
    clone.dvc("exp", "run", *settings, "-S", "rounds=1", "-n", "one")
    assert hashes(clone.root) == hashes(base[1], 1)
    assert "rounds" in clone.dvc("params", "diff")
    assert set(json.loads(clone.dvc("metrics", "show", "--json").splitlines()[0])[""]["data"]) == {"summary.json"}
    shown = clone.dvc("exp", "show", "--csv")
    numbers = json.loads((clone.root / "summary.json").read_text())
    header = next(line for line in shown.splitlines() if line.startswith("Experiment,")).split(",")
    assert "one" in shown and len(numbers) <= 10  # a table has room for; the rest is in rounds/
    assert {key for key in header if key in json.loads((clone.root / "rounds/01/metrics.json").read_text())} <= {
        *numbers
    }
    assert set(numbers) <= set(header)
    clone.dvc("exp", "run", *settings, "-S", "rounds=1", "-S", "mixing=accumulate", "--temp", "-n", "two")
    assert "two" in clone.dvc("exp", "show", "--csv")


def test_parallel_commits_share_a_cache(base: tuple[Project, Path], tmp_path: Path) -> None:
    """24 at a time, the number that failed most often when arms were stages of one DVC project. All commit the same
    files: DVC's way of putting them into the cache left two runs of 120 with an empty one."""
    home = Project.make(tmp_path / "project")
    folders = [home.root / "runs" / f"arm-{i}" for i in range(24)]
    for folder in folders:
        shutil.copytree(base[1], folder, ignore=shutil.ignore_patterns(".dvc", "dvc.lock"))
    with home.here():
        for folder in folders:
            configure(folder)
        began = time.monotonic()
        pids = [forked(home, partial(commit, folder)) for folder in folders]
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids), (tmp_path / "child.log").read_text()
        print(f"{len(folders)} commits in {time.monotonic() - began:.1f} s")
        assert all(committed(folder) and not restored(folder) for folder in folders)
    shared = [(folder / "rounds/01/generated.parquet").stat().st_ino for folder in folders]
    assert len(set(shared)) == 1  # one copy in the cache, linked to by every arm
    for folder in folders[:2]:
        assert "up to date" in home.dvc("status", cwd=folder)
