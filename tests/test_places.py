"""Where things are: the project is found once, and every path of a config starts there; a lab's own options and code
lie elsewhere, named once in genloss.yaml."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import compose_and_dump
from omegaconf import OmegaConf

from conftest import Trained
from genloss.core.errors import UserError, without_secrets
from genloss.core.places import has_secret, in_project, on_hub
from support import Project

LAB = ["domain=gaussian", "size=20", "rounds=1", "domain.chains=10", "tracking=none"]


@pytest.fixture
def home(tmp_path: Path) -> Project:
    """A project that is found by where a command is called."""
    return Project.make(tmp_path / "home", GENLOSS_PROJECT="", GENLOSS_STORE="")


def at(folder: Path, home: Project) -> Project:
    """The same environment in another folder."""
    return Project(folder, home.env)


def test_paths_of_a_config_start_at_the_project(home: Project, trained: Trained, tiny: list[str]) -> None:
    """A model and its tokenizer, in the project's folder and in that of the arm, where DVC calls a round."""
    saved = home.root / "my" / "model"
    shutil.copytree(trained.llama, saved)
    shutil.copytree(trained.data / "tokenizer", saved, dirs_exist_ok=True)
    shutil.copytree(tiny[-1].partition("=")[2], home.root / "my" / "texts")
    paths = ["domain.corpus.path=my/texts", "model.path=my/model", "domain.tokenizer=my/model"]
    judge = ["curation=perplexity_low", "curation.perplexity_low.judge=my/model"]
    arm = home.ok("run", *tiny[:-1], "model=pretrained", *paths, *judge, "size=16", "rounds=1").folder
    for path in ("rounds/01", "data", "rounds/00"):
        shutil.rmtree(arm / path)
    shutil.rmtree(home.root / ".genloss")
    for n in ("0", "1"):
        at(arm, home).ok("round", n)
    assert (home.root / ".genloss" / "store").is_dir() and not (arm / ".genloss" / "store").exists()


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["domain.tokenizer=my/tok"], "domain.tokenizer=my/tok"),
        (["model=pretrained", "model.path=my/tok", "domain.tokenizer=hub:my/tok"], "model.path=my/tok"),
        (["domain/corpus=datasets", "domain.corpus.path=my/tok"], "domain.corpus.path=my/tok"),
    ],
)
def test_only_what_is_marked_as_such_is_asked_of_a_hub(home: Project, overrides: list[str], key: str) -> None:
    refused = home.call("run", *overrides)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert refused.err.startswith(f"genloss: {key}: is no folder") and "hub:NAME" in refused.err


def test_a_name_on_a_hub_is_no_path(home: Project) -> None:
    (home.root / "gpt2").mkdir()
    with home.here():
        assert on_hub("hub:openai/gpt2") == "openai/gpt2" and on_hub("openai/gpt2") is None
        for name in ("hub:gpt2", "hub:../gpt2", "hub:/gpt2", "hub:", "hub:a/b/c"):  # a folder; no names
            with pytest.raises(UserError):
                on_hub(name)
        with pytest.raises(UserError, match="names nothing"):
            in_project("")
        assert in_project("a/b") == home.root / "a" / "b"
        assert in_project("~/x") == Path.home() / "x" and in_project("/x") == Path("/x")


def test_the_project_is_found_once(home: Project, tmp_path: Path) -> None:
    """Whatever Hydra makes the working directory, and wherever in the project a command is called."""
    elsewhere = tmp_path / "elsewhere"
    chdir = ["hydra.job.chdir=true", f"hydra.run.dir={elsewhere}", f"hydra.sweep.dir={elsewhere / 'sweep'}"]
    first = home.ok("run", *LAB, *chdir[:2]).folder
    sweep = home.ok("run", "-m", *LAB, *chdir[::2], "seed=1,2")
    assert first.parent == home.root / "runs" and len(list(first.parent.glob("gaussian-*"))) == 3, sweep.err
    assert sorted(p.name for p in elsewhere.iterdir()) == ["sweep"]
    below = home.root / "notes"
    below.mkdir()
    assert at(below, home).ok("run", *LAB).folder == first
    assert not list(below.iterdir())


def test_a_run_is_of_the_project_that_it_lies_in(home: Project, tmp_path: Path) -> None:
    tracked = [o for o in LAB if o != "tracking=none"]
    uri = "tracking.uri=sqlite:///views/mine.db"
    arm = home.ok("run", *tracked, uri).folder
    view = home.root / "views" / "mine.db"
    view.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = home.spawn("genloss", "report", str(arm), cwd=elsewhere)  # MLflow holds the old file open in this process
    assert done.code == 0 and view.is_file(), done.err
    assert not list(elsewhere.iterdir())
    alone = tmp_path / "alone"  # a copy outside of any project: it is read, and nothing is made
    shutil.copytree(arm, alone)
    assert "no project" in at(elsewhere, home).ok("report", str(alone)).err
    assert not list(elsewhere.iterdir())


LAST = """
from dataclasses import dataclass
import numpy as np
from genloss.curate import PointCurator

@dataclass
class Even(PointCurator):
    def decide_points(self, points, left, context):
        return left & (np.arange(len(left)) % 2 == 0)[:, None]
"""


