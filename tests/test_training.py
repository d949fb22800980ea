"""Training: the same seed gives the same bytes; budgets, weights, warm starts and two devices do what they say."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from genloss.core import records
from genloss.core.contracts import STRATEGIES, Fit, Runtime
from genloss.core.errors import UserError
from genloss.core.hashes import sha256_file
from genloss.core.machine import check_devices
from genloss.experiment import Experiment
from genloss.language import curve
from genloss.language.checkpoint import Checkpoints
from genloss.language.model import Scratch, load
from genloss.language.packing import Rows
from genloss.language.scoring import losses
from genloss.language.tokenizer import load_codec
from genloss.language.trainer import PRECISIONS, Supervised
from genloss.language.training import LOOK, CausalLM, train
from genloss.workflow.compose import compose
from support import Project, killed, killer


class Stop(Callback):
    """Ends the training after `after` steps."""

    def __init__(self, after: int):
        self.after = after

    def on_train_batch_end(self, trainer, module, *_) -> None:
        trainer.should_stop = trainer.global_step >= self.after


class Counts(Stop):
    """Has a state, and writes it; ends the training by it."""

    seen = 0

    def on_train_batch_end(self, trainer, module, *_) -> None:
        self.seen += 1
        with (module.fit.out / "seen.txt").open("a") as file:
            file.write(f"{self.seen}\n")
        trainer.should_stop = self.seen >= self.after

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Breaks(Callback):
    """Breaks the model after a step."""

    def __init__(self, at: int):
        self.at = at

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step == self.at:
            for parameter in module.parameters():
                parameter.data.fill_(math.nan)


class Broken(Callback):
    def __init__(self) -> None:
        raise ValueError("two\nlines")


class Halved(CausalLM):
    """A subclass of a user: another loss, and a parameter of its own."""

    def __init__(self, fit: Fit):
        super().__init__(fit)
        self.bias = torch.nn.Parameter(torch.randn(3))

    def nats(self, logits: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        return super().nats(logits, targets, reduction) / 2 + 0 * self.bias.sum()


@dataclass
class Half(Supervised):
    def module(self, fit: Fit) -> CausalLM:
        return Halved(fit)


MODEL = ["config.json", "generation_config.json", "model.safetensors"]
STOP = {"stop": {"_target_": "test_training.Stop", "after": 3}}
CSV = {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger"}}


@pytest.fixture
def fit(trained, tmp_path: Path):
    """`fit("name", seed=3)` trains a tiny model; returns (its folder, the result)."""

    (tmp_path / "data").symlink_to(trained.data)
    (tmp_path / "rounds" / "00" / "train").mkdir(parents=True)
    shard = tmp_path / "rounds" / "00" / "train" / "real.parquet"
    shard.symlink_to(trained.data / "train.parquet")

    def go(name: str, *, trainer: Supervised | None = None, arch: str = "llama", **changes) -> tuple[Path, dict]:
        out = tmp_path / name
        out.mkdir()
        job = Fit(
            model=Scratch(arch=arch, width=32, feed_forward=64),
            trainer=trainer or Supervised(steps=6, batch=4),
            data=tmp_path / "data",
            shards=[shard],
            weights=[1.0],
            start=None,
            seed=1,
            out=out,
            options={"context": trained.context},
        )
        result = train(replace(job, **changes))
        return out, result

    return go


def digest(folder: Path) -> str:
    return sha256_file(folder / "model" / "model.safetensors")


def difference(a: Path, b: Path) -> float:
    first, second = (load(f / "model").state_dict() for f in (a, b))
    return sum(float(((first[k] - second[k]) ** 2).sum()) for k in first) ** 0.5


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_seed_decides_every_bit(fit, arch: str) -> None:
    torch.manual_seed(99)  # the state that a process happens to be in must not matter
    a, result = fit("a", arch=arch)
    torch.rand(7)
    b, again = fit("b", arch=arch)
    c, _ = fit("c", arch=arch, seed=2)
    assert digest(a) == digest(b) != digest(c) and result == again
    assert (a / "training.csv").read_bytes() == (b / "training.csv").read_bytes()
    assert sorted(p.name for p in a.rglob("*") if p.is_file()) == sorted(
        [*MODEL, "tokenizer.json", "tokenizer_config.json", "training.csv"]
    )


def test_training_learns_and_writes_its_curve(fit, trained) -> None:
    trainer = Supervised(steps=20, batch=8, validate_every=10, validation_rows=16)
    folder, result = fit("a", trainer=trainer)
    with (folder / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    curve = [r for r in rows if r["loss"]]
    assert [int(r["step"]) for r in curve] == list(range(1, 21))
    assert float(curve[-1]["loss"]) < float(curve[0]["loss"]) - 0.5
    assert float(curve[-1]["loss"]) == pytest.approx(result["loss"], rel=1e-4)
    assert [float(r["lr"]) for r in curve] == pytest.approx(
        [trainer.lr * trainer.rate(s, 20) for s in range(20)], rel=1e-4
    )
    validation = {int(r["step"]): float(r["validation_loss"]) for r in rows if r["validation_loss"]}
    assert set(validation) == {10, 20} and validation[20] < validation[10]


@pytest.mark.parametrize("pace", [lambda step: 0.001, lambda step: 0.1, lambda step: 30.0, lambda step: 0.01 * step])
def test_checkpoints_are_due_when_their_minutes_are_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pace: Callable[[int], float]
) -> None:
    now, asked = [1000.0], [0]

    def clock() -> float:
        asked[0] += 1
        return now[0]

    monkeypatch.setattr("time.monotonic", clock)
    checkpoints = Checkpoints(tmp_path, tmp_path / "out", minutes=10)
    last, kept, step = now[0], 0, 0
    while kept < 5:
        step += 1
        now[0] += pace(step)
        if checkpoints.due(step):
            checkpoints._kept = now[0]  # as `keep` does
            assert 600 <= now[0] - last < 1.5 * 600 + 2 * pace(step)
            last, kept = now[0], kept + 1
    assert asked[0] <= min(step + 1, 200)


def test_rate_warms_up_and_decays() -> None:
    trainer = Supervised(warmup=0.1, final_lr=0.05)
    rates = [trainer.rate(s, 100) for s in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)]) and rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0.05 < rates[-1] < 0.06
    assert trainer.rate(100, 100) == pytest.approx(0.05)


def test_a_token_budget_overrides_steps(fit, trained) -> None:
    assert Supervised(steps=300, batch=4, tokens=4 * 48 * 5).budget(48) == 5
    assert Supervised(tokens=1).budget(128) == 1
    _, result = fit("a", trainer=Supervised(steps=300, batch=4, tokens=4 * trained.context * 5))
    assert result["steps"] == 5 and result["tokens"] == 4 * trained.context * 5


def test_accumulated_batches_are_the_same_batch(fit) -> None:
    """Half the rows at a time: the same rows, each target with its weight in the whole."""
    a, _ = fit("a", trainer=Supervised(steps=3, batch=8))
    b, _ = fit("b", trainer=Supervised(steps=3, batch=8, accumulate=2))
    assert curve_of(b) == [pytest.approx(row, rel=2e-5) for row in curve_of(a)]


def losses_of(folder: Path) -> float:
    with (folder / "training.csv").open() as file:
        return float([r["loss"] for r in csv.DictReader(file) if r["loss"]][-1])


def two_languages(folder: Path) -> list[Path]:
    paths = []
    for i, text in enumerate(("aaa bbb aaa bbb", "yyy zzz yyy zzz")):
        table = records.make_table({"text": [text] * 64}, origin="real", generation=0, recipe="x")
        paths.append(folder / f"shard-{i}.parquet")
        records.write(table, paths[-1])
    return paths


def test_loss_weights(fit, trained, tmp_path: Path) -> None:
    shards = two_languages(tmp_path)
    trainer = Supervised(steps=15, batch=8)

    def bits(folder: Path) -> tuple[float, float]:
        nats, tokens = losses(folder / "model", trained.data, ["aaa bbb aaa bbb", "yyy zzz yyy zzz"], trained.context)
        return tuple(nats / tokens)

    plain, _ = fit("plain", shards=shards, weights=[1.0, 1.0], trainer=trainer)
    first, _ = fit("first", shards=shards, weights=[1.9, 0.1], trainer=trainer)
    only, _ = fit("only", shards=shards, weights=[2.0, 0.0], trainer=trainer)
    ones, _ = fit("ones", shards=shards, weights=[0.999999, 1.000001], trainer=trainer)
    a, b = bits(plain)
    assert max(a, b) < 2.5  # both are on the way: ln(300) = 5.7 is knowing nothing
    a, b = bits(first)
    assert a < b - 0.1
    a, b = bits(only)
    assert b > a + 2  # a weight of zero teaches nothing
    assert difference(plain, ones) < 0.02  # the weighted path at equal weights is the plain one


def test_warm_start_goes_on_from_the_last_model(fit, trained) -> None:
    trainer = Supervised(steps=2, batch=4, lr=1e-6)
    warm, _ = fit("warm", start=trained.llama, trainer=trainer)
    cold, _ = fit("cold", trainer=trainer)
    before = load(trained.llama).state_dict()
    after = load(warm / "model").state_dict()
    moved = max(float((before[k] - after[k]).abs().max()) for k in before)
    assert 0 < moved < 1e-4
    assert losses_of(warm) < losses_of(cold) - 0.5


def test_no_model_ever_trains_on_held_out_text(fit, trained, tmp_path: Path) -> None:
    """What is trained on is the shards alone: other validation, test and prompt records change no weight."""
    a, _ = fit("a")
    other = tmp_path / "other"
    shutil.copytree(trained.data, other)
    table = records.make_table({"text": ["Completely different text."] * 50}, origin="real", generation=0, recipe="x")
    for split in ("validation", "test", "prompts"):
        records.write(table, other / f"{split}.parquet")
    b, _ = fit("b", data=other)
    assert digest(a) == digest(b)


def test_two_devices(fit, trained) -> None:
    """Lightning DDP on two CPU processes: saved, loadable, trained on the same rows as one process."""
    trainer = Supervised(steps=4, batch=8)
    one, single = fit("one", trainer=trainer)
    two, result = fit("two", trainer=trainer, runtime=Runtime(devices=2, strategy="ddp"))
    assert result["steps"] == single["steps"] and result["tokens"] == single["tokens"]
    assert sorted(p.name for p in two.iterdir()) == ["model", "training.csv"]
    fewer, _ = fit("fewer", trainer=Supervised(steps=4, batch=4))
    assert difference(one, two) < 0.2 * difference(one, fewer)
    config = json.loads((two / "model" / "config.json").read_text())
    assert config["model_type"] == "llama"
    nats, _ = losses(two / "model", trained.data, ["The old garden."], trained.context)
    assert nats[0] > 0


def test_two_devices_that_fail_are_one_line(fit, trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runtime\.strategy=deepspeed: .*exit code"):
        fit("bad", runtime=Runtime(devices=2, strategy="deepspeed"))


# -- what users bring --------------------------------------------------------------------------------------------------


def files(folder: Path) -> set[str]:
    own = ("model/",)
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return {n for n in names if not n.startswith(own)} - {"training.csv"}


def test_a_callback_can_end_the_training(fit, trained) -> None:
    folder, result = fit("a", trainer=Supervised(steps=6, batch=4, callbacks=STOP))
    assert result["steps"] == 3 and result["tokens"] == 3 * 4 * trained.context
    with (folder / "training.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["loss"]]
    assert [int(r["step"]) for r in rows] == [1, 2, 3]
    assert float(rows[-1]["loss"]) == pytest.approx(result["loss"], rel=1e-4)
    assert files(folder) == set()


def test_loggers_and_callbacks_change_no_byte(fit, tmp_path: Path) -> None:
    plain, result = fit("plain", trainer=Supervised(steps=6, batch=4, validate_every=3))
    trainer = Supervised(
        steps=6, batch=4, validate_every=3, logger=CSV, callbacks={"stop": STOP["stop"] | {"after": 9}}
    )
    logged, again = fit("logged", trainer=trainer)
    assert digest(plain) == digest(logged) and result == again
    assert (plain / "training.csv").read_bytes() == (logged / "training.csv").read_bytes()
    assert files(logged) == set()  # what a logger writes is no result
    assert files(tmp_path / "logs") == {f"00/lightning_logs/version_0/{n}" for n in ("metrics.csv", "hparams.yaml")}
    with (tmp_path / "logs/00/lightning_logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float([r["loss"] for r in rows if r["loss"]][-1]) == pytest.approx(result["loss"], rel=1e-4)
    assert len([r for r in rows if r["validation_loss"]]) == 2


def test_a_path_of_a_logger_starts_at_the_project(fit, project: Path, tmp_path: Path, monkeypatch) -> None:
    """Wherever the stage runs: DVC runs it in the arm's folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    best = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "mine/best"}
    logger = {"csv": CSV["csv"] | {"save_dir": "mine/logs"}}
    fit("a", trainer=Supervised(steps=4, batch=4, validate_every=2, logger=logger, callbacks={"best": best}))
    assert list((project / "mine/logs").rglob("metrics.csv")) and list((project / "mine/best").glob("*.ckpt"))
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("logger", [{}, CSV])
def test_checkpoints_of_a_callback_lie_beside_the_model(fit, logger: dict[str, Any]) -> None:
    best = {
        "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
        "monitor": "validation_loss",
        "save_top_k": 2,
        "filename": "{step}",
    }
    trainer = Supervised(steps=6, batch=4, validate_every=3, callbacks={"best": best}, logger=logger)
    folder, _ = fit("a", trainer=trainer)
    assert files(folder) == {"checkpoints/step=3.ckpt", "checkpoints/step=6.ckpt"}
    state = torch.load(folder / "checkpoints/step=6.ckpt", weights_only=True)["state_dict"]
    saved = load(folder / "model").state_dict()
    assert all(torch.equal(state[f"model.{k}"], v) for k, v in saved.items())


