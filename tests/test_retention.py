"""`keep.models`: which weights stay, what is computed again and when, and what is said of those that went; disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from genloss.core.contracts import Fit
from genloss.core.errors import UserError
from genloss.core.files import locked
from genloss.core.hashes import sha256_file
from genloss.core.places import load_params
from genloss.core.retention import Keep, weights
from genloss.core.rundir import RunDir
from genloss.core.store import Store, Work
from genloss.experiment import Experiment
from genloss.language.model import load, write
from genloss.stages import TRAIN
from genloss.workflow import arm as workflow_arm
from genloss.workflow import disk, sweep
from genloss.workflow.compose import compose
from genloss.workflow.dvc_cache import _elsewhere
from genloss.workflow.identity import arm_id
from support import Project, frozen, hashes

LAB = ["domain=gaussian", "domain.chains=3", "size=20", "rounds=4", "tracking=none"]
WEIGHTS = "rounds/{:02d}/model/model.safetensors"


@pytest.fixture
def home(tmp_path: Path) -> Project:
    return Project.make(tmp_path / "project")


def kept(arm: Path) -> list[int]:
    """The rounds whose weights are in the arm's folder."""
    return [int(path.parents[1].name) for path in sorted(arm.glob("rounds/*/model/*.safetensors"))]


def in_store(home: Project, arm: Path) -> list[int]:
    """The rounds whose weights the store has."""
    found = []
    for path in sorted(arm.glob("rounds/*/manifest.json")):
        files = json.loads(path.read_text())["stages"].get("train", {}).get("files", {})
        if files and all(Store(home.store).blob(files[name]).is_file() for name in weights(files)):
            found.append(int(path.parent.name))
    return found


def of_rounds(arm: Path) -> dict[str, str]:
    """Files that retention does not touch, with their hash."""
    return {n: h for n, h in hashes(arm).items() if not n.endswith(".safetensors") and "dropped.json" not in n}


def numbers(arm: Path) -> dict[str, dict[str, float]]:
    """metrics.json of every round, without times."""
    return {
        path.parent.name: {k: v for k, v in json.loads(path.read_text()).items() if "second" not in k}
        for path in arm.glob("rounds/*/metrics.json")
    }


# -- the rule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "rounds"),
    [("all", [0, 1, 2, 3, 4]), ("last", [4]), ("none", []), ({"every": 3}, [0, 3, 4]), ({"every": 1}, [0, 1, 2, 3, 4])],
)
def test_which_models_stay(models: Any, rounds: list[int]) -> None:
    assert [n for n in range(5) if Keep(models).model(n, 4)] == rounds
    assert Keep(models).dropped(4) == set(range(5)) - set(rounds)


@pytest.mark.parametrize(
    "models", ["first", "every", 3, None, {"every": 0}, {"every": True}, {"each": 2}, {}, ["last"]]
)
def test_what_is_no_rule_is_refused(models: Any) -> None:
    with pytest.raises(UserError, match=r"models.* must be all, last, none, or "):
        Keep(models)


def test_it_is_no_part_of_an_arm_or_of_a_key(home: Project) -> None:
    with home.here():
        configs = [compose([*LAB, f"keep.models={models}"]) for models in ("all", "last", "{every: 2}")]
    assert len({arm_id(cfg) for cfg in configs}) == 1
    refused = home.call("run", *LAB, "keep.models=some")
    assert refused.code == 2 and refused.err.count("\n") == 1 and "keep.models=some" in refused.err
    assert not home.store.exists()


