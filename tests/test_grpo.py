"""GRPO: advantages and objective against hand computations, the loop on a real small policy, and what it refuses."""

from __future__ import annotations

import csv
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genloss.core import records
from genloss.core.capabilities import Responds, Verifies, able
from genloss.core.contracts import Decoding, Fit
from genloss.core.errors import UserError
from genloss.experiment import Experiment
from genloss.language.grpo import Grpo
from genloss.language.model import load
from genloss.language.reinforcement import advantages, distinct, logs, objective, tensors
from genloss.language.tokenizer import load_codec
from genloss.workflow.compose import compose
from support import killed, killer

EASY = [
    "domain=reasoning",
    "domain/tasks=arithmetic",
    "domain.tasks.arithmetic.operations=[1]",
    "domain.tasks.arithmetic.operators=+",
    "domain.tasks.arithmetic.operand=5",
    "domain.tasks.arithmetic.bound=9",
    "domain.examples=20",
    "size=20",
    "domain.test=8",
    "domain.validation=4",
    "domain.pool=3",
    "domain.context=16",
    "recipe=evol_instruct",
    "recipe.n=20",
    "curation=evol_reward",
    "mixing=accumulate",
    "trainer.start=previous",
    "rounds=1",
    "trainer=grpo",
    "trainer.steps=40",
    "trainer.batch=16",
    "trainer.reward.phi=1",
    "trainer.reward.psi=0",
    "trainer.reward.noise=0",
    "trainer.reward.factors=[outcome]",
    "trainer.updates=25",
    "trainer.step_size=2e-3",
    "tracking=none",
    "runtime.workers=1",
]


# -- the objective -----------------------------------------------------------------------------------------------------


def test_advantages_by_hand() -> None:
    r = np.array([[1.0, 0.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3], [0.0, 0.0, 0.0, 0.8]])
    a = advantages(r, "std")
    np.testing.assert_allclose(a[0], [1, -1, -1, 1], atol=1e-5)
    assert (a[1] == 0).all()
    np.testing.assert_allclose(a[2], [-1 / 3**0.5] * 3 + [3**0.5], atol=1e-5)
    np.testing.assert_allclose(advantages(r, "none")[2], [-0.2, -0.2, -0.2, 0.6])
    # a factor that a whole group shares, such as r_I, cancels unless it is 0
    np.testing.assert_allclose(advantages(0.5 * r, "std"), a, atol=1e-5)
    np.testing.assert_allclose(advantages(0.5 * r, "none"), 0.5 * advantages(r, "none"))


