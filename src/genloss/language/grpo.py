"""GRPO: a small policy reinforced by a reward, group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300, section 4).

    genloss run ... recipe=evol_instruct trainer=grpo mixing.init=warm
    genloss run -m ... trainer=grpo mixing.init=warm 'trainer.reward.factors=[outcome],[instruction,process],[random]'

    step: `prompts` problems of the training set -> `group` responses each -> r -> A = (r - mean) / std of the group
          -> clipped policy gradient, with a penalty for leaving the model that the round began with

Only the problems of the training set are used; their responses are the policy's own, made anew at each step. Round 0 has no model to
start from: it is trained on worked solutions, by the options of Supervised. WizardMath (arXiv 2308.09583) uses PPO with r = r_I * r_A;
GRPO needs no model of the value. What this changes: within a group all responses share r_I, so that it cancels in A. With scale=std it
acts only where it is 0; with scale=none (Liu et al. 2025, arXiv 2503.20783) it weights its problem.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from genloss.core import records
from genloss.core.contracts import Fit
from genloss.core.errors import UserError, one_of, require
from genloss.core.hashes import code_hash
from genloss.core.seeds import generator, seed_of, uniforms
from genloss.domains.reasoning.solve import decoding
from genloss.language.tokenizer import Codec, load_codec
from genloss.language.trainer import Supervised
from genloss.language.training import train as train_supervised
from genloss.systems.evol_instruct.reward import Reward, needs_expressions

if TYPE_CHECKING:
    import torch

    from genloss.experiment import Experiment

SCALE = ("std", "none")


@dataclass
class Grpo(Supervised):
    """`steps` and the other options of Supervised are those of round 0; `updates` and what follows those of the rounds after it.

    A step sees prompts * group responses: with updates = steps and prompts * group = batch it is as large as a supervised one.
    Adam without weight decay: the penalty holds the policy where it came from.
    """

    updates: int = 100  # steps of reinforcement
    prompts: int = 8  # problems a step
    group: int = 8  # responses to each
    passes: int = 1  # gradient steps on the same responses
    step_size: float = 1.0e-4  # learning rate of reinforcement, constant
    clip_ratio: float = 0.2  # ε: beyond 1 ± ε the ratio of new to old probability earns nothing
    kl: float = 0.04  # β: weight of the divergence from the model that the round began with
    scale: str = "std"  # std: A has unit variance in its group; none: it has not
    temperature: float = 1.0  # of the responses
    reward: Reward = field(default_factory=Reward)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("updates", "prompts", "passes"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.group >= 2, "group", self.group, "at least 2: a response is compared with the others of its group")
        for key in ("step_size", "clip_ratio", "temperature"):
            require(getattr(self, key) > 0, key, getattr(self, key), "greater than 0")
        require(self.kl >= 0, "kl", self.kl, "at least 0 (0: off)")
        one_of("scale", self.scale, SCALE)

    def check(self, experiment: Experiment) -> None:
        needs_expressions(experiment, "reward")
        try:
            self.reward.check_critic()
        except UserError as error:
            raise error.under("reward") from None
        if experiment.mixing.init != "warm":
            raise UserError(
                "_target_",
                type(self).__name__,
                f"continues from the model before: set mixing.init=warm (it is {experiment.mixing.init})",
            )
        one = experiment.runtime.devices == 1 and experiment.runtime.num_nodes == 1
        if not one:
            raise UserError("_target_", type(self).__name__, "runs on one device; set runtime.devices=1")

    def fingerprint(self) -> str:
        modules = (
            "genloss.systems.evol_instruct.reward",
            "genloss.systems.evol_instruct.recipe",
            "genloss.domains.reasoning.arithmetic",
            "genloss.language.sampling",
            "genloss.language.decode",
            "genloss.language.tokenizer",
        )
        return "".join(code_hash(m) for m in modules) + self.reward.fingerprint()

    def train(self, fit: Fit) -> dict[str, Any]:
        base = getattr(fit.model, "base", None)  # model=schooled begins round 0 with it
        first = fit.start is None or (base is not None and fit.start == base(replace(fit, start=None)))
        return train_supervised(fit) if first else reinforce(self, fit)


# -- the objective -----------------------------------------------------------------------------------------------------------


def advantages(reward: np.ndarray, scale: str) -> np.ndarray:
    """A of rewards [problems, group]: above the mean of the group, in its standard deviations if scale=std. 0 where all are equal."""
    centred = reward - reward.mean(axis=1, keepdims=True)
    # a mean of equal numbers need not be that number
    centred = np.where(np.ptp(reward, axis=1, keepdims=True) == 0, 0.0, centred)
    if scale == "none":
        return centred
    return centred / (reward.std(axis=1, keepdims=True) + 1e-6)


def objective(
    new: torch.Tensor,
    old: torch.Tensor,
    reference: torch.Tensor,
    advantage: torch.Tensor,
    mask: torch.Tensor,
    clip_ratio: float,
    kl: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, divergence) of log probabilities [rows, tokens] of the chosen tokens under the policy, the policy that sampled, and the
    reference; advantage [rows]; mask [rows, tokens]: 1 for tokens of the response. Equation 3 of the paper with its unbiased
    estimate of the divergence (equation 4), each response averaged over its own tokens."""
    import torch

    ratio = torch.exp(new - old)
    a = advantage[:, None]
    gain = torch.minimum(ratio * a, ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * a)
    gap = reference - new
    divergence = torch.exp(gap) - gap - 1
    length = mask.sum(dim=1).clamp(min=1)
    mean = (divergence * mask).sum(dim=1) / length
    loss = -((gain * mask).sum(dim=1) / length) + kl * mean
    return loss.mean(), mean.mean().detach()


