"""Training speed (LightningModule + packing) against a bare PyTorch loop of the same model on ready tensors.

    python benchmarks/training.py           # about a minute

The bound: at least 0.97 of the bare loop's tokens per second. Both use one thread, the same optimiser, clipping and
schedule.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import demo_model, scratch, table
from genloss.core.capabilities import able
from genloss.core.contracts import Fit
from genloss.core.machine import release_memory
from genloss.domains.text import Text
from genloss.language.model import TextModel
from genloss.language.packing import IGNORE, Rows
from genloss.language.tokenizer import load_codec
from genloss.language.trainer import Supervised

STEPS = 300  # the demo's
REPEATS = 5


def bare(model: Any, t: Supervised, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Seconds of the plainest loop over a fresh model."""
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=t.lr, betas=(t.beta1, t.beta2), weight_decay=t.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: t.rate(s, STEPS))
    began = time.perf_counter()
    for inputs, targets in batches:
        logits = model(input_ids=inputs, use_cache=False).logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), t.clip)
        optimizer.step()
        schedule.step()
    return time.perf_counter() - began


def main() -> None:
    with scratch() as name:
        folder = Path(name)
        x, data, _ = demo_model(folder, steps=STEPS)
        trainer, model, context = able(x.trainer, Supervised), able(x.model, TextModel), able(x.domain, Text).context
        codec = load_codec(data / "tokenizer")
        torch.set_num_threads(trainer.threads)
        rows = iter(Rows([folder / "real.parquet"], [1.0], codec, context, 1))
        batches = []
        for _ in range(STEPS):
            inputs, targets, *_ = zip(*islice(rows, trainer.batch), strict=True)
            batches.append((torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets))))
        release_memory()  # the allocator's settings, for both
        plain: list[float] = []
        lightning: list[float] = []
        for repeat in range(REPEATS):  # in turns, so that a drift of the machine meets both
            plain.append(bare(model.fresh(codec.size, codec.begin, codec.end, context, 0), trainer, batches))
            out = folder / f"fit-{repeat}"
            fit = Fit(x.model, trainer, data, [folder / "real.parquet"], [1.0], None, 1, out, x.domain.config("train"))
            fit = replace(fit, scratch=folder / f"scratch-{repeat}")  # token ids, checkpoints, live.json
            began = time.perf_counter()
            trainer.train(fit)
            lightning.append(time.perf_counter() - began)
        tokens = STEPS * trainer.batch * context
    a, b = statistics.median(plain), statistics.median(lightning)
    table(
        "Training: tokens per second (median of 5, in turns)",
        ["", "tokens/s", "ratio"],
        [
            ["bare loop, data ready", f"{tokens / a:,.0f}", "1.00"],
            ["genloss: set-up, packing, Lightning, validation, saving", f"{tokens / b:,.0f}", f"{a / b:.3f}"],
        ],
    )
    print(f"\n{a / b:.3f} of the bare loop; bound: 0.97")


if __name__ == "__main__":
    main()
