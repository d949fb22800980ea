"""The steps of GRPO (genloss.language.grpo has its options, and what a reward is).

    Reinforcement(trainer, fit).run()

The model seen so far is the reference. A step's problems, responses and verdicts have random streams of their own, so
that the same seed gives the same bytes, also after a kill: it goes on from the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from genloss.core import records
from genloss.core.contracts import Decoding, Fit
from genloss.core.seeds import generator, seed_of, uniforms
from genloss.language.checkpoint import STATE, Checkpoints
from genloss.language.curve import Live, write_curve
from genloss.language.drawing import NoProbabilities
from genloss.language.model import TextModel, device_of, load
from genloss.language.sampling import sample_chunk
from genloss.language.tokenizer import Codec, load_codec

# -- the objective -----------------------------------------------------------------------------------------------------

if TYPE_CHECKING:
    from genloss.language.grpo import Grpo


def advantages(reward: np.ndarray, scale: str) -> np.ndarray:
    """A of rewards [problems, group]: above the mean of the group, in its standard deviations if scale=std. 0 where all
    are equal."""
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
    """(loss, divergence) of log probabilities [rows, tokens] of the chosen tokens under the policy, the policy that
    sampled, and the reference; advantage [rows]; mask [rows, tokens]: 1 for tokens of the response. Equation 3 of the
    paper with its unbiased estimate of the divergence (equation 4), each response averaged over its own tokens."""
    ratio = torch.exp(new - old)
    a = advantage[:, None]
    gain = torch.minimum(ratio * a, ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * a)
    gap = reference - new
    divergence = torch.exp(gap) - gap - 1
    length = mask.sum(dim=1).clamp(min=1)
    mean = (divergence * mask).sum(dim=1) / length
    loss = -((gain * mask).sum(dim=1) / length) + kl * mean
    return loss.mean(), mean.mean().detach()


def tensors(
    rows: list[list[int]], given: list[int], longest: int, codec: Codec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(inputs, targets, mask) [rows, tokens] of records of token ids whose first `given` are the prompt; the end is a
    token of the response, unless it was cut off at `longest`."""
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


# -- the problems ------------------------------------------------------------------------------------------------------


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


# -- the loop ----------------------------------------------------------------------------------------------------------


class Responses(NamedTuple):
    rows: list[list[int]]  # token ids of each, its prompt included
    given: list[int]  # how many of them are the prompt
    texts: list[str]  # without the prompt


