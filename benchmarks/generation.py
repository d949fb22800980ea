"""Sampling speed against transformers' generate() at its best batch size and thread count, same model, same lengths.

    python benchmarks/generation.py         # about two minutes on two cores

The bound: at least 4 times. Tokens are those that belong to a record; padding after a record's end counts for neither.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from common import demo_model, scratch, table
from genloss.core.capabilities import able
from genloss.core.contracts import Decoding, Runtime, Sampling
from genloss.core.machine import cores
from genloss.generate.sample import Sample
from genloss.language.model import load
from genloss.language.sampling import sample
from genloss.language.tokenizer import load_codec

RECORDS = 2048
REPEATS = 3


def ours(decoding: Decoding, data: Path, model: Path, workers: int, folder: Path) -> float:
    best, runtime = 0.0, Runtime(workers=workers)
    for repeat in range(REPEATS):
        scratch = folder / f"{decoding.chunk}-{workers}-{repeat}"
        request = Sampling(model, data, RECORDS, repeat, decoding, None, scratch, runtime)
        began = time.perf_counter()
        tokens = sum(made.tokens for made in sample(request))
        best = max(best, tokens / (time.perf_counter() - began))
    return best


def theirs(data: Path, model_folder: Path, batch: int, threads: int, longest: int) -> float:
    codec, model = load_codec(data / "tokenizer"), load(model_folder)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    begin = torch.full((batch, 1), codec.begin)
    best = 0.0
    for _ in range(REPEATS):
        began, tokens = time.perf_counter(), 0
        for _ in range(max(1, 1024 // batch)):
            made = model.generate(
                begin,
                attention_mask=torch.ones_like(begin),
                do_sample=True,
                top_k=0,
                max_new_tokens=longest,
                eos_token_id=codec.end,
                pad_token_id=codec.end,
            )[:, 1:]
            ended = (made == codec.end).int().cumsum(1)
            tokens += int((ended == 0).sum() + (ended.max(1).values > 0).sum())
        best = max(best, tokens / (time.perf_counter() - began))
    return best


def main() -> None:
    with scratch() as name:
        folder = Path(name)
        x, data, model = demo_model(folder)
        decoding = able(x.recipe, Sample).decoding()
        mine = {
            (chunk, workers): ours(replace(decoding, chunk=chunk), data, model, workers, folder)
            for chunk in (decoding.chunk, 2 * decoding.chunk)
            for workers in (1, cores())
        }
        other = {
            (batch, threads): theirs(data, model, batch, threads, decoding.max_tokens)
            for batch in (64, 256, 512, 1024)
            for threads in sorted({1, cores()})
        }
    (batch, threads), best = max(other.items(), key=lambda item: item[1])
    rows = [[f"generate(), batch {b}, {t} threads", f"{v:,.0f}", f"{v / best:.2f}"] for (b, t), v in other.items()]
    rows += [[f"genloss, chunk {c}, {w} workers", f"{v:,.0f}", f"{v / best:.2f}"] for (c, w), v in mine.items()]
    table("Sampling: tokens per second", ["", "tokens/s", "ratio to generate()'s best"], rows)
    print(
        f"\n{max(mine.values()) / best:.1f} times generate() at its best (batch {batch}, {threads} threads); bound: 4"
    )


if __name__ == "__main__":
    main()