# -- an arm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("models", "rounds"), [("last", [4]), ("none", []), ("{every: 2}", [0, 2, 4])])
def test_only_weights_go_and_everything_is_as_it_was(
    tmp_path: Path, home: Project, models: str, rounds: list[int]
) -> None:
    whole = Project.make(tmp_path / "whole")
    reference = whole.ok("run", *LAB).folder
    arm = home.ok("run", *LAB, f"keep.models={models}").folder
    assert arm.name == reference.name and kept(reference) == [0, 1, 2, 3, 4]
    assert of_rounds(arm) == of_rounds(reference) and numbers(arm) == numbers(reference)
    stored = [0, 4] if models == "last" else rounds  # that of round 0 is what metrics compare with
    assert kept(arm) == rounds and in_store(home, arm) == stored
    assert [p.stem for p in sorted(home.store.glob("stages/*/*.json"))] == [
        p.stem for p in sorted(whole.store.glob("stages/*/*.json"))
    ]
    digests = [hashes(reference)[WEIGHTS.format(n)] for n in range(5)]
    assert {digest for digest in digests if digest in _cached(home)} == {digests[n] for n in rounds}
    # what went is named, with its hash and what has it again
    for n in range(5):
        manifest = json.loads((arm / f"rounds/{n:02d}/manifest.json").read_text())
        note = arm / f"rounds/{n:02d}/model/dropped.json"
        assert note.is_file() == ("dropped" in manifest) == (n not in rounds)
        if n not in rounds:
            again = f"genloss model runs/{arm.name} --round {n}"
            assert manifest["dropped"] == {"files": ["model/model.safetensors"], "again": again}
            digest = manifest["stages"]["train"]["files"]["model/model.safetensors"]
            assert json.loads(note.read_text())["files"] == {"model.safetensors": digest}
    # at once, and nothing is computed
    before = frozen(home.store)
    said = home.ok("run", *LAB, f"keep.models={models}").err
    assert frozen(home.store) == before and in_store(home, arm) == stored and "trained again" not in said
    assert "of disk" not in said
    assert "up to date" in home.dvc("status", cwd=arm) and "up to date" in home.dvc("repro", cwd=arm)
    home.dvc("commit", cwd=arm)
    assert "up to date" in home.dvc("status", cwd=arm)
    verified = home.ok("verify", str(arm)).out.splitlines()[-1]
    assert f"({5 - len(rounds)} are not kept, and were compared by their sha256): all the same" in verified
    assert home.ok("report", str(arm)).out and home.call("verify", str(arm), "--round", "3").code == 0