def test_early_stopping_sees_the_validation_loss(fit) -> None:
    stop = {
        "_target_": "lightning.pytorch.callbacks.EarlyStopping",
        "monitor": "validation_loss",
        "min_delta": 100.0,
        "patience": 2,
    }
    _, result = fit("a", trainer=Supervised(steps=9, batch=4, validate_every=1, callbacks={"stop": stop}))
    assert result["steps"] == 3
    stop |= {"monitor": "accuracy"}
    with pytest.raises(UserError, match=r"trainer\.callbacks: .*accuracy.* not available"):
        fit("b", trainer=Supervised(steps=9, batch=4, callbacks={"stop": stop}))


def test_a_subclass_trains_with_a_loss_of_its_own(fit) -> None:
    plain, one = fit("plain")
    half, two = fit("half", trainer=Half(steps=6, batch=4))
    again, _ = fit("again", trainer=Half(steps=6, batch=4))
    assert digest(plain) != digest(half) == digest(again)
    assert two["loss"] < 0.6 * one["loss"] and files(half) == set()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+trainer.callbacks={a: {after: 3}}"], ["trainer.callbacks.a", "needs a _target_"]),
        (
            ["+trainer.callbacks={a: {_target_: nowhere.Stop}}"],
            ["trainer.callbacks.a._target_=nowhere.Stop", "imported"],
        ),
        (
            ["+trainer.callbacks={a: {_target_: pathlib.Path}}"],
            ["trainer.callbacks.a._target_", "lightning", "Callback"],
        ),
        (["+trainer.logger={a: {_target_: test_training.Stop, after: 3}}"], ["trainer.logger.a._target_", "Logger"]),
        (["+trainer.callbacks={a: {_target_: test_training.Stop}}"], ["trainer.callbacks.a", "missing", "after"]),
        (["+trainer.callbacks={a: {_target_: test_training.Stop, afte: 3}}"], ["trainer.callbacks.a", "afte"]),
        (
            ["+trainer.logger={a: {_target_: lightning.pytorch.loggers.CSVLogger, dir: x}}"],
            ["trainer.logger.a", "'dir'"],
        ),
        (
            ["+trainer.callbacks={a: {_target_: test_training.Stop, after: {_target_: nowhere.Nope}}}"],
            ["trainer.callbacks.a.after._target_=nowhere.Nope", "cannot be imported", "No module named 'nowhere'"],
        ),
        (
            ["+trainer.callbacks={a: {_target_: test_training.Stop, after: [{_target_: pathlib.Nope}]}}"],
            ["trainer.callbacks.a.after.0._target_=pathlib.Nope", "cannot be imported"],
        ),
        (
            ["+trainer.callbacks={a: {_target_: test_training.Stop, after: {_target_: random.Random, sed: 1}}}"],
            ["trainer.callbacks.a.after=random.Random", "'sed'"],
        ),
        (
            ["+trainer.callbacks={a: {_target_: test_training.Stop, _partial_: true}}"],
            ["trainer.callbacks.a._partial_", "makes no Callback"],
        ),
        (
            ["+trainer.callbacks={a: {_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: x, mode: mni}}"],
            ["trainer.callbacks.a=lightning", "mode", "mni"],
        ),
        (
            ["+schedule.1.trainer.callbacks={a: {_target_: test_training.Stop, afte: 3}}"],
            ["schedule.1.trainer.callbacks.a=test_training.Stop", "afte"],
        ),
    ],
)
def test_what_is_no_callback_is_refused(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        x = Experiment(compose(overrides))
        try:
            x.trainer.check(x)
        except UserError as own:
            raise own.under("trainer") from None
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_an_error_of_a_round_names_its_schedule(main, project: Path, tiny: list[str]) -> None:
    lines = main("run", *tiny, "+schedule.1.trainer.callbacks={a: {_target_: test_training.Broken}}").err.splitlines()
    assert lines[-1].startswith("genloss: schedule.1.trainer.callbacks.a=test_training.Broken: two lines")


def test_a_logger_is_no_part_of_a_run(main, project: Path, tiny: list[str], monkeypatch) -> None:
    """Run with a logger first: an arm without finds the same files in the store, and all of them can be verified."""
    csv = f"+trainer.logger={{a: {{_target_: {CSV['csv']['_target_']}}}}}"
    logged = main("run", *tiny, "rounds=1", csv)
    assert logged.code == 0
    written = sorted(p.relative_to(logged.folder / "logs").as_posix() for p in logged.folder.glob("logs/**/*.csv"))
    assert written == [f"{n}/lightning_logs/version_0/metrics.csv" for n in ("00", "01")]
    assert not list(project.glob("runs/*/rounds/**/metrics.csv"))
    again = main("run", *tiny, "rounds=1", csv)
    assert again.code == 0 and again.err.count("finished before, so trainer.logger writes nothing") == 2
    hashes = [m["stages"]["train"]["files"] for m in manifests(logged.folder)]
    assert main("verify", str(logged.folder)).code == 0
    shutil.rmtree(project / "runs")
    monkeypatch.setenv("GENLOSS_STORE", str(project / "other"))
    plain = main("run", *tiny, "rounds=1")
    assert [m["stages"]["train"]["files"] for m in manifests(plain.folder)] == hashes


def manifests(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rounds/*/manifest.json"))]


def test_a_round_that_diverges_is_kept_and_goes_on_if_told_to(main, project: Path, tiny: list[str]) -> None:
    wild = [*tiny, "rounds=2", "+schedule.1.trainer.lr=1e6", "trainer.validate_every=2"]
    outcome = main("run", *wild)
    lines = outcome.refusals
    assert outcome.code == 2 and len(lines) == 1
    start = "genloss: schedule.1.trainer.lr=1000000.0: the training diverged: from step "
    assert lines[0].startswith(start) and "the round is kept" in lines[0] and "trainer.diverged=go_on" in lines[0]
    (arm,) = (project / "runs").glob("text-*")
    kept = manifests(arm)
    metrics = json.loads((arm / "rounds/01/metrics.json").read_text())
    step = int(metrics["diverged"])
    assert step > 1 and f"from step {step} on" in lines[0] and len(kept) == 2
    trained = kept[1]["stages"]["train"]
    assert trained["result"]["diverged"] == step and trained["result"]["steps"] == step - 2
    with (arm / "rounds/01/training.csv").open() as file:
        curve = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert len(curve) == step - 1 and all(math.isfinite(loss) for loss in curve)
    assert all(bool(p.isfinite().all()) for p in load(arm / "rounds/01/model").parameters())
    again = main("run", *wild)  # finds it, and does not train it again
    assert again.code == 2 and manifests(arm)[1]["stages"]["train"] == trained
    on = main("run", *wild, "trainer.diverged=go_on")
    assert on.code == 0 and on.folder == arm
    assert json.loads((arm / "rounds/01/metrics.json").read_text())["diverged"] == step
    assert "diverged" not in json.loads((arm / "rounds/02/metrics.json").read_text())
    assert manifests(arm)[1]["stages"]["train"] == trained


def test_a_training_on_two_devices_that_diverges_is_one_line(tmp_path: Path, tiny: list[str]) -> None:
    home = Project.make(tmp_path / "project")
    wild = ["rounds=1", "trainer.lr=1e6", "runtime.devices=2", "runtime.strategy=ddp"]
    result = home.spawn("genloss", "run", *tiny, *wild)
    assert result.code == 2 and len(result.refusals) == 1 and "Traceback" not in result.err, result.err
    assert "the training diverged: from step" in result.err


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name.startswith("ddp")])
def test_every_strategy_of_a_cpu_trains(fit, strategy: str) -> None:
    folder, result = fit("a", trainer=Supervised(steps=2, batch=4), runtime=Runtime(strategy=strategy))
    assert result["steps"] == 2 and 4 < result["loss"] < 7 and (folder / "model" / "model.safetensors").is_file()


def test_the_model_of_a_diverged_training_gave_the_last_loss(fit) -> None:
    """It is the model of as many steps as were sound, whatever the length of the training."""
    wild = Supervised(steps=6, batch=4, lr=1e9)
    folder, result = fit("a", trainer=wild)
    _, again = fit("b", trainer=wild)
    assert result == again and digest(folder) == digest(folder.with_name("b"))
    assert 1 <= result["diverged"] <= 6 and result["steps"] == max(0, result["diverged"] - 2)
    assert not [p for p in folder.rglob("*") if p.is_file() and p.name.startswith(".")]


JOBS = {
    "slurm": {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"},
    "torchelastic": {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"},
    "lsf": {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/nowhere", "JSM_NAMESPACE_SIZE": "4"},
}


@pytest.mark.parametrize("kind", JOBS)
def test_the_variables_of_a_job_are_no_orders(fit, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    a, _ = fit("a")
    for name, value in JOBS[kind].items():
        monkeypatch.setenv(name, value)
    b, _ = fit("b")
    assert digest(a) == digest(b)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_trains_with_clipping(fit, precision: str) -> None:
    folder, result = fit("a", trainer=Supervised(steps=3, batch=4, precision=precision))
    assert result["steps"] == 3 and "diverged" not in result and (folder / "model" / "model.safetensors").is_file()


def test_a_batch_that_fits_nowhere_is_one_line(fit) -> None:
    with pytest.raises(UserError, match=r"trainer\.batch=100000000: the logits of 50000000 rows of .* GB at once, and"):
        fit("a", trainer=Supervised(steps=1, batch=10**8, accumulate=2))


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_a_compiled_model_learns_the_same(fit) -> None:
    one = {"trainer": Supervised(steps=1, batch=4)}
    a, _ = fit("a", model=Scratch(width=32, feed_forward=64), **one)
    b, _ = fit("b", model=Scratch(width=32, feed_forward=64, compile=True), **one)
    for (name, plain), (other, compiled) in zip(*(load(f / "model").named_parameters() for f in (a, b)), strict=True):
        assert name == other
        torch.testing.assert_close(compiled, plain, rtol=1e-2, atol=2e-3)


def test_nothing_is_compiled_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"model\.compile=True: needs a C\+\+ compiler"):
        Experiment(compose(["model.compile=true"]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["runtime.accelerator=gpu"], ["runtime.accelerator=gpu", "this machine has none", "accelerator=cpu"]),
        (["+schedule.1.runtime.accelerator=cuda"], ["schedule.1.runtime.accelerator=cuda"]),
        (["runtime.strategy=fsdp"], ["runtime.strategy=fsdp", "is for GPUs", "ddp"]),
    ],
)
def test_devices_that_are_not_there(
    main, project: Path, tiny: list[str], monkeypatch, overrides: list[str], words: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    outcome = main("run", *tiny, *overrides)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and all(word in outcome.err for word in words)
    assert not list(project.glob(".genloss/store/stages/*/*"))


def test_more_devices_than_there_are(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(Runtime(accelerator="gpu", devices=2, strategy="fsdp"))
    check_devices(Runtime(devices=9))  # processes of a CPU
    with pytest.raises(UserError, match=r"devices=3: this machine has 2"):
        check_devices(Runtime(accelerator="auto", devices=3))


def test_what_cannot_be_made_is_refused_before_the_first_step(fit, tmp_path: Path) -> None:
    partial = {"_target_": "test_training.Stop", "_partial_": True, "after": 3}
    nodes: list[dict[str, Any]] = [partial, {"_target_": "test_training.Broken"}]
    for node in nodes:
        with pytest.raises(UserError, match=r"^trainer\.callbacks\.a=test_training") as error:
            fit(node["_target_"][-3:], trainer=Supervised(callbacks={"a": node}))
        assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("training.csv"))


def test_they_travel_to_several_devices(fit, tmp_path: Path) -> None:
    trainer = Half(steps=6, batch=4, logger=CSV, callbacks=STOP)
    folder, result = fit("two", trainer=trainer, runtime=Runtime(devices=2, strategy="ddp"))
    assert result["steps"] == 3 and result["loss"] < 4
    assert files(folder) == set()
    assert files(tmp_path / "logs") == {f"00/lightning_logs/version_0/{n}" for n in ("metrics.csv", "hparams.yaml")}


# -- going on after a kill ---------------------------------------------------------------------------------------------

OFTEN = 1e-9  # minutes: after each step


def everything(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}


@dataclass
class Partly(Scratch):
    """A model whose first layer is not trained."""

    def fresh(self, *known: Any, **named: Any) -> Any:
        model = super().fresh(*known, **named)
        model.transformer.h[0].requires_grad_(False)
        return model


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"validate_every": 1}, Scratch),
        ({"validate_every": 3, "validation_rows": 8}, Scratch),
        ({"validate_every": 4, "accumulate": 2}, Scratch),
        ({"precision": "16-mixed"}, Scratch),
        ({"callbacks": {"stop": {"_target_": "test_training.Counts", "after": 7}}}, Scratch),
        ({"validate_every": 2}, Partly),
    ],
    ids=str,
)
def test_killed_at_any_step_it_goes_on_to_the_same_bytes(
    fit, tmp_path: Path, options: dict[str, Any], kind: type[Scratch]
) -> None:
    """A model that draws (dropout), its curve, what callbacks count and write; each step but the last is met once."""
    trainer = Supervised(steps=9, batch=4, checkpoint_minutes=OFTEN, **options)
    model = kind(arch="gpt2", width=32, feed_forward=64, options=DROPOUT)
    plain, _ = fit("plain", trainer=replace(trainer, checkpoint_minutes=0), model=model)
    out, scratch = tmp_path / "killed", tmp_path / "scratch"
    scratch.mkdir()
    seen, step = [], 2
    while killed(lambda: fit("killed", trainer=trainer, model=model, scratch=scratch, report=killer(step))):  # noqa: B023
        seen.append(max(int(p.name.rpartition("-")[2]) for p in (scratch / "checkpoints").glob("auto-*")))
        shutil.rmtree(out)  # as the store does
        step += 1
    assert everything(out) == everything(plain)
    ended = 7 if "callbacks" in options else 9
    assert seen == list(range(1, ended)), "it was killed before it kept the checkpoint of that step"
    (last,) = (scratch / "checkpoints").iterdir()
    kept = torch.load(last / "state", weights_only=True)["state_dict"]
    assert any(name.startswith("model.transformer.h.0") for name in kept) == (kind is Scratch)


