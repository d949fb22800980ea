"""How a model is trained by gradient descent: the options, without the libraries that train (they load in seconds;
configs in milliseconds). The training itself is genloss.language.training.

    genloss run trainer.steps=600 trainer.batch=32
    genloss run '+trainer.logger={csv: {_target_: lightning.pytorch.loggers.CSVLogger}}'
    genloss run '+trainer.callbacks={mine: {_target_: mylab.callbacks.Mine, after: 100}}'
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from genloss.core.code import standing_for
from genloss.core.contracts import Experiment, Fit, Trainer
from genloss.core.errors import UserError, one_of, require
from genloss.core.machine import check_devices
from genloss.language.model import Pretrained

if TYPE_CHECKING:
    from genloss.language.training import CausalLM, Examples, Learner, PackedData

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")
DIVERGED = ("end", "go_on")
SCRATCH = 3e-3  # learning rates above this are for models that know nothing yet
BROUGHT = ("callbacks", "logger")  # fields that are nodes of the user's own Lightning classes


@dataclass
class Descent(Trainer):
    """AdamW (Loshchilov & Hutter 2019), linear warm-up, cosine decay, clipping: the options of every training by
    gradient descent, whatever it trains. The budget is in steps; it is the same for every arm, whatever the size of its
    training set. `epochs` is a budget too, and grows with the set.

    callbacks, logger: Lightning's or your own, by name, each a Hydra node with a `_target_`. They see `loss` at every
    step and `validation_loss` at every validation. What a ModelCheckpoint saves (which holds paths, so that its hash is
    that of one run alone) lies beside the model, in the folder of the round; what a logger without a `save_dir` writes,
    in logs/ROUND of the run directory, where no stage counts it among its files. Callbacks may change what is learned
    and are part of the arm's identity, with their code; loggers are not.
    """

    steps: int = 300
    epochs: int | None = None  # budget in passes over the training set; overrides steps
    batch: int = 16  # rows a step, over all devices
    lr: float = 8e-3
    warmup: float = 0.1  # share of the steps
    final_lr: float = 0.05  # share of lr at the end
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip: float = 1.0  # gradient norm
    precision: str = "32-true"
    accumulate: int = 1  # rows / accumulate are in memory at once
    threads: int = (
        1  # part of the identity: kernels differ between thread counts. Arms and chunks run in parallel instead
    )
    validate_every: int = 100  # steps
    validation_rows: int = 64
    callbacks: dict[str, Any] = field(default_factory=dict)  # name: {_target_: any lightning.pytorch.Callback, ...}
    logger: dict[str, Any] = field(default_factory=dict)  # name: {_target_: any lightning.pytorch.loggers.Logger, ...}
    diverged: str = "end"  # where the loss is no number any more. end: the arm ends with that round; go_on: it does not
    checkpoint_minutes: float = 10.0  # between two checkpoints, from which a killed training goes on; 0: none
    operational = ("logger", "diverged", "checkpoint_minutes")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("steps", "batch", "accumulate", "threads", "validate_every", "validation_rows"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.epochs is None or self.epochs >= 1, "epochs", self.epochs, "at least 1 pass")
        require(self.checkpoint_minutes >= 0, "checkpoint_minutes", self.checkpoint_minutes, "at least 0 (0: none)")
        require(0 <= self.warmup <= 1, "warmup", self.warmup, "a share of the steps in [0, 1]")
        require(0 <= self.final_lr <= 1, "final_lr", self.final_lr, "a share of lr in [0, 1]")
        for key in ("beta1", "beta2"):
            require(0 <= getattr(self, key) < 1, key, getattr(self, key), "in [0, 1)")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        require(self.clip >= 0, "clip", self.clip, "at least 0 (0: off)")
        divides = self.batch % self.accumulate == 0
        require(divides, "accumulate", self.accumulate, f"a divisor of batch={self.batch}")
        one_of("precision", self.precision, PRECISIONS)
        one_of("diverged", self.diverged, DIVERGED)
        for key in BROUGHT:
            for name, node in getattr(self, key).items():
                if not (isinstance(node, dict) and node.get("_target_")):
                    raise UserError(f"{key}.{name}", node, "needs a _target_: the class that is meant")

    def check(self, experiment: Experiment) -> None:
        for n, overrides in (experiment.cfg.get("schedule") or {}).items():
            start, changed = experiment.at_round(int(n)).trainer.start, (overrides or {}).get("model") or {}
            new = {"adapter"} if start == "stacked" else set()
            if start != "base" and set(changed) - new:
                kept = f"has no effect: with trainer.start={start} a round keeps the architecture of the model before"
                raise UserError(f"schedule.{n}.model", None, f"{kept}; leave it out, or set trainer.start=base")
        if self.callbacks or self.logger:  # Lightning takes seconds to load; only who brings something to it waits
            from genloss.language.brought import known

            known(self)

    def classes(self) -> tuple[type, ...]:
        return tuple(standing_for(target) for target in _targets(self.callbacks))

    def budget(self, context: int) -> int:
        """Steps of the optimiser, for rows of `context` tokens (0: they have none); `epochs` are known where there is a
        training set."""
        return self.steps

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at `step` (from 0) of `steps`, as a share of lr."""
        rise = max(1, round(self.warmup * steps))
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(1, steps - rise)
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def ready(self, experiment: Experiment) -> None:
        check_devices(experiment.runtime)

    def missed(self) -> str:
        return "trainer.logger writes nothing" if self.logger else ""

    # -- the training: imported when used. A subclass that trains otherwise overrides one of these ---------------------

    def train(self, fit: Fit) -> dict[str, Any]:
        """Train `fit.model`; write `model/` and `training.csv` to `fit.out`. Returns steps, what was seen, loss and
        parameters. Where the loss becomes no number, `diverged` is the step, and all else is that of the last step at
        which it was one."""
        from genloss.language.training import train

        return train(fit)

    def ended(self, result: Mapping[str, Any]) -> UserError | None:
        return None if self.diverged == "go_on" else self._diverged("lr", result)

    def _diverged(self, rate: str, result: Mapping[str, Any]) -> UserError | None:
        if "diverged" not in result:
            return None
        why = f"the training diverged: from step {result['diverged']} on its loss is no number"
        remedy = "lower it, or go on from the model before that step with trainer.diverged=go_on"
        return UserError(f"trainer.{rate}", getattr(self, rate), f"{why}; the round is kept; {remedy}")

    @abstractmethod
    def module(self, fit: Fit) -> Learner:
        """The LightningModule that is trained."""

    @abstractmethod
    def batches(self, fit: Fit) -> Examples:
        """The LightningDataModule that it is trained on."""