def test_the_store_has_few_models_at_a_time(home: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of round 0, which metrics compare with, and two more."""
    most = []
    drop = Store.drop

    def counted(store: Store, digests: Any) -> None:
        drop(store, digests)
        arm = next(home.root.glob("runs/gaussian-*"))
        most.append(in_store(home, arm))

    monkeypatch.setattr(Store, "drop", counted)
    home.ok("run", *LAB, "keep.models=none")
    assert [set(rounds) for rounds in most[:3]] == [{0, 1}, {0, 2}, {0, 3}] or max(map(len, most)) <= 2, most
    assert most[-1] == []


def test_a_model_is_had_again(home: Project) -> None:
    """With the same bytes, beside the rounds; nothing else changes."""
    arm = home.ok("run", *LAB).folder
    digests = {n: hashes(arm)[WEIGHTS.format(n)] for n in range(5)}
    home.ok("run", *LAB, "keep.models=last")
    assert kept(arm) == [4]
    before = hashes(arm)
    for n in (2, 4):
        said = home.ok("model", str(arm), "--round", str(n))
        folder = Path(said.out.strip().removeprefix("model: "))
        assert folder == (arm / "models/02/model" if n == 2 else arm / "rounds/04/model")
        assert hashes(arm)[WEIGHTS.format(4)] == digests[4]
        assert sha256_file(folder / "model.safetensors") == digests[n]
    assert hashes(arm) == before and "up to date" in home.dvc("status", cwd=arm)
    assert home.ok("verify", str(arm)).out.endswith("all the same\n")
    refused = home.call("model", str(arm), "--round", "9")
    assert refused.code == 2 and refused.err.count("\n") == 1


def test_the_rule_may_change_later(home: Project) -> None:
    """Then what goes is deleted everywhere, and what is to stay is computed again, to the same bytes."""
    arm = home.ok("run", *LAB).folder
    everything, objects = hashes(arm), _cached(home)
    home.ok("run", *LAB, "keep.models=last")
    assert kept(arm) == [4] and in_store(home, arm) == [0, 4] and "up to date" in home.dvc("status", cwd=arm)
    gone = {everything[WEIGHTS.format(n)] for n in range(4)}
    assert gone <= objects and not gone & _cached(home)  # not in DVC's cache either
    home.ok("run", *LAB, "keep.models={every: 2}")
    assert kept(arm) == [0, 2, 4] and "up to date" in home.dvc("status", cwd=arm)
    home.ok("run", *LAB)
    assert hashes(arm) == everything and "up to date" in home.dvc("status", cwd=arm)
    assert not any("dropped" in json.loads(p.read_text()) for p in arm.glob("rounds/*/manifest.json"))


def _cached(home: Project) -> set[str]:
    return {sha256_file(path) for path in (home.root / ".dvc/cache/files/md5").glob("*/*")}


def test_another_arm_keeps_what_one_drops(home: Project) -> None:
    """Arms of 3 and of 4 rounds share models; what one keeps stays in store and cache, and serves the other."""
    long = home.ok("run", *LAB).folder
    short = home.ok("run", *LAB, "rounds=3", "keep.models=none").folder
    assert kept(short) == [] and kept(long) == [0, 1, 2, 3, 4] == in_store(home, long)
    assert "up to date" in home.dvc("status", cwd=long)
    shutil.rmtree(long / "rounds/02/model")  # DVC alone has it then
    home.ok("run", *LAB, "rounds=3", "keep.models=none")
    home.dvc("checkout", cwd=long)
    assert kept(long) == [0, 1, 2, 3, 4]


def _training(config: str, model: bytes) -> Work:
    def execute(out: Path, scratch: Path) -> dict[str, Any]:
        (out / "model").mkdir()
        (out / "model/model.safetensors").write_bytes(model)
        return {}

    return Work("train", {"config": config}, {}, 0, {}, {}, execute)


@pytest.mark.parametrize("killed", [False, True], ids=["settle", "adopt"])
def test_weights_of_an_earlier_training_are_not_stored_as_the_new_ones(home: Project, killed: bool) -> None:
    """The run directory has those of one key; of the other only the record is there, or the manifest after a kill."""
    old, new = _training("old", b"old"), _training("new", b"new")
    with home.here():
        other = RunDir(home.root / "runs/other", Store(home.store))
        done = other.ensure(new, 0)
        [digest] = done.files.values()
        shutil.rmtree(other.root)
        other.store.drop([digest])
        run = RunDir(home.root / "runs/arm", Store(home.store))
        run.ensure(old, 0)
        run.dropped = frozenset({0})
        if killed:
            run._enter(new, 0, done)
            shutil.rmtree(home.store)
            run.store = Store(home.store)
        run.ensure(new, 0)
    assert not run.store.blob(digest).exists() and kept(run.root) == []
    assert run.done("train", 0) == done


def test_a_model_that_is_had_again_takes_none_from_others(home: Project) -> None:
    """The store may hold models for other arms of a sweep: what was there before stays."""
    whole = home.ok("run", *LAB).folder
    blobs = {n: Store(home.store).blob(hashes(whole)[WEIGHTS.format(n)]) for n in range(5)}
    saved = {n: blobs[n].read_bytes() for n in (1, 3)}
    arm = home.ok("run", *LAB, "keep.models=none").folder
    assert in_store(home, arm) == []
    for n, content in saved.items():
        blobs[n].write_bytes(content)
    home.ok("model", str(arm), "--round", "2")
    assert in_store(home, arm) == [1, 2, 3]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stages": {"train": 1}}'])
def test_a_damaged_manifest_may_keep_anything(home: Project, text: str) -> None:
    """Of another arm, when DVC's cache is asked to forget: no traceback, and nothing goes."""
    arm = home.root / "runs/arm/rounds/00"
    other = home.root / "runs/other/rounds/00/manifest.json"
    other.parent.mkdir(parents=True)
    with home.here():
        assert not _elsewhere(arm, "model/model.safetensors", "0" * 64)
        other.write_text(text)
        assert _elsewhere(arm, "model/model.safetensors", "0" * 64)


def test_another_model_is_no_model_again(home: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose sums differ: one line, and a way on."""
    from genloss.domains.lab import gaussian

    arm = home.ok("run", *LAB, "keep.models=last").folder
    estimate = gaussian.Gaussian.estimate

    def other(*given: Any) -> Any:
        return {name: value + 1e-9 for name, value in estimate(*given).items()}

    with monkeypatch.context() as broken:
        broken.setattr(gaussian.Gaussian, "estimate", other)
        refused = home.call("model", str(arm), "--round", "2")
        assert refused.code == 2 and refused.err.count("\n") == 1, refused.err
        assert "has other bytes than before" in refused.err and "rounds/02/manifest.json" in refused.err
        (arm / "rounds/02/manifest.json").unlink()
        home.ok("run", *LAB, "keep.models=last")  # as it says
    assert len(list(arm.glob("rounds/*/metrics.json"))) == 5 and kept(arm) == [4]


# -- language models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        ["trainer.start=previous", "recipe.prompts=previous", "recipe.prompt_tokens=4"],
        ["curation=perplexity_low", "curation.perplexity_low.judge=last"],
        ["curation=perplexity_low", "curation.perplexity_low.judge=round0"],
    ],
    ids=["previous", "judge last", "judge round0"],
)
def test_a_model_goes_after_its_last_use(tmp_path: Path, home: Project, tiny: list[str], more: list[str]) -> None:
    """Who reads models reads the same ones, and none is trained twice."""
    whole = Project.make(tmp_path / "whole").ok("run", *tiny, *more).folder
    result = home.ok("run", *tiny, *more, "keep.models=none")
    assert of_rounds(result.folder) == of_rounds(whole) and numbers(result.folder) == numbers(whole)
    assert kept(result.folder) == in_store(home, result.folder) == [] and "trained again" not in result.err
    chain = home.ok("model", str(result.folder), "--round", "2")
    assert sha256_file(result.folder / "models/02/model/model.safetensors") == hashes(whole)[WEIGHTS.format(2)]
    assert ("round 1 was not kept" in chain.err) == (more[0] == "trainer.start=previous")  # what it began from
    assert in_store(home, result.folder) == [2]  # what a chain went through goes again


def test_a_run_is_extended_by_a_round(home: Project, tiny: list[str]) -> None:
    """What is trained: the new round, and of those before it the one that it samples from, if that was not kept; that
    of round 0 if its metrics compare with it."""

    def trained(rounds: int, models: str) -> list[str]:
        said = home.ok("run", *tiny, f"rounds={rounds}", f"keep.models={models}", "metrics=[diversity]").err
        return [line.partition(": ")[2] for line in said.splitlines() if " train: " in line or "trained again" in line]

    assert len(trained(2, "{every: 2}")) == 3
    [line] = trained(3, "last")  # 0 and 2 are there
    assert line.startswith("round 3/3 train")
    [line] = trained(4, "none")  # 3 too, by the arm before
    assert line.startswith("round 4/4 train")
    again, line = trained(5, "none")
    assert again.startswith("round 5 generate: the model of round 4 was not kept") and line.startswith("round 5/5 tr")


def test_weights_that_a_user_has_deleted(home: Project, tiny: list[str]) -> None:
    """keep.models=all has them again; another rule does not ask for those that it does not keep."""
    arm = home.ok("run", *tiny).folder
    before = hashes(arm)
    for n in (0, 1):
        (arm / WEIGHTS.format(n)).unlink()
    shutil.rmtree(home.store)
    said = home.ok("run", *tiny, "keep.models=last").err
    assert " train: " not in said and "trained again" not in said and kept(arm) == [2]
    assert home.ok("run", *tiny).err.count(" train: ") == 2 and hashes(arm) == before


def test_what_is_said_of_a_model_that_went(home: Project, tiny: list[str]) -> None:
    arm = home.ok("run", *tiny, "keep.models=last").folder
    folder = arm / "rounds/01/model"
    with home.here():
        with pytest.raises(UserError) as caught:
            load(folder)
        assert f"`genloss model {arm} --round 1` computes it again" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert AutoTokenizer.from_pretrained(folder).vocab_size > 256  # the tokenizer stays
        assert load(arm / "rounds/02/model")
    for more in (
        ["model=pretrained", f"model.path={folder}"],
        ["curation=perplexity_low", f"curation.perplexity_low.judge={folder}"],
    ):
        refused = home.call("run", *tiny, *more)
        assert refused.code == 2 and refused.err.count("\n") == 1, refused.err
        assert f"genloss model {arm} --round 1" in refused.err
    assert home.ok("samples", str(arm), "--round", "1").out.count("-- ")


def test_mlflow_says_where_a_model_is(home: Project) -> None:
    from mlflow import MlflowClient

    def shown() -> dict[str, dict[str, str]]:
        client = MlflowClient(tracking_uri=f"sqlite:///{home.root / 'mlruns/mlflow.db'}")
        [experiment] = [e for e in client.search_experiments() if e.name == "genloss"]
        return {m.name: m.tags for m in client.search_logged_models([experiment.experiment_id])}

    run = [*LAB[:-1], "rounds=1", "tracking=mlflow"]
    arm = home.ok("run", *run, "keep.models=last").folder
    path = f"runs/{arm.name}/rounds/{{:02d}}/model"
    assert shown()["round-1"]["genloss.path"] == path.format(1) and "genloss.again" not in shown()["round-1"]
    assert shown()["round-0"]["genloss.path"] == "was not kept"
    assert shown()["round-0"]["genloss.again"] == f"genloss model runs/{arm.name} --round 0"
    home.ok("run", *run)
    assert shown()["round-0"]["genloss.path"] == path.format(0)


def test_what_if_runs_what_follows_from_weights_that_are_not_kept(home: Project, tiny: list[str]) -> None:
    """Training data may be the same where weights are not, so DVC has to see those: by the note."""
    arm = home.ok("run", *tiny, "mixing=real_only", "rounds=3", "keep.models=last").folder
    new = Path(home.ok("compose", "--dir", str(arm), "+schedule.2.trainer.steps=9").out.strip())
    ran = [line.split("'")[1] for line in home.dvc("repro", cwd=new).splitlines() if line.startswith("Running stage")]
    assert ran == ["round@02", "round@03", "report"]
    [shard] = (path.relative_to(arm) for path in arm.glob("rounds/02/train/*.parquet"))
    assert hashes(new)[str(shard)] == hashes(arm)[str(shard)]
    assert hashes(new)["rounds/03/generated.parquet"] != hashes(arm)["rounds/03/generated.parquet"]
    assert kept(new) == [3] and "up to date" in home.dvc("status", cwd=new)


def test_dvc_repro_from_nothing_and_pull(tmp_path: Path, home: Project) -> None:
    arm = home.ok("run", *LAB, "keep.models=last").folder
    before = hashes(arm)
    home.dvc("remote", "add", "--project", "-d", "shelf", str(tmp_path / "shelf"), cwd=arm)
    home.dvc("push", cwd=arm)
    for name in ("data", "rounds", "report", "../../.genloss", "../../.dvc/cache"):
        shutil.rmtree(arm / name)
    home.dvc("pull", cwd=arm)
    assert hashes(arm) == before and kept(arm) == [4]
    assert "up to date" in home.dvc("repro", cwd=arm)
    home.ok("run", *LAB, "keep.models=last")  # from the folder alone
    assert hashes(arm) == before and in_store(home, arm) == [4]
    for name in ("data", "rounds", "report", "dvc.lock", "summary.json", "../../.genloss", "../../.dvc/cache"):
        shutil.rmtree(arm / name) if (arm / name).is_dir() else (arm / name).unlink()
    home.dvc("repro", cwd=arm)
    assert hashes(arm) == before and in_store(home, arm) == [0, 4] and "up to date" in home.dvc("status", cwd=arm)


# -- sweeps ------------------------------------------------------------------------------------------------------------


def test_arms_of_a_sweep_leave_each_other_what_they_share(home: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arms that part in round 3 share the models before; each is trained once, and at the end none is left."""
    computed: Counter[str] = Counter()
    compute = Store._compute
    monkeypatch.setattr(Store, "_compute", lambda *given: computed.update([given[1].stage]) or compute(*given))
    words = ["run", "-m", *LAB, "keep.models=none", "++schedule.from3.recipe.n=20,19,18"]
    sweep = home.ok(*words).folder
    arms = sorted(home.root.glob("runs/gaussian-*"))
    assert len(arms) == 3 and computed["train"] == 3 + 3 * 2
    assert [in_store(home, arm) for arm in arms] == [[]] * 3
    shared = json.loads((sweep / "shared.json").read_text())
    assert [(group["round"], len(group["arms"])) for group in shared] == [(0, 3), (1, 3), (2, 3)]
    home.ok(*words)
    assert computed["train"] == 9


def test_an_arm_that_has_failed_still_needs_what_it_shares(home: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: Counter[str] = Counter()
    compute = Store._compute
    monkeypatch.setattr(Store, "_compute", lambda *given: computed.update([given[1].stage]) or compute(*given))
    words = ["run", "-m", *LAB, "keep.models=none", "++schedule.from3.recipe.n=20,19"]
    with monkeypatch.context() as broken:
        from genloss.workflow import arm

        run = arm.Loop.round

        def fail(loop: Any, n: int) -> Any:
            if n == 3 and loop.experiment.at_round(3).cfg.recipe.n == 19:
                raise UserError("disk", None, "full")
            return run(loop, n)

        broken.setattr(arm.Loop, "round", fail)
        assert home.call(*words).code == 1
    assert computed["train"] == 5
    done, failed = sorted(home.root.glob("runs/gaussian-*"), key=lambda p: -len(list(p.glob("rounds/*"))))
    assert in_store(home, failed) == [0, 2] == in_store(home, done)  # it has used that of round 1
    home.ok(*words)
    assert computed["train"] == 7 and in_store(home, failed) == in_store(home, done) == []


def test_arms_that_have_ended_need_models_when_they_are_done_again(
    home: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a change of code: each of what they share is trained once, again."""
    from genloss.domains.lab import gaussian

    computed: Counter[str] = Counter()
    compute = Store._compute
    monkeypatch.setattr(Store, "_compute", lambda *given: computed.update([given[1].stage]) or compute(*given))
    words = ["run", "-m", *LAB, "keep.models=none", "++schedule.from3.recipe.n=20,19,18"]
    home.ok(*words)
    assert computed.pop("train") == 3 + 3 * 2
    reached, estimate = TRAIN.code, gaussian.Gaussian.estimate

    def other(*given: Any) -> Any:
        return {name: value + 1e-9 for name, value in estimate(*given).items()}

    def changed(x: Experiment) -> Any:
        found = reached(x)
        return SimpleNamespace(modules=lambda: found.modules() | {"new": "0" * 64}, versions=found.versions)

    monkeypatch.setattr(TRAIN, "code", changed)
    monkeypatch.setattr(gaussian.Gaussian, "estimate", other)
    said = home.ok(*words).err
    assert computed["train"] == 3 + 3 * 2 and "trained again" not in said
    assert [in_store(home, arm) for arm in home.root.glob("runs/gaussian-*")] == [[]] * 3


def test_what_parallel_arms_left_each_other_goes_on_the_next_call(
    home: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ended while the other was at work, and the sweep was killed before its end."""
    words = ["run", "-m", *LAB, "keep.models=none", "++schedule.from3.recipe.n=20,19"]
    with monkeypatch.context() as parallel:
        parallel.setattr(workflow_arm, "needed_by_others", lambda *given: lambda n: n < 3)
        parallel.setattr(sweep, "end", lambda *given: None)
        home.ok(*words)
    arms = list(home.root.glob("runs/gaussian-*"))
    assert [in_store(home, arm) for arm in arms] == [[0, 1, 2]] * 2
    said = home.ok(*words).err
    assert " train: " not in said and [in_store(home, arm) for arm in arms] == [[]] * 2


# -- disk --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_size_of_a_model_is_known_before(home: Project, tiny: list[str], arch: str) -> None:
    arm = home.ok("run", *tiny, "rounds=0", f"model={arch}", "model.layers=3").folder
    with home.here():
        x = Experiment(load_params(arm / "params.yaml"))
        size = x.model.size(x).saved
    assert size == pytest.approx((arm / WEIGHTS.format(0)).stat().st_size, abs=8000)  # a header


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_the_size_of_an_adapter_is_known_before(home: Project, tiny: list[str], adapter: str) -> None:
    base = home.ok("run", *tiny, "rounds=0").folder / "rounds/00/model"
    more = ["model=pretrained", f"model.path={base}", f"model/adapter={adapter}", "rounds=0"]
    arm = home.ok("run", *tiny, *more).folder
    with home.here():
        x = Experiment(load_params(arm / "params.yaml"))
        size = x.model.size(x)
    found = (arm / "rounds/00/model/adapter_model.safetensors").stat().st_size
    assert size.saved == 4 * size.trained == pytest.approx(found, abs=8000)


def _free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: usage._replace(free=size))


def test_what_the_disk_cannot_hold_is_refused_before_any_work(
    home: Project, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model is 0.4 MB; while an arm works two checkpoints of 1.2 MB are there."""
    words = ["run", "-m", *tiny, "rounds=9", "seed=0,1"]
    with monkeypatch.context() as full:
        _free(full, 7_000_000)
        refused = home.call(*words)
        assert (
            refused.code == 2 and refused.err.count("\n") == 1 and "keep.models=all: needs up to 11 MB" in refused.err
        )
        assert "keep.models=last needs 5." in refused.err and "7.0 MB are free" in refused.err
        assert home.stages() == {} and not list(home.root.glob("runs/text-*"))
        single = home.call("run", *tiny, "rounds=19")
        assert single.code == 2 and single.err.count("\n") == 1 and "keep.models=last needs" in single.err
        assert home.stages() == {}
        _free(full, 50_000)
        refused = home.call("run", "domain=gaussian", "domain.chains=1000", "rounds=50", "tracking=none")
        assert refused.code == 2 and refused.err.startswith("genloss: size=") and "for records" in refused.err
    said = home.ok("run", *tiny, "rounds=1").err
    assert said.startswith("genloss: needs at most") and "2 models, 812 kB" in said.splitlines()[0]


def test_shared_models_count_once_and_those_that_are_there_not_at_all(home: Project, tiny: list[str]) -> None:
    def count(*more: str) -> int:
        with home.here():
            arms = [Experiment(compose([*tiny, *more, f"mixing={name}"])) for name in ("replace", "accumulate")]
            return disk.cost(arms, [home.root / f"runs/{i}" for i in range(2)]).count

    assert count() == 1 + 2 * 2  # round 0 is one model
    assert count("keep.models=last") == 1 + 2 and count("keep.models=none") == 0
    assert count("rounds=0") == 1
    with home.here():
        cfg = compose(tiny)
        arm = home.ok("run", *tiny).folder
        there = disk.cost([Experiment(compose([*tiny, "rounds=3"]))], [arm])
        assert there.count == 1 and there.all
        assert disk.cost([Experiment(cfg)], [arm]).all == 0


def test_arms_that_are_finished_need_no_room_to_work(home: Project, tiny: list[str]) -> None:
    finished = home.ok("run", *tiny).folder
    with home.here():
        arms = [Experiment(compose([*tiny, *more])) for more in ([], ["seed=1"], ["seed=2"])]
        folders = [finished, *(home.root / f"runs/{i}" for i in range(2))]
        work = [disk.cost(arms[:n], folders[:n], jobs).work for n, jobs in ((2, 1), (2, 2), (3, 2), (3, 3))]
    assert work[0] and work == [work[0], work[0], 2 * work[0], 2 * work[0]]


def test_room_to_work_is_needed_where_the_store_is(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two disks")
    usage, free = shutil.disk_usage("/"), {True: 0, False: 0}
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: usage._replace(free=free[place.is_relative_to(shm)]))
    with TemporaryDirectory(dir=shm) as store, Project.make(tmp_path / "project", GENLOSS_STORE=store).here():
        arms, folders = [Experiment(compose(tiny))], [tmp_path / "project/runs/arm"]
        there = disk.cost(arms, folders)
        rest = there.all - there.work
        assert there.work and rest
        for here, other, tells in ((there.all, there.all, False), (there.all + 1, rest, True)):
            free.update({True: here, False: other})
            said = disk.checked(arms, folders)
            need = rest if tells else there.all
            assert f"at most {disk.amount(need)} of" in said and ("while it works" in said) != tells
        for here, other, need in ((there.all - 1, there.all, there.all), (there.all, rest - 1, rest)):
            free.update({True: here, False: other})
            with pytest.raises(UserError, match=f"needs up to {disk.amount(need)} on the disk of"):
                disk.checked(arms, folders)


def test_what_killed_stages_left_for_nobody_is_deleted(home: Project, tiny: list[str]) -> None:
    """A stage of a run that is gone, and one that the run has finished under another key; not one that would go on, nor
    one where somebody works."""
    arm = home.ok("run", *LAB, "rounds=1").folder

    def scratch(name: str, run: Path, stage: str, n: int) -> Path:
        folder = home.store / "scratch" / name
        folder.mkdir()
        (folder / "part").write_bytes(b"0" * 5000)
        (folder / "claim.json").write_text(json.dumps({"run": str(run), "stage": stage, "round": n}))
        return folder

    gone = scratch("a" * 64, arm.with_name("nothing"), "train", 0)
    moved_on = scratch("b" * 64, arm, "train", 1)
    goes_on = scratch("c" * 64, arm, "train", 2)
    works = scratch("d" * 64, arm.with_name("nothing"), "train", 0)
    conversion = home.root / ".genloss/models/.gguf-0123"
    conversion.mkdir(parents=True)
    (conversion / "model.safetensors").write_bytes(b"0" * 90_000)
    (home.root / ".genloss/models/0000").symlink_to(home.root / "nowhere")
    with locked(home.store / "locks" / works.name):
        said = home.ok("run", *LAB, "rounds=2").err
    assert not gone.exists() and not moved_on.exists() and goes_on.exists() and works.exists()
    assert not conversion.exists() and not (home.root / ".genloss/models/0000").is_symlink()
    assert "genloss: deleted 100 kB that killed stages had left" in said


def test_a_killed_stage_says_whose_it_is(home: Project) -> None:
    """So that its scratch folder is kept as long as the run is there, and goes with it."""
    pid = os.fork()
    if not pid:
        from genloss.domains.lab import gaussian

        gaussian.Gaussian.estimate = lambda *given: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        home.call("run", *LAB)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    [left] = (home.store / "scratch").iterdir()
    [arm] = home.root.glob("runs/gaussian-*")
    home.ok("run", *LAB, "seed=1")
    assert left.is_dir()
    shutil.rmtree(arm)
    home.ok("run", *LAB, "seed=2")
    assert not left.exists()


def test_a_stage_that_is_done_again_goes_on(home: Project) -> None:
    """Code has changed, the training under the new key was killed: its checkpoint stays, though the run still has the
    stage under the key of before."""
    arm = home.ok("run", *LAB, "rounds=1").folder
    with home.here():
        run = RunDir(arm, Store(home.store))
        before = run.done("train", 1)
        scratch = home.store / "scratch" / ("a" * 64)
        scratch.mkdir()
        run.claim(scratch, "train", 1)
        disk.tidy()
        assert scratch.is_dir()
        assert before
        run._enter(_training("other", b"1"), 1, replace(before, key="b" * 64))  # the run has moved on since
        disk.tidy()
        assert not scratch.exists()


# -- files of models ---------------------------------------------------------------------------------------------------


def test_tied_weights_are_saved_once(trained: Any, tmp_path: Path) -> None:
    """Also where a strategy hands out a copy of each, as from a GPU; transformers reads both back as one."""
    from genloss.language.model import Scratch
    from genloss.language.trainer import Supervised

    config = LlamaConfig(
        vocab_size=trained.domain.vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    copies = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    assert copies["lm_head.weight"].data_ptr() != copies["model.embed_tokens.weight"].data_ptr()
    sizes = []
    for name, given in (("own", None), ("copies", copies)):
        fit = Fit(
            model=Scratch(), trainer=Supervised(), data=trained.data, shards=[], weights=[], start=None, seed=0,
            out=tmp_path / name,
        )  # fmt: skip
        write(model, fit, given)
        folder = tmp_path / name / "model"
        sizes.append((folder / "model.safetensors").read_bytes())
        again = AutoModelForCausalLM.from_pretrained(folder)
        assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()
        assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert sizes[0] == sizes[1] and len(sizes[0]) < 4 * sum(p.numel() for p in model.parameters()) + 2000


def test_a_model_has_its_tokenizer_beside_it(home: Project, tiny: list[str]) -> None:
    base = home.ok("run", *tiny, "rounds=0").folder / "rounds/00/model"
    more = ["model=pretrained", f"model.path={base}", "model/adapter=lora", "rounds=0"]
    adapter = home.ok("run", *tiny, *more).folder / "rounds/00/model"
    text = "The quiet river keeps the old bridge."
    for folder in (base, adapter):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