# -- the loop ----------------------------------------------------------------------------------------------------------------


def tensors(
    rows: list[list[int]], given: list[int], longest: int, codec: Codec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(inputs, targets, mask) [rows, tokens] of records of token ids whose first `given` are the prompt; the end is a token of the
    response, unless it was cut off at `longest`."""
    import torch

    sequences = [[codec.begin, *ids, *([codec.end] if len(ids) < longest else [])] for ids in rows]
    width = max(len(s) for s in sequences) - 1
    inputs = torch.full((len(rows), width), codec.end, dtype=torch.long)
    targets = torch.full((len(rows), width), codec.end, dtype=torch.long)
    mask = torch.zeros(len(rows), width)
    for i, (sequence, first) in enumerate(zip(sequences, given, strict=True)):
        n = len(sequence) - 1
        inputs[i, :n] = torch.tensor(sequence[:-1])
        targets[i, :n] = torch.tensor(sequence[1:])
        mask[i, first:n] = 1.0
    return inputs, targets, mask


def logs(model: Any, inputs: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log probabilities [rows, tokens] of the targets."""
    logits = model(input_ids=inputs, use_cache=False).logits.float() / temperature
    return logits.log_softmax(dim=-1).gather(-1, targets[..., None])[..., 0]


def reinforce(trainer: Grpo, fit: Fit) -> dict[str, Any]:
    """Train the model at `fit.start` further; write `model/` and `training.csv` (with reward and kl) to `fit.out`. The model seen so
    far is the reference; a step's problems, responses and verdicts have streams of their own, so the same seed gives the same bytes."""
    import torch

    from genloss.language.model import device_of, load
    from genloss.language.sampling import sample_chunk

    assert fit.start is not None
    torch.set_num_threads(trainer.threads)
    device = device_of(fit.runtime)
    torch.use_deterministic_algorithms(device == "cpu")
    codec, context = load_codec(fit.data / "tokenizer"), fit.options["context"]
    problems = distinct(fit)
    ids = codec.encode(list(problems))
    texts = list(problems)
    model, reference = (load(fit.start).to(device) for _ in range(2))
    for network in (model, reference):
        network.set_attn_implementation("genloss_one_query")
    adam = torch.optim.Adam(model.parameters(), lr=trainer.step_size, betas=(trainer.beta1, trainer.beta2))
    rows = trainer.prompts * trainer.group
    options = decoding(rows, context, rows, temperature=trainer.temperature)
    curve = np.zeros((trainer.updates, 3))  # loss, reward, divergence
    tokens = 0
    queue: list[int] = []
    for step in range(trainer.updates):
        while len(queue) < trainer.prompts:  # every problem once before any comes again
            queue += generator(fit.seed, "problems", tokens, step).permutation(len(texts)).tolist()
        chosen, queue = queue[: trainer.prompts], queue[trainer.prompts :]
        asked = [i for i in chosen for _ in range(trainer.group)]
        given = [ids[i][: context - 1] for i in asked]
        u = torch.from_numpy(uniforms(seed_of(fit.seed, "responses"), step, rows, context))
        made, count = sample_chunk(model, codec, u, given, options)
        said = codec.decode([row[len(p) :] for row, p in zip(made, given, strict=True)])
        asked_texts = [texts[i] for i in asked]
        parents = [problems[text] for text in asked_texts]
        r = trainer.reward.of(asked_texts, said, seed_of(fit.seed, "reward", step), parents, fit.runtime)
        a = torch.from_numpy(advantages(r.reshape(trainer.prompts, trainer.group), trainer.scale).ravel()).float()
        batch = tensors(made, [len(p) for p in given], context, codec)
        inputs, targets, mask = (part.to(device) for part in batch)
        with torch.no_grad():
            old = logs(model, inputs, targets, trainer.temperature)
            base = logs(reference, inputs, targets, trainer.temperature)
        for _ in range(trainer.passes):
            new = logs(model, inputs, targets, trainer.temperature)
            loss, divergence = objective(new, old, base, a.to(device), mask, trainer.clip_ratio, trainer.kl)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            if trainer.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.clip)
            adam.step()
        curve[step] = float(loss.detach()), r.mean(), float(divergence)
        tokens += count
        fit.report(step + 1, trainer.updates, "updates")
    model.generation_config.do_sample = True
    model.cpu().save_pretrained(fit.out / "model")
    with (fit.out / "training.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["step", "loss", "lr", "validation_loss", "reward", "kl"])
        for number, (lost, won, left) in enumerate(curve.tolist()):
            table.writerow([number + 1, f"{lost:.6g}", f"{trainer.step_size:.6g}", "", f"{won:.6g}", f"{left:.6g}"])
    share = max(1, trainer.updates // 10)
    return {
        "steps": trainer.updates,
        "tokens": tokens,
        "loss": float(curve[-1, 0]),
        "reward_first": float(curve[:share, 1].mean()),
        "reward_last": float(curve[-share:, 1].mean()),
        "kl": float(curve[-share:, 2].mean()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def distinct(fit: Fit) -> dict[str, str | None]:
    """The problems of the training set, each once, with the text that it evolved from (None: it is a real one)."""
    found: dict[str, str | None] = {}
    for shard in fit.shards:
        table = records.read(shard)
        known = "evolved_from" in table.column_names
        parents = table.column("evolved_from").to_pylist() if known else [None] * len(table)
        for text, parent in zip(table.column("prompt").to_pylist(), parents, strict=True):
            found.setdefault(text, parent)
    return found