@dataclass
class Supervised(Descent):
    """Of causal language models: rows are of `domain.context` tokens. With `tokens` the budget is in tokens of context.

    document_mask: a record attends to itself alone, as if it had a row of its own (Zhao et al. 2024, arXiv 2402.13991,
    intra-document causal masking); its positions begin at 0. Without it records see those before them in their row.
    """

    tokens: int | None = None  # budget in tokens, padding included; overrides steps
    document_mask: bool = False  # whether attention stays within a record, where several share a row

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tokens is None or self.tokens >= 1, "tokens", self.tokens, "at least 1 token")
        one = self.tokens is None or self.epochs is None
        require(one, "epochs", self.epochs, f"null beside tokens={self.tokens}: a training has one budget")

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        if isinstance(experiment.model, Pretrained) and self.precision == "bf16-true":
            why = "keeps what is trained in half precision, where most steps are too small to change a weight"
            remedy = "use bf16-mixed, or 32-true, with which the base of an adapter is in model.dtype all the same"
            raise UserError("precision", self.precision, f"{why}; {remedy}")
        if isinstance(experiment.model, Pretrained) and self.lr > SCRATCH:
            _warn(f"trainer.lr={self.lr:g} is for models from scratch; a saved one forgets all (trainer=baize: 2e-4)")

    def budget(self, context: int) -> int:
        return self.steps if self.tokens is None else max(1, round(self.tokens / (self.batch * context)))

    def module(self, fit: Fit) -> CausalLM:
        from genloss.language.training import CausalLM

        return CausalLM(fit)

    def batches(self, fit: Fit) -> PackedData:
        from genloss.language.training import PackedData

        return PackedData(fit)


@cache
def _warn(what: str) -> None:
    """Once, for all arms and rounds."""
    print(f"genloss: warning: {what}", file=sys.stderr)


def _targets(node: Any) -> Iterator[str]:
    """What Hydra makes of a node: an argument may have a `_target_` too."""
    if isinstance(node, Mapping):
        yield from [node["_target_"]] if "_target_" in node else []
        node = list(node.values())
    for each in node if isinstance(node, list) else []:
        yield from _targets(each)