class Reinforcement:
    """One training: the policy, the reference that it began as, and the problems that wait for their turn."""

    def __init__(self, trainer: Grpo, fit: Fit):
        assert fit.start is not None
        self.trainer, self.fit = trainer, fit
        torch.set_num_threads(trainer.threads)
        self.device = device_of(fit.runtime)
        torch.use_deterministic_algorithms(self.device == "cpu")
        self.codec, self.context = load_codec(fit.data / "tokenizer"), int(fit.options["context"])
        self.parents = distinct(fit)
        self.problems = list(self.parents)
        self.ids = self.codec.encode(self.problems)
        self.queue: list[int] = []  # positions of problems
        self.tokens = 0  # sampled so far
        assert isinstance(fit.model, TextModel)
        self.model = fit.model
        self.policy, self.reference = (m.to(self.device) for m in (self.model.initial(fit).eval(), load(fit.start)))
        for network in (self.policy, self.reference):
            network.set_attn_implementation("genloss_one_query")
        betas = (trainer.beta1, trainer.beta2)
        self.adam = torch.optim.Adam(self.policy.parameters(), lr=trainer.step_size, betas=betas)
        self.curve = torch.zeros(trainer.updates, 3, dtype=torch.float64)  # loss, reward, divergence
        self.earlier: dict[str, torch.Tensor] | None = None  # weights before the last step
        self.live = Live(fit.scratch, trainer.updates)
        self.checkpoints = Checkpoints(fit.scratch, fit.out, trainer.checkpoint_minutes, "grpo")

    def run(self) -> dict[str, Any]:
        """Write `model/` and `training.csv` (with reward and kl) to `fit.out`; returns means over the first and last
        tenth of steps. A step whose loss, samples or weights are no numbers is the last, `diverged`, and the model is
        that of the last step before."""
        updates = self.trainer.updates
        lost = 0
        for step in range(self.resume(), updates):
            before = {name: value.clone() for name, value in self.policy.state_dict().items()}
            try:
                self.curve[step] = torch.tensor(self.step(step), dtype=torch.float64)
                good = bool(self.curve[step].isfinite().all())
            except NoProbabilities:
                good = False
            if not (good and all(bool(p.detach().isfinite().all()) for p in self.policy.parameters())):
                # back to the weights of the last step whose numbers were some: of this one, or of the one before
                self.policy.load_state_dict(before if good or self.earlier is None else self.earlier)
                lost = step + 1
                updates = step
                break
            self.earlier = before
            self.fit.report(step + 1, updates, "updates")
            self.live.write(partial(self.shown, step + 1))
            if step + 1 < updates and self.checkpoints.due(step + 1):
                self.checkpoints.keep(step + 1, partial(self.keep, step + 1))
        curve = self.curve[:updates].numpy()
        self.model.save(self.policy.cpu(), self.fit)
        rate = self.trainer.step_size
        rows = [(i + 1, loss, rate, "", reward, kl) for i, (loss, reward, kl) in enumerate(curve.tolist())]
        write_curve(self.fit.out, ("step", "loss", "lr", "validation_loss", "reward", "kl"), rows)
        share = max(1, updates // 10)
        measured = {
            "loss": curve[-1:, 0],
            "reward_first": curve[:share, 1],
            "reward_last": curve[-share:, 1],
            "kl": curve[-share:, 2],
        }
        return {
            "steps": updates,
            "tokens": self.tokens,
            **{name: float(values.mean()) for name, values in measured.items() if len(values)},
            "parameters": sum(p.numel() for p in self.policy.parameters()),
            **({"diverged": lost} if lost else {}),
        }

    def shown(self, done: int, stride: int) -> Iterator[tuple[int, str, float]]:
        """What of the curve is looked at while it grows."""
        for step in range(0, done, stride):
            loss, reward, kl = self.curve[step].tolist()
            named = {"loss": loss, "lr": self.trainer.step_size, "reward": reward, "kl": kl}
            yield from ((step + 1, name, number) for name, number in named.items())

    def keep(self, done: int, path: Path) -> None:
        """Write everything that the next step depends on; what it draws follows from its number."""
        state = {
            "done": done,
            "tokens": self.tokens,
            "queue": self.queue,
            "policy": self.policy.state_dict(),
            "adam": self.adam.state_dict(),
            "earlier": self.earlier,
            "curve": self.curve[:done],
        }
        try:
            torch.save(state, path)
        except (OSError, RuntimeError):  # torch's, of what it could not write; who looks for the file says so
            path.unlink(missing_ok=True)

    def resume(self) -> int:
        """Go on from the last checkpoint; returns the steps that were done then."""
        self.checkpoints.restore()
        last = self.checkpoints.last()
        if last is None:
            return 0
        state = torch.load(last / STATE, map_location=self.device, weights_only=True)
        self.tokens, self.queue, self.earlier = state["tokens"], state["queue"], state["earlier"]
        self.policy.load_state_dict(state["policy"])
        self.adam.load_state_dict(state["adam"])
        self.curve[: state["done"]] = state["curve"].cpu()
        return int(state["done"])

    def step(self, number: int) -> tuple[float, float, float]:
        """(loss, mean reward, divergence) of one step."""
        asked = self.ask(number)
        said = self.respond(asked, number)
        r = self.earned(asked, said, number)
        grouped = r.reshape(self.trainer.prompts, self.trainer.group)
        a = torch.from_numpy(advantages(grouped, self.trainer.scale).ravel()).float()
        loss, divergence = self.improve(said, a.to(self.device))
        return loss, float(r.mean()), divergence

    def ask(self, step: int) -> list[int]:
        """Positions of the next problems, each `group` times; every problem comes once before any comes again."""
        n = self.trainer.prompts
        while len(self.queue) < n:
            order = generator(self.fit.seed, "problems", self.tokens, step).permutation(len(self.problems))
            self.queue += order.tolist()
        chosen, self.queue = self.queue[:n], self.queue[n:]
        return [i for i in chosen for _ in range(self.trainer.group)]

    def respond(self, asked: Sequence[int], step: int) -> Responses:
        """The policy's own responses."""
        n, longest = len(asked), self.context
        prompts = [self.ids[i][: longest - 1] for i in asked]
        u = torch.from_numpy(uniforms(seed_of(self.fit.seed, "responses"), step, n, longest))
        decoding = Decoding(longest, temperature=self.trainer.temperature, chunk=n)
        rows, count = sample_chunk(self.policy, self.codec, u, prompts, decoding)
        self.tokens += count
        given = [len(p) for p in prompts]
        return Responses(rows, given, self.codec.decode([row[k:] for row, k in zip(rows, given, strict=True)]))

    def earned(self, asked: Sequence[int], said: Responses, step: int) -> np.ndarray:
        """r [n] of the responses."""
        problems = [self.problems[i] for i in asked]
        parents = [self.parents[text] for text in problems]
        seed = seed_of(self.fit.seed, "reward", step)
        return self.trainer.reward_function.of(problems, said.texts, seed, parents, self.fit.runtime)

    def improve(self, said: Responses, advantage: torch.Tensor) -> tuple[float, float]:
        """(loss, divergence) of the last of `passes` gradient steps on the same responses."""
        options = self.trainer
        batch = tensors(said.rows, said.given, self.context, self.codec)
        inputs, targets, mask = (part.to(self.device) for part in batch)
        with torch.no_grad():
            old = logs(self.policy, inputs, targets, options.temperature)
            base = logs(self.reference, inputs, targets, options.temperature)
        for _ in range(options.passes):
            new = logs(self.policy, inputs, targets, options.temperature)
            loss, divergence = objective(new, old, base, advantage, mask, options.clip_ratio, options.kl)
            self.adam.zero_grad(set_to_none=True)
            loss.backward()
            if options.clip:
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), options.clip)
            self.adam.step()
        return float(loss.detach()), float(divergence)
