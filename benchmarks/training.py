"""Training speed (LightningModule + packing) against a bare PyTorch loop over the same model, its rows ready in memory.

    python benchmarks/training.py           # the demo's model: about a minute
    python benchmarks/training.py 2m        # 2.2 M parameters, and compiled (needs g++): four minutes
    python benchmarks/training.py lora      # LoRA on SmolLM2-135M (extra smollm2), against peft in a loop: four minutes

The bounds: at least 0.97 of the bare loop's tokens per second, compiled 1.1, LoRA 0.95. All use one thread, the same
optimiser, clipping and schedule, and none validates more than a row. Model making is left out of the bare loops, and is
part of ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import scratch, table
from genloss.core.capabilities import able
from genloss.core.contracts import Fit
from genloss.core.machine import release_memory
from genloss.core.records import read, write
from genloss.domains.text import Text
from genloss.experiment import Experiment
from genloss.language.model import Pretrained, Scratch, TextModel
from genloss.language.model import read as read_model
from genloss.language.packing import IGNORE, Rows
from genloss.language.tokenizer import load_codec
from genloss.language.trainer import Supervised
from genloss.workflow.compose import compose

WIDE = ["model.width=192", "model.layers=4", "model.heads=6", "model.kv_heads=6", "model.feed_forward=512"]
BARE = ["trainer.validate_every=1000000", "trainer.validation_rows=1"]  # a bare loop validates nothing
# overrides, repeats, bound
SIZES: dict[str, tuple[list[str], int, float]] = {
    "demo": (["trainer.steps=300", *BARE], 5, 0.97),
    "2m": ([*WIDE, "domain.vocabulary=2048", "trainer.steps=120", *BARE], 2, 0.97),
    "lora": (["experiment=smollm2", "trainer.steps=16", *BARE], 2, 0.95),
}
COMPILED = 1.1

Ready = list[tuple[torch.Tensor, torch.Tensor]]


def bare(model: Any, t: Supervised, batches: Ready) -> float:
    """Seconds of the plainest loop over a fresh model."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=t.lr, betas=(t.beta1, t.beta2), weight_decay=t.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: t.rate(s, len(batches)))
    began = time.perf_counter()
    for inputs, targets in batches:
        logits = model(input_ids=inputs, use_cache=False).logits.flatten(0, 1).float()
        loss = torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, t.clip)
        optimizer.step()
        schedule.step()
    return time.perf_counter() - began


def plain(x: Experiment, fit: Fit) -> Any:
    """What the bare loop trains: our fresh model, or peft's own adapter on the base."""
    model = able(x.model, TextModel)
    if not isinstance(model, Pretrained) or model.lora is None:
        codec = load_codec(fit.data / "tokenizer")
        return model.fresh(codec.size, codec.begin, codec.end, fit.options["context"], 0)
    from peft import get_peft_model

    return get_peft_model(read_model(model.folder(), "bfloat16"), model.lora.config())


def ours(fit: Fit) -> float:
    began = time.perf_counter()
    able(fit.trainer, Supervised).train(fit)
    return time.perf_counter() - began


def rows_of(fit: Fit, trainer: Supervised) -> Ready:
    rows = iter(Rows(fit.shards, [1.0], load_codec(fit.data / "tokenizer"), fit.options["context"], 1))
    batches = []
    for _ in range(trainer.steps):
        inputs, targets, *_ = zip(*islice(rows, trainer.batch), strict=True)
        batches.append((torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets))))
    return batches


def main(size: str) -> None:
    overrides, repeats, bound = SIZES[size]
    x = Experiment(compose(overrides))
    trainer = able(x.trainer, Supervised)
    torch.set_num_threads(trainer.threads)
    with scratch() as name:
        folder = Path(name)
        data = folder / "data"
        x.domain.prepare(data)
        write(read(data / "train.parquet").slice(0, x.size), folder / "real.parquet")
        options = x.domain.config("train")
        fit = Fit(x.model, trainer, data, [folder / "real.parquet"], [1.0], None, 1, folder, options)
        kinds = {"genloss: set-up, packing, Lightning, saving": fit}
        if isinstance(x.model, Scratch) and size == "2m":
            kinds["the same, model.compile=true, compiling included"] = replace(
                fit, model=replace(x.model, compile=True)
            )
        batches = rows_of(fit, trainer)
        release_memory()  # the allocator's settings, for all
        seconds: dict[str, list[float]] = {"bare loop, data ready": [], **{kind: [] for kind in kinds}}
        for repeat in range(repeats):  # in turns, so that a drift of the machine meets all
            seconds["bare loop, data ready"].append(bare(plain(x, fit), trainer, batches))
            for i, (kind, one) in enumerate(kinds.items()):
                at = folder / f"{i}-{repeat}"
                # of its own: token ids, checkpoints, live.json
                seconds[kind].append(ours(replace(one, out=at / "out", scratch=at / "scratch")))
        tokens = trainer.steps * trainer.batch * able(x.domain, Text).context
    middle = {kind: statistics.median(found) for kind, found in seconds.items()}
    first = middle["bare loop, data ready"]
    table(
        f"Training, {size}: tokens per second (median of {repeats}, in turns)",
        ["", "tokens/s", "ratio"],
        [[kind, f"{tokens / s:,.0f}", f"{first / s:.3f}"] for kind, s in middle.items()],
    )
    print(f"\nbound: {bound} of the bare loop{f', compiled {COMPILED}' if len(kinds) > 1 else ''}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("size", nargs="?", choices=SIZES, default="demo")
    main(parser.parse_args().size)
