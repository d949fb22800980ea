"""Training: a LightningModule with a fixed budget, bit-reproducible on one machine type.

    genloss run trainer.steps=600 trainer.batch=32
    genloss run trainer.tokens=10_000_000 runtime.accelerator=gpu runtime.devices=4 runtime.strategy=fsdp

With one device it runs in this process. With several, Lightning starts a process a device by running this module again:

    python -m genloss.language.training JOB.json

A training that is killed goes on from its last checkpoint, to the same bytes (genloss.language.checkpoint); what there
is of its curve stands in live.json of its scratch folder while it runs.

Everything is a class that a subclass can change, and the trainer (genloss.language.trainer) says which classes are
used:

    class Smoothed(CausalLM):                             # mylab/training.py
        def nats(self, logits, targets, reduction):
            return 0.9 * super().nats(logits, targets, reduction) + ...

    @dataclass                                            # mylab/trainer.py: without torch, so that configs are quick
    class SmoothedTrainer(Supervised):
        def module(self, fit):
            from mylab.training import Smoothed

            return Smoothed(fit)

    _target_: mylab.trainer.SmoothedTrainer               # conf/trainer/smoothed.yaml; its other keys are the fields
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import random
import subprocess
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset

from genloss.core.contracts import Fit, Model, Runtime, Trainer
from genloss.core.errors import UserError
from genloss.core.machine import end_with, memory
from genloss.core.places import settle
from genloss.core.plugin import build
from genloss.language.brought import brought, in_one_line
from genloss.language.chat import ASSISTANT
from genloss.language.checkpoint import STATE, Checkpoints
from genloss.language.curve import Live, write_curve
from genloss.language.model import TextModel, device_of
from genloss.language.packing import IGNORE, Rows
from genloss.language.tokenizer import load_codec

if TYPE_CHECKING:
    from genloss.language.trainer import Descent, Supervised

PARENT = "GENLOSS_PARENT"  # variable: which process has started one that trains
# Variables by which a cluster tells processes who they are: of this process, and not of those that it starts.
RANKS = ("RANK", "LOCAL_RANK", "GROUP_", "NODE_", "WORLD_SIZE", "MASTER_", "SLURM_", "TORCHELASTIC_", "JSM_", "LSB_")

LOOK = 50  # steps from one look whether the loss is a number to the next: on an accelerator it waits for all of them


class Batch(NamedTuple):
    """Rows that are in memory at once, those of this process: [rows, context] each."""

    inputs: torch.Tensor
    targets: torch.Tensor  # IGNORE where there is none
    weights: torch.Tensor
    positions: torch.Tensor  # of a token in its record
    whole: torch.Tensor  # targets of the whole step, over all processes and accumulated batches


def train(fit: Fit) -> dict[str, Any]:
    """Train one model; write `model/` and `training.csv` to `fit.out`. Returns the steps that were taken, the tokens of
    context that they saw, the loss of the last one and the number of parameters; `diverged`, as Supervised.train says.
    UserError if a process of several devices fails, or if their training diverges."""
    fit = dataclasses.replace(fit, start=fit.start or fit.model.base(fit))
    options = options_of(fit)
    if options.epochs:
        steps = max(1, math.ceil(options.batches(fit).rows_in(options.epochs) / options.batch))
        fit = dataclasses.replace(fit, trainer=dataclasses.replace(options, epochs=None, steps=steps))
    checkpoints(fit).restore()
    return train_here(fit) if alone(fit.runtime) else train_apart(fit)


def alone(runtime: Runtime) -> bool:
    """Whether this process trains by itself."""
    return runtime.devices == 1 and runtime.num_nodes == 1 and runtime.strategy == "auto"


# -- what is trained ---------------------------------------------------------------------------------------------------


class Learner(lightning.LightningModule, ABC):
    """What every training by gradient descent has: the curve, validations, checkpoints inside of it, AdamW and the
    schedule of `fit.trainer`. A subclass makes `model` and says what its loss is (`loss`, `held_out`) and how it is
    saved (`write_model`)."""

    model: Any  # a torch module, in training mode

    def __init__(self, fit: Fit):
        super().__init__()
        self.fit = fit
        self.options = options_of(fit)
        self.steps = steps_of(fit)
        self.weighted = any(w != 1.0 for w in fit.weights)
        self.listened = bool(self.options.callbacks or self.options.logger)
        # one tensor from the start: a kept scalar a step would pin the heap between the blocks of every step
        self.curve = torch.zeros(self.steps)  # loss of every step
        self.validation: dict[int, float] = {}  # steps taken: mean loss in nats
        self._sums: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._draws: dict[str, Any] | None = None  # states of random generators to go on with
        self._frozen: set[str] = set()  # names of what is left out of a checkpoint that is being written
        self._looked = 0  # steps whose losses are those of all processes
        self.live = Live(fit.scratch, self.steps)
        self.checkpoints = Checkpoints(None, fit.out, 0)

    # -- what a subclass says ------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, batch: Any) -> torch.Tensor:
        """The batch's part of the step's mean loss. Lightning takes the mean over processes and accumulated batches."""

    @abstractmethod
    def held_out(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(total loss, how many numbers it is the sum of) of a batch of real data that nothing is trained on."""

    @abstractmethod
    def write_model(self, state: dict[str, Any]) -> None:
        """Write `model/` of `fit.out`; state: what Lightning holds of this module."""

    @abstractmethod
    def seen(self, steps: int) -> dict[str, int]:
        """How much was seen in so many steps, for the results of the round."""

    def learned(self) -> Iterator[torch.nn.Parameter]:
        """What the optimiser changes."""
        return self.parameters()

    def memory(self, rows: int) -> tuple[int, str]:
        """Bytes that a batch of so many rows takes at least, and what takes them."""
        return 0, ""

    def left_out(self) -> set[str]:
        """Names of the weights that no checkpoint needs, since they are what the training began with."""
        return {name for name, parameter in self.named_parameters() if not parameter.requires_grad}

    # -- steps ---------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self.loss(batch)
        if self.options.accumulate == 1:
            self.curve[self.global_step] = loss.detach()
        else:
            self.curve[self.global_step] += loss.detach() / self.options.accumulate
        if self.listened:  # a call of `log` costs a tenth of a millisecond
            self.log("loss", loss)
        return loss

    def on_fit_start(self) -> None:
        self.curve = self.curve.to(self.device)  # or every step would wait for the accelerator

    def on_train_start(self) -> None:
        if self._draws is not None:
            draw_on(self._draws)

    def on_train_batch_end(self, outputs: Any, batch: Batch, index: int) -> None:
        self.fit.report(self.global_step, self.steps, "steps")
        if (index + 1) % self.options.accumulate:
            return
        step = self.global_step
        if step % LOOK == 0:
            self.look(step)
        if self.trainer.is_global_zero:
            self.live.write(self.shown)
        if (index + 1) % cast(int, self.trainer.val_check_batch):  # else after the validation
            self.keep()

    def validation_step(self, batch: Any, index: int) -> None:
        self._sums.append(self.held_out(batch))

    def on_validation_epoch_end(self) -> None:
        total, count = (self.over_all(torch.stack(part).sum(), "sum") for part in zip(*self._sums, strict=True))
        self._sums.clear()
        self.validation[self.global_step] = float(total / count)
        if lost_at(self, self.global_step):
            self.trainer.should_stop = True
        if self.listened:
            self.log("validation_loss", total / count)

    def on_validation_end(self) -> None:
        self.keep()

    def look(self, step: int) -> None:
        """In all processes: make the losses since the last look those of all rows, and end the training if that of the
        last step was no number."""
        if self.trainer.world_size > 1:
            since = self.curve[step - LOOK : step]
            since.copy_(self.over_all(since.clone(), "mean"))
        self._looked = step
        if self.lost(step):
            self.trainer.should_stop = True

    def lost(self, step: int) -> bool:
        """Whether the loss of a step was no number, in one of the processes."""
        return self.trainer.strategy.reduce_boolean_decision(not bool(self.curve[step - 1].isfinite()), all=False)

    def over_all(self, value: torch.Tensor, how: str) -> torch.Tensor:
        """The sum, mean or max of a value of each process."""
        return cast(torch.Tensor, self.trainer.strategy.reduce(value, reduce_op=how))

    def points(self, done: int, stride: int = 1) -> Iterator[tuple[int, float, float]]:
        """(step, loss, learning rate) of every so many of the first `done` steps."""
        for i, loss in enumerate(self.curve[:done:stride].tolist()):
            yield i * stride + 1, loss, self.options.rate(i * stride, self.steps) * self.options.lr

    def shown(self, stride: int) -> Iterator[tuple[int, str, float]]:
        """What of the curve is shown while it grows; of several processes, what they have put together."""
        done = self.global_step if self.trainer.world_size == 1 else self._looked
        for step, loss, rate in self.points(done, stride):
            yield from ((step, "loss", loss), (step, "lr", rate))
        yield from ((step, "validation_loss", loss) for step, loss in self.validation.items())

    # -- going on after a kill -----------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Keep a checkpoint, if it is time for one and something is left to train."""
        step = self.global_step
        if step < self.steps and not self.trainer.should_stop and self.checkpoints.due(step):
            if self.lost(step):
                self.trainer.should_stop = True
            else:
                self.checkpoints.keep(step, self.save)

    def save(self, path: Path) -> None:
        """A checkpoint of Lightning's without what is not trained, such as the base of an adapter."""
        self._frozen = self.left_out()
        self.trainer.save_checkpoint(path)
        self._frozen = set()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in self._frozen}
        draws = [drawn()]
        if self.trainer.world_size > 1:
            draws = [{}] * self.trainer.world_size
            torch.distributed.all_gather_object(draws, drawn())
        curve = self.over_all(self.curve[: self.global_step].clone(), "mean").cpu()
        whole, validation = not self._frozen, dict(self.validation)
        checkpoint["genloss"] = {"curve": curve, "validation": validation, "draws": draws, "whole": whole}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = checkpoint["genloss"]
        self.strict_loading = own["whole"]
        self._looked = len(own["curve"])
        self.curve[: self._looked] = own["curve"]
        self.validation = dict(own["validation"])
        self._draws = own["draws"][min(self.trainer.global_rank, len(own["draws"]) - 1)]

    # -- the optimiser -------------------------------------------------------------------------------------------------

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if isinstance(self.trainer.strategy, FSDPStrategy) and gradient_clip_val:
            # the norm of gradients in shards is known to their owner alone; Lightning refuses
            cast(Any, self.trainer.strategy.model).clip_grad_norm_(gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        options = self.options
        optimizer = torch.optim.AdamW(
            self.learned(),
            lr=options.lr,
            betas=(options.beta1, options.beta2),
            weight_decay=options.weight_decay,
            fused=not options.precision.endswith("mixed"),  # the fused step unscales by itself, which forbids clipping
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: options.rate(step, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class CausalLM(Learner):
    """Next-token prediction by `fit.model`, or by the model at `fit.start`: mean loss in nats over the targets of a
    step, each weighted by its shard's weight."""

    options: Supervised

    def __init__(self, fit: Fit):
        super().__init__(fit)
        self.model = initial(fit)
        if self.options.document_mask and not masks_documents(self.model):
            said = f"{type(self.model).__name__} does not tell records by their positions; leave it false"
            raise UserError("trainer.document_mask", True, said)

    def logits(self, batch: Batch) -> torch.Tensor:
        """[rows * context, vocabulary] of a batch, in single precision."""
        # attention is kept within a record by positions that begin anew: transformers makes the mask of them
        known = {"position_ids": batch.positions} if self.options.document_mask else {}
        return self.model(input_ids=batch.inputs, use_cache=False, **known).logits.flatten(0, 1).float()

    def nats(self, logits: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        """Loss of targets [rows, context], those that are IGNORE left out: its `mean`, or `none`: each, [rows *
        context]."""
        return cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction=reduction)

    def loss(self, batch: Batch) -> torch.Tensor:
        """The batch's part of the step's mean loss. Lightning takes the mean over processes and accumulated batches, as
        if all had equally many targets; so each sum is divided by the step's targets, and multiplied by the parts."""
        logits, parts = self.logits(batch), self.trainer.world_size * self.options.accumulate
        if parts == 1 and not self.weighted:
            return self.nats(logits, batch.targets, "mean")
        each = self.nats(logits, batch.targets, "none")
        each = each * batch.weights.flatten() if self.weighted else each
        return each.sum() / batch.whole * parts

    def held_out(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        total = cross_entropy(self.logits(batch), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum")
        return total, (batch.targets != IGNORE).sum()

    def write_model(self, state: dict[str, Any]) -> None:
        prefix = "model."
        assert isinstance(self.fit.model, TextModel)
        weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        self.fit.model.save(self.model, self.fit, weights)

    def seen(self, steps: int) -> dict[str, int]:
        return {"tokens": steps * self.options.batch * self.fit.options["context"]}

    def memory(self, rows: int) -> tuple[int, str]:
        """The logits and the gradients of them alone, in single precision. What else a training needs is less for large
        vocabularies, and not known here."""
        context, vocabulary = self.fit.options["context"], self.model.config.get_text_config().vocab_size
        return 2 * 4 * rows * context * vocabulary, f"the logits of {rows} rows of {context} tokens"


def options_of(fit: Fit) -> Any:
    return cast("Descent", fit.trainer)  # genloss.language.trainer names this module, and no module may name it back


def steps_of(fit: Fit) -> int:
    return cast(int, options_of(fit).budget(fit.options.get("context", 0)))


def initial(fit: Fit) -> Any:
    """The model that training begins with, in training mode."""
    assert isinstance(fit.model, TextModel)
    return fit.model.initial(fit)


@torch.no_grad()
def masks_documents(model: Any) -> bool:
    """Whether a model takes positions that begin anew for another record: what it says of the second one does not
    depend on the first."""
    inputs, positions = torch.tensor([[0, 1, 2, 3], [3, 2, 2, 3]]), torch.tensor([[0, 1, 0, 1]] * 2)
    model.eval()
    first, second = model(input_ids=inputs, position_ids=positions, use_cache=False).logits[:, 2:].float()
    model.train()
    return bool(torch.allclose(first, second, atol=1e-3, rtol=1e-3))


def drawn() -> dict[str, Any]:
    """The states of this process's random generators, as plain values."""
    kind, keys, *rest = cast(Any, np.random.get_state())
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
    }


def draw_on(states: dict[str, Any]) -> None:
    """Go on drawing where `drawn` was called."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


# -- what it is trained on ---------------------------------------------------------------------------------------------


class Examples(lightning.LightningDataModule, ABC):
    """What a training sees."""

    @abstractmethod
    def rows_in(self, epochs: int) -> int:
        """Rows in which every record is seen so often; the last step of them may see some of the next epoch."""


class PackedData(Examples):
    """The shards of a training, without end, and the first rows of the real validation split, always the same."""

    def __init__(self, fit: Fit):
        super().__init__()
        self.fit = fit
        options = options_of(fit)
        self.rows = options.batch // options.accumulate  # of a batch, over all devices
        self.validation = -(-options.validation_rows // self.rows)  # batches

    def packed(self, shards: list[Path], weights: list[float]) -> Rows:
        codec, options = load_codec(self.fit.data / "tokenizer"), self.fit.options
        columns, folder = options.get("columns", ("text",)), self.fit.scratch and self.fit.scratch / "tokens"
        loss = options.get("loss", ASSISTANT)
        return Rows(shards, weights, codec, options["context"], self.fit.seed, columns, folder, loss)

    def prepare_data(self) -> None:
        """Lightning calls it in one process of a machine, before the others look for these files."""
        if self.fit.scratch:
            rows = self.packed(self.fit.shards, self.fit.weights)
            if rows.shortened:
                what = f"{rows.shortened} records with a prompt are longer than {rows.context} tokens"
                print(f"genloss: warning: {what}; what is beyond is not learned: raise domain.context", file=sys.stderr)
            self.packed([self.held_out], [1.0])

    def rows_in(self, epochs: int) -> int:
        rows = self.packed(self.fit.shards, self.fit.weights)
        return sum(1 for n in range(epochs) for _ in rows.plan(n))

    @property
    def held_out(self) -> Path:
        return self.fit.data / "validation.parquet"

    def train_dataloader(self) -> DataLoader[Batch]:
        rows, accumulate = self.packed(self.fit.shards, self.fit.weights), options_of(self.fit).accumulate
        done = self.trainer.fit_loop.total_batch_idx + 1 if self.trainer else 0  # before a kill
        return DataLoader(Batches(rows, self.rows, accumulate=accumulate, first=done), batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        real = self.packed([self.held_out], [1.0])
        return DataLoader(Batches(real, self.rows, limit=self.validation), batch_size=None)


class Batches(IterableDataset[Batch]):
    """Batches of `size` packed rows from batch `first` on, without end; or the first `limit` of one epoch. A step has
    `accumulate` of them. Of every batch, each process of a distributed run takes its own rows, and a row of padding
    where there are not enough."""

    def __init__(self, rows: Rows, size: int, limit: int | None = None, accumulate: int = 1, first: int = 0):
        self.rows, self.size, self.limit, self.accumulate, self.first = rows, size, limit, accumulate, first

    def __iter__(self) -> Iterator[Batch]:
        rank, world = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        plans = self.rows.endless() if self.limit is None else self.rows.plan(0)
        plans = islice(plans, self.first * self.size, self.limit and self.limit * self.size)
        while step := list(islice(plans, self.size * self.accumulate)):
            whole = torch.tensor(sum(piece.targets for row in step for piece in row))
            for at in range(0, len(step), self.size):
                batch = step[at : at + self.size]
                batch += [[]] * (-len(batch) % world)
                rows = [self.rows.row(row) for row in batch[rank::world]]
                inputs, targets, weights, positions = (
                    torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)
                )
                yield Batch(inputs, targets, weights, positions, whole)


class Straight(TorchCheckpointIO):
    """Writes checkpoints to their files: Lightning's own makes two copies in memory first. Of our own, a full disk is
    found by who looks for the file: an error in one of several processes would leave the others waiting."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        aside = Path(f"{path}.part")
        try:
            with aside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except (OSError, RuntimeError):  # torch's, of what it could not write
            if Path(path).name != STATE:
                raise
            aside.unlink(missing_ok=True)


# -- training in this process ------------------------------------------------------------------------------------------


def train_here(fit: Fit) -> dict[str, Any]:
    """As `train`, with this process as one of its devices'."""
    quiet()
    options = options_of(fit)
    torch.set_num_threads(options.threads)
    with in_one_line(options):
        engine, module = fitted(fit)
    done = engine.global_step
    if done == 0:
        raise UserError("trainer.callbacks", None, "ended the training before its first step")
    module.curve = module.over_all(module.curve, "mean")
    lost = lost_at(module, done)
    if lost:
        if not alone(fit.runtime):
            why = f"the training diverged: from step {lost} on its loss is no number; lower it"
            raise UserError("trainer.lr", options.lr, why)
        # the weights that gave the last loss that was a number, by the same steps again: to keep copies of the weights
        # would cost every training
        done, curve = max(0, lost - 2), module.curve
        quiet_fit = dataclasses.replace(fit, trainer=dataclasses.replace(options, logger={}))
        checkpoints(fit).restore(done)
        with in_one_line(options):
            engine, module = fitted(quiet_fit, done)  # of 0 steps: nothing but the beginning
        module.curve = curve
    state = engine.strategy.lightning_module_state_dict()  # gathers the shards of FSDP: every process takes part
    known = lost - 1 if lost else done  # losses
    if engine.is_global_zero:
        write(module, state, known)
    result = {
        "steps": done,
        **module.seen(done),
        "loss": float(module.curve[known - 1]) if known else None,
        "parameters": sum(p.numel() for p in module.model.parameters()),
    }
    return result | ({"diverged": lost} if lost else {})


def fitted(fit: Fit, steps: int | None = None) -> tuple[lightning.Trainer, Learner]:
    """A training of all its steps, or of the first `steps` of them; from the last checkpoint on, if there is one."""
    options = options_of(fit)
    engine = engine_of(fit, steps)
    for logger in engine.loggers:
        logger.log_hyperparams(dataclasses.asdict(options) | {"seed": fit.seed})
    torch.manual_seed(fit.seed)  # for what a subclass adds to the model
    module, data = options.module(fit), options.batches(fit)
    check_memory(fit, module)
    module.checkpoints = checkpoints(fit, engine)
    last = module.checkpoints.last(steps)
    torch.manual_seed(fit.seed)
    engine.fit(module, datamodule=data, ckpt_path=last and last / STATE, weights_only=True if last else None)
    return engine, module


def check_memory(fit: Fit, module: Learner) -> None:
    """Refuse batches that no device can hold."""
    options = options_of(fit)
    rows = -(-options.batch // (options.accumulate * fit.runtime.devices * fit.runtime.num_nodes))
    (needed, what), there = module.memory(rows), memory(device_of(fit.runtime))
    if needed > there:
        why = f"{what} take {needed / 1e9:.0f} GB at once"
        remedy = "raise trainer.accumulate, or lower it"
        raise UserError("trainer.batch", options.batch, f"{why}, and there are {there / 1e9:.0f}; {remedy}")


def checkpoints(fit: Fit, engine: lightning.Trainer | None = None) -> Checkpoints:
    """Those of a training, for the processes of its engine."""
    known = fit.scratch, fit.out, options_of(fit).checkpoint_minutes, fit.runtime.strategy
    return Checkpoints(*known, engine.strategy.broadcast, engine.is_global_zero) if engine else Checkpoints(*known)


def lost_at(module: Learner, done: int) -> int:
    """The first of `done` steps whose loss was no number; the step after the last, if that broke the weights; else
    0."""
    sound = all(bool(p.detach().isfinite().all()) for p in module.model.parameters())
    lost = (~module.curve[:done].isfinite()).nonzero()
    first = int(lost[0]) + 1 if len(lost) else 0 if sound else done + 1
    far = done + 2  # of several processes the first one counts
    nearest = -int(module.over_all(torch.tensor(-(first or far), device=module.curve.device), "max"))
    return 0 if nearest == far else nearest


def engine_of(fit: Fit, first: int | None = None) -> lightning.Trainer:
    """Lightning's own trainer for this training, or for its `first` steps. Of a Lightning user's habits only those are
    on that were asked for: no logger, checkpoint, bar or summary but by `trainer.callbacks` and `trainer.logger`."""
    options, runtime = options_of(fit), fit.runtime
    steps = steps_of(fit)
    accelerator = {"cuda": "gpu"}.get(runtime.accelerator, runtime.accelerator)
    precision: Any = options.precision  # one of PRECISIONS, which Lightning spells as a type
    callbacks, loggers = brought(options, fit)
    return lightning.Trainer(
        max_steps=steps if first is None else first,
        accelerator=accelerator,
        devices=runtime.devices,
        strategy=runtime.strategy,
        num_nodes=runtime.num_nodes,
        # on one node Lightning starts the processes; it would take a job's variables (SLURM_NTASKS) for orders
        plugins=[Straight(), *([LightningEnvironment()] if runtime.num_nodes == 1 else [])],
        precision=precision,
        gradient_clip_val=options.clip or None,
        accumulate_grad_batches=options.accumulate,
        callbacks=callbacks,
        logger=loggers or False,
        log_every_n_steps=min(50, steps),  # Lightning's 50
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        deterministic=True if accelerator == "cpu" else "warn",
        val_check_interval=min(options.validate_every, steps) * options.accumulate,
        check_val_every_n_epoch=None,
        default_root_dir=fit.out,
        use_distributed_sampler=False,
    )


def write(module: Learner, state: dict[str, Any], done: int) -> None:
    """Write `model/` and `training.csv` of a module that took `done` steps and whose weights are `state`."""
    module.write_model(state)
    rows: list[tuple[Any, ...]] = [(*point, "") for point in module.points(done)]
    rows += [(step, "", "", loss) for step, loss in module.validation.items() if math.isfinite(loss)]
    write_curve(module.fit.out, ("step", "loss", "lr", "validation_loss"), rows)


def quiet() -> None:
    """Lightning's tips and notes are for people at notebooks; here they would bury the progress."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


# -- training in processes of its own ----------------------------------------------------------------------------------


def train_apart(fit: Fit) -> dict[str, Any]:
    """As `train`, in a process a device, which Lightning starts; they find the modules that this process finds."""
    job, result = fit.out / "job.json", fit.out / "result.json"
    job.write_text(json.dumps(to_json(fit)), encoding="utf-8")
    known = {k: v for k, v in os.environ.items() if fit.runtime.num_nodes > 1 or not k.startswith(RANKS)}
    known[PARENT] = str(os.getpid())
    known["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, "-m", __name__, str(job)], stdout=sys.stderr, env=known, check=False)
    if done.returncode != 0 or not result.is_file():
        raise UserError(
            "runtime.strategy",
            fit.runtime.strategy,
            f"training on {fit.runtime.devices} devices failed with exit code {done.returncode}; its output is above",
        )
    found: dict[str, Any] = json.loads(result.read_text())
    job.unlink()
    result.unlink()
    return found


def to_json(fit: Fit) -> dict[str, Any]:
    """A training as a file for other processes; `report` stays here."""
    return {
        "model": described(fit.model),
        "trainer": described(fit.trainer),
        "data": str(fit.data),
        "seed": fit.seed,
        "shards": [str(s) for s in fit.shards],
        "weights": fit.weights,
        "start": str(fit.start) if fit.start else None,
        "out": str(fit.out),
        "options": fit.options,
        "runtime": dataclasses.asdict(fit.runtime),
        "scratch": str(fit.scratch) if fit.scratch else None,
    }


def described(plugin: Any) -> dict[str, Any]:
    """The config of a plug-in."""
    return {"_target_": f"{type(plugin).__module__}.{type(plugin).__qualname__}", **dataclasses.asdict(plugin)}


def from_json(value: dict[str, Any]) -> Fit:
    return Fit(
        model=build(value["model"], Model, "model"),
        trainer=build(value["trainer"], Trainer, "trainer"),
        data=Path(value["data"]),
        shards=[Path(s) for s in value["shards"]],
        weights=value["weights"],
        start=Path(value["start"]) if value["start"] else None,
        seed=value["seed"],
        out=Path(value["out"]),
        options=value["options"],
        runtime=Runtime(**value["runtime"]),
        scratch=Path(value["scratch"]) if value["scratch"] else None,
    )


def main(path: Path) -> None:
    """One process of several: train what `train_apart` wrote; the first leaves the result. It ends with who started
    it, genloss or the first of them."""
    end_with(int(os.environ[PARENT]))
    os.environ[PARENT] = str(os.getpid())
    settle()
    fit = from_json(json.loads(path.read_text()))
    try:
        result = train_here(fit)
    except UserError as error:
        raise SystemExit(str(error)) from None
    rank_zero_only(lambda: (fit.out / "result.json").write_text(json.dumps(result), encoding="utf-8"))()


if __name__ == "__main__":
    # by its real name: the classes of `__main__` are others than those that a config's _target_ finds
    from genloss.language import training

    training.main(Path(sys.argv[1]))