def curve_of(folder: Path) -> list[tuple[float, float]]:
    """(loss, validation loss) of every line, 0 where there is none."""
    with (folder / "training.csv").open() as file:
        return [(float(r["loss"] or 0), float(r["validation_loss"] or 0)) for r in csv.DictReader(file)]


def test_killed_on_two_devices(fit, tmp_path: Path) -> None:
    """By SIGKILL of the process that started them; the same losses, with slices that are not equal."""
    trainer = Supervised(steps=40, batch=5, validate_every=8, validation_rows=7, checkpoint_minutes=OFTEN)
    apart = {"trainer": trainer, "runtime": Runtime(devices=2, strategy="ddp")}
    plain, result = fit("plain", **apart)
    scratch = tmp_path / "scratch"
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            fit("killed", scratch=scratch, **apart)
        os._exit(0)
    while not list(scratch.glob("checkpoints/ddp-*1?")):  # some steps after the first ten
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before it was killed"
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    time.sleep(3)  # the others see that it is gone
    shutil.rmtree(tmp_path / "killed")
    (last,) = scratch.glob("checkpoints/ddp-*")
    assert 10 <= int(last.name.rpartition("-")[2]) < 40
    again, same = fit("killed", scratch=scratch, **apart)
    assert curve_of(again) == [pytest.approx(row, abs=2e-6) for row in curve_of(plain)]
    assert same["loss"] == pytest.approx(result["loss"], abs=1e-6)
    assert difference(again, plain) < 1e-5