def test_objective_and_gradient_by_hand() -> None:
    """Two responses of two tokens and of one; every branch of the clip."""
    old = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.9]], dtype=torch.float64))
    new = torch.log(torch.tensor([[0.55, 0.75], [0.3, 0.9]], dtype=torch.float64)).requires_grad_()
    reference = torch.log(torch.tensor([[0.5, 0.6], [0.4, 0.1]], dtype=torch.float64))
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    a = torch.tensor([2.0, -1.0], dtype=torch.float64)
    loss, divergence = objective(new, old, reference, a, mask, clip_ratio=0.2, kl=0.1)
    # ratios 1.1 (inside), 1.5 (clipped at 1.2), 0.6 (clipped at 0.8, since the advantage is negative)
    gain = [(1.1 * 2 + 1.2 * 2) / 2, -0.8]
    x = np.array([0.5 / 0.55, 0.6 / 0.75, 0.4 / 0.3])
    k = x - np.log(x) - 1
    kl = [(k[0] + k[1]) / 2, k[2]]
    assert loss.item() == pytest.approx(-np.mean(gain) + 0.1 * np.mean(kl))
    assert divergence.item() == pytest.approx(np.mean(kl))
    loss.backward()
    # d gain / d log p = ratio * A where it is not clipped, else 0; d k / d log p = 1 - x
    wanted = [[-(1.1 * 2) / 2 / 2 + 0.1 * (1 - x[0]) / 2 / 2, 0.1 * (1 - x[1]) / 2 / 2], [0.1 * (1 - x[2]) / 2, 0.0]]
    assert new.grad is not None
    np.testing.assert_allclose(new.grad.numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize(("kl", "passes"), [(0.0, 1), (0.3, 1)])
def test_gradient_of_the_policy_is_that_of_reinforce(
    solver: tuple[Experiment, Path, Path], kl: float, passes: int
) -> None:
    """On the responses that it was sampled with, the gradient of the weights is -mean A grad log p / length, whatever ε
    and β."""
    _, data, start = solver
    codec = load_codec(data / "tokenizer")
    rows = codec.encode(["1+2:1+2=3", "1+2:1+2=4", "4+4:4+4=8"])
    a = torch.tensor([1.0, -1.0, 0.5])
    inputs, targets, mask = tensors(rows, [4, 4, 4], 16, codec)
    assert mask.sum(dim=1).tolist() == [len(r) - 4 + 1 for r in rows]  # the end is a token of the response
    model = load(start)
    now = logs(model, inputs, targets, 1.0)
    loss, divergence = objective(now, now.detach(), now.detach(), a, mask, 0.2, kl)
    assert float(divergence) == 0
    grads = torch.autograd.grad(loss, list(model.parameters()))
    plain: torch.Tensor = (
        -torch.stack(
            [a[i] * logs(model, inputs[i : i + 1], targets[i : i + 1], 1.0)[0][mask[i] > 0].mean() for i in range(3)]
        ).sum()
        / 3
    )
    for got, wanted in zip(grads, torch.autograd.grad(plain, list(model.parameters())), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-3)


# -- the loop on a real policy -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solver(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path, Path]:
    """(experiment, data, model): sums of two digits by a policy that is right sometimes; round 0 of trainer=grpo."""
    folder = tmp_path_factory.mktemp("grpo")
    x = Experiment(compose(EASY))
    x.domain.prepare(folder / "data")
    return x, folder / "data", fit(x, folder / "data", None, folder / "start")[0].out / "model"


def fit(x: Experiment, data: Path, start: Path | None, out: Path, **options: Any) -> tuple[Fit, dict]:
    out.mkdir()
    trainer = replace(able(x.trainer, Grpo), **options)
    job = Fit(x.model, trainer, data, [data / "train.parquet"], [1.0], start, 1, out, x.domain.config("train"))
    return job, job.trainer.train(job)


def reward(**options: object) -> dict[str, object]:
    return {"_target_": "genloss.systems.evol_instruct.reward.ResponseReward", **options}


def digest(out: Path) -> list[str]:
    return [hashlib.sha256((out / n).read_bytes()).hexdigest() for n in ("model/model.safetensors", "training.csv")]


def test_reward_rises_and_the_same_seed_gives_the_same_bytes(
    solver: tuple[Experiment, Path, Path], tmp_path: Path
) -> None:
    x, data, start = solver
    job, found = fit(x, data, start, tmp_path / "a")
    reward = rewards(job)
    assert len(reward) == 25 and 0.05 < np.mean(reward[:3]) < 0.8
    assert np.mean(reward[-5:]) > np.mean(reward[:5]) + 0.15
    assert found["reward_last"] > found["reward_first"]
    with (job.out / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"step", "loss", "lr", "validation_loss", "reward", "kl"}
    assert float(rows[0]["kl"]) == 0 < float(rows[-1]["kl"])
    fit(x, data, start, tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def rewards(job: Fit) -> list[float]:
    with (job.out / "training.csv").open() as file:
        return [float(row["reward"]) for row in csv.DictReader(file)]


def test_a_random_reward_teaches_nothing(solver: tuple[Experiment, Path, Path], tmp_path: Path) -> None:
    """The share of right answers, which the reward of the other test raises, does not rise."""
    x, data, start = solver
    after, _ = fit(x, data, start, tmp_path / "random", reward=reward(factors=["random"]))
    taught, _ = fit(x, data, start, tmp_path / "taught")
    table = records.read(data / "train.parquet")
    table = table.take(np.repeat(np.arange(len(table)), 20))

    def right(model: Path) -> float:
        backend = able(x.domain, Responds).backend(model, data, x.runtime)
        said = backend.respond(table.column("prompt").to_pylist(), Decoding(16, chunk=400), seed=7).texts
        answered = table.set_column(table.column_names.index("response"), "response", [said])
        return float(able(x.domain, Verifies).verify(answered).right.mean())

    before = right(start)  # of round 0, 40 steps
    assert right(taught.out / "model") > before + 0.15
    assert right(after.out / "model") < before + 0.1


def test_round_0_is_supervised_also_from_a_schooled_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLOSS_STORE", str(tmp_path / "store"))
    school = "{sums: {_target_: genloss.domains.reasoning.arithmetic.Arithmetic, operations: [1]}}"
    options = ["model=schooled", f"model.tasks={school}", "model.examples=16", "model.steps=2", "model.batch=8"]
    x = Experiment(compose([*EASY, *options, "trainer.steps=3", "trainer.updates=2"]))
    x.domain.prepare(tmp_path / "data")
    first, found = fit(x, tmp_path / "data", None, tmp_path / "first")
    assert found["steps"] == 3 and "reward_last" not in found
    _, found = fit(x, tmp_path / "data", first.out / "model", tmp_path / "second")
    assert found["steps"] == 2 and "reward_last" in found


def test_a_policy_that_diverges_is_kept(solver: tuple[Experiment, Path, Path], tmp_path: Path) -> None:
    """Up to the last step with numbers; a policy without any cannot be sampled from."""
    x, data, start = solver
    job, found = fit(x, data, start, tmp_path / "a", step_size=1e20, updates=4)
    assert found["diverged"] == found["steps"] + 1 and len(rewards(job)) == found["steps"]
    assert np.isfinite(found["loss"]) and np.isfinite(rewards(job)).all()
    assert all(bool(p.isfinite().all()) for p in load(job.out / "model").parameters())
    error = job.trainer.ended(found)
    assert error is not None and str(error).startswith("trainer.step_size=1e+20: the training diverged")
    assert replace(able(x.trainer, Grpo), diverged="go_on").ended(found) is None


def test_no_reward_no_change(solver: tuple[Experiment, Path, Path], tmp_path: Path) -> None:
    """Where every response has r = 0 there is no advantage, and where the policy is the reference there is no
    penalty."""
    x, data, start = solver
    nothing = reward(factors=["process"], phi=1.0, psi=0.0)
    table = records.read(data / "train.parquet")
    prompts = [f"{p[:-1]}?:" for p in table.column("prompt").to_pylist()]  # no expression: every step is wrong
    records.write(table.set_column(table.column_names.index("prompt"), "prompt", [prompts]), tmp_path / "bad.parquet")
    out = tmp_path / "fit"
    out.mkdir()
    trainer = replace(able(x.trainer, Grpo), reward=nothing, updates=5)
    job = Fit(x.model, trainer, data, [tmp_path / "bad.parquet"], [1.0], start, 1, out, x.domain.config("train"))
    found = job.trainer.train(job)
    assert found["reward_first"] == found["reward_last"] == 0
    before, after = (load(folder).state_dict() for folder in (start, out / "model"))
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_several_passes_and_the_penalty(solver: tuple[Experiment, Path, Path], tmp_path: Path) -> None:
    x, data, start = solver
    _, free = fit(x, data, start, tmp_path / "free", kl=0.0, passes=2, updates=15)
    _, held = fit(x, data, start, tmp_path / "held", kl=5.0, passes=2, updates=15)
    assert held["kl"] < free["kl"]


def test_problems_come_once_with_their_parents(solver: tuple[Experiment, Path, Path], tmp_path: Path) -> None:
    x, data, _ = solver
    table = records.read(data / "train.parquet", columns=["prompt"]).slice(0, 2)
    twice = records.concat([table, table]).append_column("evolved_from", [["1:", "2:", "3:", "4:"]])
    records.write(twice, tmp_path / "a.parquet")
    job = Fit(x.model, x.trainer, data, [tmp_path / "a.parquet", data / "train.parquet"], [1.0, 1.0], None, 0, tmp_path)
    found = distinct(job)
    first, second = table.column(0).to_pylist()
    assert len(found) == 20 and found[first] == "1:" and found[second] == "2:"
    assert list(found.values())[2:] == [None] * 18


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.group=1"], ["trainer.group=1", "at least 2"]),
        (["trainer.prompts=0"], ["trainer.prompts=0", "at least 1"]),
        (["trainer.kl=-1"], ["trainer.kl=-1", "at least 0"]),
        (["trainer.clip_ratio=0"], ["trainer.clip_ratio=0", "greater than 0"]),
        (["trainer.scale=var"], ["trainer.scale=var", "std"]),
        (["trainer.reward.factors=[result]"], ["trainer.reward.factors=result", "outcome"]),
        (["trainer.start=base"], ["trainer._target_=Grpo", "trainer.start=previous"]),
        (["trainer.reward._target_=genloss.domains.reasoning.solve.Solve"], ["trainer.reward._target_", "Reward"]),
        (["runtime.devices=2"], ["trainer._target_=Grpo", "one device"]),
        (["domain/tasks=gcd", "recipe=solve", "recipe.n=1", "curation=exact"], ["trainer.reward", "expressions"]),
    ],
)
def test_bad_input(overrides: list[str], words: list[str]) -> None:
    easy = [
        o
        for o in EASY
        if not (overrides[0].startswith("domain/tasks") and o.startswith(("domain.tasks", "recipe", "curation")))
    ]
    with pytest.raises(UserError) as error:
        Experiment(compose([*easy, *overrides]))
    for word in words:
        assert word in str(error.value)