@pytest.fixture
def lab(tmp_path: Path, home: Project) -> Project:
    """A lab's options and code beside the project, named once."""
    (tmp_path / "lab" / "conf" / "curation").mkdir(parents=True)
    (tmp_path / "lab" / "code" / "lastlab").mkdir(parents=True)
    (tmp_path / "lab" / "code" / "lastlab" / "__init__.py").write_text(LAST)
    (tmp_path / "lab" / "conf" / "curation" / "even.yaml").write_text("even:\n  _target_: lastlab.Even\n")
    (home.root / "genloss.yaml").write_text("conf: [../lab/conf]\npython: [../lab/code]\n")
    return home


def test_options_and_code_of_a_lab_are_named_once(lab: Project) -> None:
    """In run, -m, compose, a round for DVC, help, completion, and `dvc exp run -S`."""
    arm = lab.ok("run", *LAB, "curation=even").folder
    assert OmegaConf.load(arm / "params.yaml").curation.even._target_ == "lastlab.Even"
    lab.ok("run", "-m", *LAB, "curation=none,even")
    shutil.rmtree(arm / "rounds" / "01")
    done = lab.spawn("genloss", "round", "1", cwd=arm)
    assert done.code == 0, done.err
    assert "even" in lab.ok("run", "--help").out
    assert "even" in lab.call("run", "curation=evn").err  # did you mean
    asked = Project(lab.root, {**lab.env, "COMP_LINE": "genloss run curation=ev", "COMP_POINT": "23"})
    assert "curation=even" in asked.spawn("genloss", "-sc", "query=bash").out
    lab.ok("compose", *LAB, "curation=even")
    params = lab.root / "params.yaml"
    params.unlink()
    with lab.here():  # what `dvc exp run -S` does first
        compose_and_dump(params, str(lab.root / "conf"), None, "config", str(lab.root), [*LAB, "curation=even"])
    assert OmegaConf.load(params).curation.even._target_ == "lastlab.Even"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("conf: [nowhere]", "genloss.yaml: conf=nowhere: is no folder"),
        ("config: [conf]", "did you mean conf?"),
        ("conf: conf", "must be a list of folders"),
        ("- conf", "must hold keys"),
        ("conf: [", "is not readable YAML"),
        ("python: [5]", "must be a list of folders"),
    ],
)
def test_bad_settings(home: Project, text: str, words: str) -> None:
    (home.root / "genloss.yaml").write_text(text)
    refused = home.call("run", *LAB)
    assert refused.code == 2 and words in refused.err and refused.err.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:hush@host:5000/x", "http://***@host:5000/x"),
        ("https://hush@host", "https://***@host"),
        ("postgresql+psycopg2://me:hush@host/db", "postgresql+psycopg2://***@host/db"),
        ("https://host/x?token=hush", "https://host/x?***"),
        ("https://host/x?api-version=1&sig=hush", "https://host/x?***"),
        ("https://host/x?accessToken=hush", "https://host/x?***"),
        ("mysql://host/db?passwd=hush", "mysql://host/db?***"),
        ("https://host/x?code=hush", "https://host/x?***"),
        ("https://host/x?mypassword1=hush", "https://host/x?***"),
        ("https://host/x?authorization=Bearer+hush", "https://host/x?***"),
        ("https://host/x?user=me:hush@b", "https://host/x?***"),
        ("https://host/x#access_token=hush", "https://host/x#***"),
        ("https://host/x;password=hush", "https://host/x;***"),
        ("https://host/sk-proj-hush1234567890/v1", "https://host/sk-proj-hush1234567890/v1"),
        ("https://host/v1/Hush0aB1cD2eF3gH4iJ5kL6mN7", "https://host/v1/Hush0aB1cD2eF3gH4iJ5kL6mN7"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dhush", "mssql+pyodbc:///?***"),
    ],
)
def test_secrets_of_addresses(address: str, shown: str) -> None:
    assert has_secret(address)
    assert without_secrets(f"cannot reach '{address}': gone") == f"cannot reach '{shown}': gone"


@pytest.mark.parametrize(
    "address",
    [
        *("", "http://host:5000", "sqlite:///a@b.db", "postgresql://me@host/db", "file:///x"),
        *("postgresql://host/db?application_name=monkey", "http://host/?design=x&max_tokens=9"),
        *(
            "https://h/accounts/0123456789abcdef0123456789abcdef/v1",
            "https://h/{MY_TOKEN}/v1",
            "https://h/sk-models/v1",
        ),
        *("https://h/models/Qwen2.5-Coder-32B-Instruct-AWQ/v1", "http://h/v1/chat/completions"),
        *("mssql://host/db?TrustServerCertificate=yes&charset=utf8mb4", "http://host:5000/#/experiments/1"),
    ],
)
def test_addresses_without_secrets(address: str) -> None:
    assert not has_secret(address)


def test_a_name_that_no_file_can_have() -> None:
    for path in ("é" * 300, "a/" * 3000, "a\0b"):
        with pytest.raises(UserError, match="cannot be a path"):
            in_project(path)