@pytest.mark.parametrize("options", [{"batch": 1, "steps": 52}, {"batch": 6, "accumulate": 2}], ids=str)
def test_devices_weigh_each_target_once(fit, options: dict[str, Any]) -> None:
    """Whatever rows they get, and if they get none: the losses are those of one device, to the last bits."""
    trainer = Supervised(**({"steps": 4, "validate_every": 2, "validation_rows": 7} | options))
    one, _ = fit("one", trainer=trainer)
    two, _ = fit("two", trainer=trainer, runtime=Runtime(devices=2, strategy="ddp"))
    assert curve_of(two) == [pytest.approx(row, rel=2e-5) for row in curve_of(one)]


class Opaque(Callback):
    """Its state is no plain value."""

    def state_dict(self) -> dict[str, Any]:
        return {"path": Fraction(1, 3)}


def test_a_state_that_needs_code_is_not_kept(fit, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No code of a file is run, so the training could not go on from it: one line says so, and it trains."""
    node = {"opaque": {"_target_": "test_training.Opaque"}}
    trainer = Supervised(steps=4, batch=4, checkpoint_minutes=OFTEN, callbacks=node)
    plain, _ = fit("plain", trainer=replace(trainer, callbacks={}))
    folder, _ = fit("a", trainer=trainer, scratch=tmp_path / "scratch")
    assert digest(folder) == digest(plain) and not list((tmp_path / "scratch/checkpoints").iterdir())
    assert (
        capfd.readouterr().err.count("no checkpoints are kept: the state of one of trainer.callbacks holds more") == 1
    )


def test_a_full_disk_ends_no_training(
    fit, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint before is kept, and no other is tried."""
    torch_save, saved = torch.save, []

    def full(state: Any, file: Any) -> None:
        saved.append(state["global_step"])
        if len(saved) == 3:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        torch_save(state, file)

    monkeypatch.setattr(torch, "save", full)
    fit("a", trainer=Supervised(steps=8, batch=4, checkpoint_minutes=OFTEN), scratch=tmp_path / "scratch")
    assert saved == [1, 2, 3] and capfd.readouterr().err.count("warning: no checkpoints are kept") == 1
    assert [p.name for p in (tmp_path / "scratch/checkpoints").iterdir()] == ["auto-000000002"]


def test_a_training_of_epochs_sees_every_record_so_often(fit, trained, tmp_path: Path) -> None:
    table = records.make_table({"text": ["aaa bbb"] * 50}, origin="real", generation=0, recipe="x")
    shard = tmp_path / "fifty.parquet"
    records.write(table, shard)
    rows = Rows([shard], [1.0], load_codec(trained.data / "tokenizer"), trained.context, 1)
    each = [len(list(rows.plan(n))) for n in range(3)]
    _, result = fit("a", trainer=Supervised(steps=2, epochs=3, batch=4), shards=[shard])
    assert result["steps"] == math.ceil(sum(each) / 4) > 2
    with pytest.raises(UserError, match=r"^epochs=3: must be null beside tokens=7"):
        Supervised(epochs=3, tokens=7)


def test_a_loss_that_is_no_number_is_seen_soon(fit) -> None:
    """Long before the next validation, and the round is what it was: the model of the last sound step."""
    seen: list[float] = []
    wild = Supervised(steps=400, batch=1, lr=1e9, validate_every=400)
    _, result = fit("a", trainer=wild, report=lambda done, total, unit: seen.append(done))
    assert result["diverged"] < LOOK and max(seen) == LOOK


def test_a_diverged_training_goes_back_to_its_checkpoint(fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is early enough: not from the beginning again."""
    monkeypatch.setattr(Checkpoints, "due", lambda self, step: bool(self.folder) and step == 2)
    wild = Supervised(steps=60, batch=1, callbacks={"breaks": {"_target_": "test_training.Breaks", "at": 6}})
    plain, result = fit("plain", trainer=wild)
    assert result["diverged"] == 7 and result["steps"] == 5
    seen: list[int] = []
    go_on = {"scratch": tmp_path / "scratch", "report": lambda done, total, unit: seen.append(done)}
    folder, again = fit("a", trainer=wild, **go_on)
    assert again == result and everything(folder) == everything(plain)
    assert [seen.count(step) for step in range(1, 8)] == [1, 1, 2, 2, 2, 1, 1]


def test_attention_within_a_record_is_an_option(fit, monkeypatch: pytest.MonkeyPatch) -> None:
    across, _ = fit("across")
    within, _ = fit("within", trainer=Supervised(steps=6, batch=4, document_mask=True))
    assert digest(across) != digest(within)
    monkeypatch.setattr("genloss.language.training.masks_documents", lambda model: False)
    with pytest.raises(UserError, match=r"^trainer\.document_mask=True: LlamaForCausalLM does not tell records"):
        fit("blind", trainer=Supervised(steps=6, batch=4, document_mask=True))


def test_processes_share_the_file_of_token_ids(fit, tmp_path: Path) -> None:
    """One writes it; both train."""
    trainer = Supervised(steps=2, batch=4)
    fit("two", trainer=trainer, scratch=tmp_path / "scratch", runtime=Runtime(devices=2, strategy="ddp"))
    assert {p.name for p in (tmp_path / "scratch/tokens").iterdir()} == {"real.tokens", "validation.tokens"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FSDP is for GPUs")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_sharded_gradients_are_clipped(fit, tmp_path: Path, precision: str) -> None:
    """By the norm of all shards; and a checkpoint of shards can be kept."""
    plain = Supervised(steps=6, batch=4, clip=0.1, precision=precision)
    own = {"runtime": Runtime(accelerator="gpu", strategy="fsdp"), "scratch": tmp_path / "scratch"}
    a, _ = fit("a", trainer=plain, runtime=Runtime(accelerator="gpu"))
    b, _ = fit("b", trainer=replace(plain, checkpoint_minutes=OFTEN), **own)
    loose, _ = fit("loose", trainer=replace(plain, clip=0.0), runtime=Runtime(accelerator="gpu"))
    far = 1e-4 if precision == "32-true" else 2e-2
    assert curve_of(b) == [pytest.approx(row, rel=far) for row in curve_of(a)]
    if precision == "32-true":  # else the rounding of the two orders of sums is as large
        assert difference(a, loose) > 10 * difference(a, b)
    (last,) = (tmp_path / "scratch/checkpoints").iterdir()
    assert last.name == "fsdp-000000005"


def test_a_curve_that_cannot_be_written_ends_no_training(fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "EVERY", 0.0)
    (tmp_path / "scratch" / curve.LIVE).mkdir(parents=True)  # in its place
    assert fit("a", scratch=tmp_path / "scratch")[1]["steps"] == 6
    shutil.rmtree(tmp_path / "scratch" / curve.LIVE)
    fit("b", scratch=tmp_path / "scratch", trainer=Supervised(steps=6, batch=4, validate_every=2))
    rows = json.loads((tmp_path / "scratch" / curve.LIVE).read_text())
    assert [step for step, name, _ in rows if name == "loss"] == [1, 2, 3, 4, 5, 6]
    assert [step for step, name, _ in rows if name == "validation_loss"] == [2, 4]
