"""Training: a LightningModule over packed rows with a fixed budget, bit-reproducible on one machine type.

    genloss run trainer.steps=600 trainer.batch=32
    genloss run trainer.tokens=10_000_000 runtime.accelerator=gpu runtime.devices=4 runtime.strategy=fsdp

With one device it runs in this process. With several, Lightning starts a process a device by running this module again:

    python -m genloss.language.training JOB.json

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
import subprocess
import sys
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset

from genloss.core.contracts import Fit, Runtime, Trainer
from genloss.core.errors import UserError
from genloss.core.machine import end_with
from genloss.core.places import settle
from genloss.core.plugin import build
from genloss.language.brought import brought, in_one_line
from genloss.language.curve import write_curve
from genloss.language.model import TextModel, load, save
from genloss.language.packing import IGNORE, Rows
from genloss.language.tokenizer import load_codec

if TYPE_CHECKING:
    from genloss.language.trainer import Supervised

PARENT = "GENLOSS_PARENT"  # variable: which process has started one that trains
# Variables by which a cluster tells processes who they are: of this process, and not of those that it starts.
RANKS = ("RANK", "LOCAL_RANK", "GROUP_", "NODE_", "WORLD_SIZE", "MASTER_", "SLURM_", "TORCHELASTIC_", "JSM_", "LSB_")

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # inputs, targets, weights: [rows, context] each


def train(fit: Fit) -> dict[str, Any]:
    """Train one model; write `model/` and `training.csv` to `fit.out`. Returns the steps that were taken, the tokens of
    context that they saw, the loss of the last one and the number of parameters; `diverged`, as Supervised.train says.
    UserError if a process of several devices fails, or if their training diverges."""
    fit = dataclasses.replace(fit, start=fit.start or fit.model.base(fit))
    return train_here(fit) if alone(fit.runtime) else train_apart(fit)


def alone(runtime: Runtime) -> bool:
    """Whether this process trains by itself."""
    return runtime.devices == 1 and runtime.num_nodes == 1 and runtime.strategy == "auto"


# -- what is trained ---------------------------------------------------------------------------------------------------


class CausalLM(lightning.LightningModule):
    """Next-token prediction by `fit.model`, or by the model at `fit.start`: mean loss in nats over the targets of a
    batch, each weighted by its shard's weight. AdamW and the schedule of `fit.trainer`."""

    def __init__(self, fit: Fit):
        super().__init__()
        self.fit = fit
        self.options = options_of(fit)
        self.steps = self.options.budget(fit.options["context"])
        self.weighted = any(w != 1.0 for w in fit.weights)
        self.listened = bool(self.options.callbacks or self.options.logger)
        self.model = initial(fit)
        # one tensor from the start: a kept scalar a step would pin the heap between the blocks of every step
        self.curve = torch.zeros(self.steps)  # loss of every step
        self.validation: dict[int, float] = {}  # steps taken: mean loss in nats
        self._sums: list[tuple[torch.Tensor, torch.Tensor]] = []

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """[rows * context, vocabulary] of inputs [rows, context], in single precision."""
        return self.model(input_ids=inputs, use_cache=False).logits.flatten(0, 1).float()

    def nats(self, logits: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        """Loss of targets [rows, context], those that are IGNORE left out: its `mean`, or `none`: each, [rows *
        context]."""
        return cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction=reduction)

    def loss(self, batch: Batch) -> torch.Tensor:
        inputs, targets, weights = batch
        logits = self.logits(inputs)
        if not self.weighted:
            return self.nats(logits, targets, "mean")
        each = self.nats(logits, targets, "none") * weights.flatten()
        return each.sum() / (targets != IGNORE).sum()

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        loss = self.loss(batch)
        if index % self.options.accumulate == 0:
            self.curve[self.global_step] = loss.detach()
        if self.listened:  # a call of `log` costs a tenth of a millisecond
            self.log("loss", loss)
        return loss

    def on_fit_start(self) -> None:
        self.curve = self.curve.to(self.device)  # or every step would wait for the accelerator

    def on_train_batch_end(self, outputs: Any, batch: Batch, index: int) -> None:
        self.fit.report(self.global_step, self.steps, "steps")

    def validation_step(self, batch: Batch, index: int) -> None:
        inputs, targets, _ = batch
        total = cross_entropy(self.logits(inputs), targets.flatten(), ignore_index=IGNORE, reduction="sum")
        self._sums.append((total, (targets != IGNORE).sum()))

    def on_validation_epoch_end(self) -> None:
        total, count = (torch.stack(part).sum() for part in zip(*self._sums, strict=True))
        self._sums.clear()
        self.validation[self.global_step] = float(total / count)
        if alone(self.fit.runtime) and lost_at(self, self.global_step):
            self.trainer.should_stop = True
        if self.listened:
            self.log("validation_loss", total / count, sync_dist=True)

    def configure_optimizers(self) -> Any:
        options = self.options
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=options.lr,
            betas=(options.beta1, options.beta2),
            weight_decay=options.weight_decay,
            fused=not options.precision.endswith("mixed"),  # the fused step unscales by itself, which forbids clipping
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: options.rate(step, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def options_of(fit: Fit) -> Supervised:
    return cast("Supervised", fit.trainer)  # genloss.language.trainer names this module, and no module may name it back


def initial(fit: Fit) -> Any:
    """The model that training begins with, in training mode."""
    assert isinstance(fit.model, TextModel)
    if fit.start:
        return load(fit.start).train()
    codec = load_codec(fit.data / "tokenizer")
    return fit.model.fresh(codec.size, codec.begin, codec.end, fit.options["context"], fit.seed).train()


# -- what it is trained on ---------------------------------------------------------------------------------------------


class PackedData(lightning.LightningDataModule):
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
        return Rows(shards, weights, codec, options["context"], self.fit.seed, columns, folder)

    def prepare_data(self) -> None:
        """Lightning calls it in one process of a machine, before the others look for these files."""
        if self.fit.scratch:
            self.train_dataloader(), self.val_dataloader()

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(Batches(self.packed(self.fit.shards, self.fit.weights), self.rows), batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        real = self.packed([self.fit.data / "validation.parquet"], [1.0])
        return DataLoader(Batches(real, self.rows, self.validation), batch_size=None)


class Batches(IterableDataset[Batch]):
    """Batches of `size` packed rows, without end; or the first `limit` of one epoch. Of every batch, each process of a
    distributed run takes its own rows."""

    def __init__(self, rows: Rows, size: int, limit: int | None = None):
        self.rows, self.size, self.limit = rows, size, limit

    def __iter__(self) -> Iterator[Batch]:
        rank, world = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        rows = iter(self.rows) if self.limit is None else self.rows.epoch(0)
        for _ in range(self.limit or sys.maxsize):
            batch = list(islice(rows, self.size))[rank::world]
            if not batch:
                return
            inputs, targets, weights, _ = (torch.from_numpy(np.stack(part)) for part in zip(*batch, strict=True))
            yield inputs, targets, weights


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
    lost = lost_at(module, done)
    if lost:
        if not alone(fit.runtime):
            why = f"the training diverged: from step {lost} on its loss is no number; lower it"
            raise UserError("trainer.lr", options.lr, why)
        # the weights that gave the last loss that was a number, by the same steps again: to keep copies of the weights
        # would cost every training
        done, curve = max(0, lost - 2), module.curve
        quiet_fit = dataclasses.replace(fit, trainer=dataclasses.replace(options, logger={}))
        with in_one_line(options):
            engine, module = fitted(quiet_fit, done)  # of 0 steps: nothing but the beginning
        module.curve = curve
    state = engine.strategy.lightning_module_state_dict()  # gathers the shards of FSDP: every process takes part
    known = lost - 1 if lost else done  # losses
    if engine.is_global_zero:
        write(module, state, known)
    result = {
        "steps": done,
        "tokens": done * options.batch * fit.options["context"],
        "loss": float(module.curve[known - 1]) if known else None,
        "parameters": sum(p.numel() for p in module.model.parameters()),
    }
    return result | ({"diverged": lost} if lost else {})


def fitted(fit: Fit, steps: int | None = None) -> tuple[lightning.Trainer, CausalLM]:
    """A training of all its steps, or of the first `steps` of them."""
    options = options_of(fit)
    engine = engine_of(fit, steps)
    for logger in engine.loggers:
        logger.log_hyperparams(dataclasses.asdict(options) | {"seed": fit.seed})
    torch.manual_seed(fit.seed)  # for what a subclass adds to the model
    module, data = options.module(fit), options.batches(fit)
    torch.manual_seed(fit.seed)
    engine.fit(module, datamodule=data)
    return engine, module


def lost_at(module: CausalLM, done: int) -> int:
    """The first of `done` steps whose loss was no number; the step after the last, if that broke the weights; else
    0."""
    lost = (~module.curve[:done].isfinite()).nonzero()
    if len(lost):
        return int(lost[0]) + 1
    sound = all(bool(p.detach().isfinite().all()) for p in module.model.parameters())
    return 0 if sound else done + 1


def engine_of(fit: Fit, first: int | None = None) -> lightning.Trainer:
    """Lightning's own trainer for this training, or for its `first` steps. Of a Lightning user's habits only those are
    on that were asked for: no logger, checkpoint, bar or summary but by `trainer.callbacks` and `trainer.logger`."""
    options, runtime = options_of(fit), fit.runtime
    steps = options.budget(fit.options["context"])
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
        plugins=[LightningEnvironment()] if runtime.num_nodes == 1 else None,
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


def write(module: CausalLM, state: dict[str, Any], done: int) -> None:
    """Write `model/` and `training.csv` of a module that took `done` steps and whose weights are `state`."""
    prefix, options, out = "model.", module.options, module.fit.out
    weights = {k.removeprefix(prefix): v.cpu() for k, v in state.items() if k.startswith(prefix)}
    save(module.model, out / "model", weights)
    rows: list[tuple[Any, ...]] = [
        (step + 1, loss, options.rate(step, module.steps) * options.lr, "")
        for step, loss in enumerate(module.curve[:done].tolist())
    ]
    rows += [(step, "", "", loss) for step, loss in module.validation.items() if math.isfinite(loss)]
    write_curve(out, ("step", "loss", "lr", "validation_loss"), rows)


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
        model=build(value["model"], TextModel, "model"),
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
