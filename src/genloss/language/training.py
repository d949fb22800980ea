"""Training: a LightningModule over packed rows with a fixed budget, bit-reproducible on one machine type.

    genloss run trainer.steps=600 trainer.batch=32
    genloss run trainer.tokens=10_000_000 runtime.accelerator=gpu runtime.devices=4 runtime.strategy=fsdp

With one device it runs in this process. With several, Lightning starts a process a device by running this module again:

    python -m genloss.language.training JOB.json
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from genloss.core.contracts import Fit, Runtime, Trainer
from genloss.core.errors import UserError, one_of, require
from genloss.core.plugin import build
from genloss.language.packing import IGNORE, Rows
from genloss.language.tokenizer import load_codec


@dataclass
class TextTrainer(Trainer):
    """AdamW (Loshchilov & Hutter 2019), linear warm-up, cosine decay, clipping. The budget is in steps or, if `tokens` is set, in
    tokens of context; it is the same for every arm, whatever the size of its training set."""

    steps: int = 300
    tokens: int | None = None  # budget in tokens, padding included; overrides steps
    batch: int = 16  # rows of `domain.context` tokens a step, over all devices
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("steps", "batch", "accumulate", "threads", "validate_every", "validation_rows"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.tokens is None or self.tokens >= 1, "tokens", self.tokens, "at least 1 token")
        require(self.lr > 0, "lr", self.lr, "greater than 0")
        require(0 <= self.warmup <= 1, "warmup", self.warmup, "a share of the steps in [0, 1]")
        require(0 <= self.final_lr <= 1, "final_lr", self.final_lr, "a share of lr in [0, 1]")
        for key in ("beta1", "beta2"):
            require(0 <= getattr(self, key) < 1, key, getattr(self, key), "in [0, 1)")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        require(self.clip >= 0, "clip", self.clip, "at least 0 (0: off)")
        require(
            self.batch % self.accumulate == 0,
            "accumulate",
            self.accumulate,
            f"a divisor of batch={self.batch}",
        )
        one_of("precision", self.precision, ("32-true", "bf16-mixed", "16-mixed", "bf16-true"))

    def train(self, fit: Fit) -> dict[str, Any]:
        return train(fit)

    def budget(self, context: int) -> int:
        """Steps of the optimiser."""
        return self.steps if self.tokens is None else max(1, round(self.tokens / (self.batch * context)))

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at `step` as a share of lr."""
        rise = max(1, round(self.warmup * steps))
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(1, steps - rise)
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(fit: Fit) -> dict[str, Any]:
    """Train one model; write `model/` and `training.csv` to `fit.out`."""
    runtime = fit.runtime
    if runtime.devices == 1 and runtime.num_nodes == 1 and runtime.strategy == "auto":
        return _fit(fit)
    job = fit.out / "job.json"
    job.write_text(json.dumps(_to_json(fit)), encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", __name__, str(job)], stdout=sys.stderr, check=False)
    result = fit.out / "result.json"
    if done.returncode != 0 or not result.is_file():
        raise UserError(
            "runtime.strategy",
            runtime.strategy,
            f"training on {runtime.devices} devices failed with exit code {done.returncode}; its output is above",
        )
    found = json.loads(result.read_text())
    job.unlink()
    result.unlink()
    return found


def _to_json(fit: Fit) -> dict[str, Any]:
    def plugin(value: Any) -> dict[str, Any]:
        return {
            "_target_": f"{type(value).__module__}.{type(value).__qualname__}",
            **dataclasses.asdict(value),
        }

    return {
        "model": plugin(fit.model),
        "trainer": plugin(fit.trainer),
        "data": str(fit.data),
        "seed": fit.seed,
        "shards": [str(s) for s in fit.shards],
        "weights": fit.weights,
        "start": str(fit.start) if fit.start else None,
        "out": str(fit.out),
        "options": fit.options,
        "runtime": dataclasses.asdict(fit.runtime),
    }


def _from_json(value: dict[str, Any]) -> Fit:
    from genloss.language.model import TextModel

    return Fit(
        model=build(value["model"], TextModel, "model"),
        trainer=build(value["trainer"], TextTrainer, "trainer"),
        data=Path(value["data"]),
        shards=[Path(s) for s in value["shards"]],
        weights=value["weights"],
        start=Path(value["start"]) if value["start"] else None,
        seed=value["seed"],
        out=Path(value["out"]),
        options=value["options"],
        runtime=Runtime(**value["runtime"]),
    )


def quiet() -> None:
    """Lightning's tips and notes are for people at notebooks; here they would bury the progress."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def _fit(fit: Fit) -> dict[str, Any]:
    import lightning.pytorch as lightning
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, IterableDataset

    from genloss.language.model import TextModel, load

    quiet()
    assert isinstance(fit.trainer, TextTrainer) and isinstance(fit.model, TextModel)
    trainer: TextTrainer = fit.trainer
    definition: TextModel = fit.model
    torch.set_num_threads(trainer.threads)
    codec = load_codec(fit.data / "tokenizer")
    context = fit.options["context"]
    steps = trainer.budget(context)
    start = fit.start or definition.base(fit)
    model = load(start) if start else definition.fresh(codec.size, codec.begin, codec.end, context, fit.seed)
    model.train()
    rows_a_pass = trainer.batch // trainer.accumulate

    class Batches(IterableDataset):
        """Batches of rows; of every batch, each process of a distributed run takes its own rows."""

        def __init__(self, shards: list[Path], weights: list[float], batches: int | None):
            columns = fit.options.get("columns", ("text",))
            self.rows, self.batches = Rows(shards, weights, codec, context, fit.seed, columns), batches

        def __iter__(self) -> Iterator[tuple[Any, ...]]:
            rank, world = 0, 1
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
            rows = iter(self.rows) if self.batches is None else self.rows.epoch(0)
            for _ in range(self.batches or sys.maxsize):
                batch = list(islice(rows, rows_a_pass))[rank::world]
                if not batch:
                    return
                yield tuple(torch.from_numpy(np.stack(part)) for part in zip(*batch, strict=True))

    class Data(lightning.LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(Batches(fit.shards, fit.weights, None), batch_size=None)

        def val_dataloader(self) -> DataLoader:
            real = [fit.data / "validation.parquet"]
            return DataLoader(Batches(real, [1.0], -(-trainer.validation_rows // rows_a_pass)), batch_size=None)

    weighted = any(w != 1.0 for w in fit.weights)

    class CausalLM(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            # one tensor from the start: a kept scalar a step would pin the heap between the blocks of every step
            self.curve = torch.zeros(steps)
            self.validation: dict[int, float] = {}
            self._sums: list[tuple[Any, Any]] = []

        def losses(self, batch: tuple[Any, ...]) -> Any:
            inputs, targets, weights = batch
            logits = self.model(input_ids=inputs, use_cache=False).logits.flatten(0, 1).float()
            if not weighted:
                return cross_entropy(logits, targets.flatten(), ignore_index=IGNORE)
            each = cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="none")
            return (each * weights.flatten()).sum() / (targets != IGNORE).sum()

        def training_step(self, batch: tuple[Any, ...], index: int) -> Any:
            loss = self.losses(batch)
            if index % trainer.accumulate == 0:
                self.curve[self.global_step] = loss.detach()
            return loss

        def on_fit_start(self) -> None:
            self.curve = self.curve.to(self.device)  # or every step would wait for the accelerator

        def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
            fit.report(self.global_step, steps, "steps")

        def validation_step(self, batch: tuple[Any, ...], index: int) -> None:
            inputs, targets, _ = batch
            logits = self.model(input_ids=inputs, use_cache=False).logits.flatten(0, 1).float()
            total = cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")
            self._sums.append((total, (targets != IGNORE).sum()))

        def on_validation_epoch_end(self) -> None:
            total, count = (torch.stack(part).sum() for part in zip(*self._sums, strict=True))
            self._sums.clear()
            self.validation[self.global_step] = float(total / count)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(
                self.parameters(),
                lr=trainer.lr,
                betas=(trainer.beta1, trainer.beta2),
                weight_decay=trainer.weight_decay,
                fused=True,
            )
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: trainer.rate(step, steps))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    runtime = fit.runtime
    accelerator = {"cpu": "cpu", "gpu": "gpu", "cuda": "gpu"}.get(runtime.accelerator, runtime.accelerator)
    engine = lightning.Trainer(
        max_steps=steps,
        accelerator=accelerator,
        devices=runtime.devices,
        strategy=runtime.strategy,
        num_nodes=runtime.num_nodes,
        precision=trainer.precision,  # type: ignore[arg-type]
        gradient_clip_val=trainer.clip or None,
        accumulate_grad_batches=trainer.accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        deterministic=True if accelerator == "cpu" else "warn",
        val_check_interval=min(trainer.validate_every, steps) * trainer.accumulate,
        check_val_every_n_epoch=None,
        default_root_dir=fit.out,
        use_distributed_sampler=False,
    )
    torch.manual_seed(fit.seed)
    module = CausalLM()
    engine.fit(module, datamodule=Data())
    state = engine.strategy.lightning_module_state_dict()  # gathers the shards of FSDP: every process takes part
    result = {"steps": steps, "tokens": steps * trainer.batch * context, "loss": float(module.curve[-1])}
    result["parameters"] = sum(p.numel() for p in model.parameters())
    if engine.is_global_zero:
        prefix = "model."
        weights = {k.removeprefix(prefix): v.cpu() for k, v in state.items()}
        model.generation_config.do_sample = True
        model.save_pretrained(fit.out / "model", state_dict=weights)
        with (fit.out / "training.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["step", "loss", "lr", "validation_loss"])
            for step, loss in enumerate(module.curve.tolist()):
                table.writerow([step + 1, f"{loss:.6g}", f"{trainer.rate(step, steps) * trainer.lr:.6g}", ""])
            for step, value in module.validation.items():
                table.writerow([step, "", "", f"{value:.6g}"])
        if os.environ.get("GENLOSS_JOB"):
            (fit.out / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return result


if __name__ == "__main__":
    # by its real name: the classes of `__main__` are others than those that a config's _target_ finds
    from genloss.language import training

    os.environ["GENLOSS_JOB"] = sys.argv[1]
    training._fit(training._from_json(json.loads(Path(sys.argv[1]).read_text())))