def test_it_is_a_trainer_of_the_domain_alone() -> None:
    assert isinstance(Experiment(compose(EASY)).trainer, Grpo)
    with pytest.raises(
        UserError, match=r"trainer=Grpo: needs models that answer prompts.*; use domain=instruct, reasoning"
    ):
        Experiment(compose(["trainer=grpo", "trainer.start=previous", "domain=text"]))


def test_killed_after_any_step_it_goes_on_to_the_same_bytes(
    solver: tuple[Experiment, Path, Path], tmp_path: Path
) -> None:
    x, data, start = solver
    plain, result = fit(x, data, start, tmp_path / "plain", updates=6, checkpoint_minutes=0)
    trainer = replace(able(x.trainer, Grpo), updates=6, checkpoint_minutes=1e-9)
    out, scratch, step = tmp_path / "killed", tmp_path / "scratch", 1
    job = replace(plain, trainer=trainer, out=out, scratch=scratch)
    out.mkdir()
    kept: list[str] = []
    while killed(lambda: trainer.train(replace(job, report=killer(step)))):  # noqa: B023
        kept += [p.name for p in scratch.glob("checkpoints/grpo-*")]
        shutil.rmtree(out)  # as the store does
        out.mkdir()
        step += 1
    assert digest(out) == digest(plain.out) and kept == [f"grpo-{n:09d}" for n in range(1, 6)]
    shutil.rmtree(out)
    out.mkdir()
    assert trainer.train(job) == result
