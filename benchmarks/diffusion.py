"""Sampling images: genloss, with a random stream for each record, against the pipelines of diffusers at their best
batch.

    python benchmarks/diffusion.py [--records 256] [--steps 25] [--side 32] [--workers 0]

Both use the same UNet (model=unet), the same number of steps, and the same number of threads. DDIMPipeline is the
counterpart; DDPMPipeline with as many steps is printed beside it. Theirs is measured for each batch of BATCHES, and
the best one counts. Bound: genloss makes at least as many images a second as DDIMPipeline at its best batch."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from genloss.core.contracts import Runtime
from genloss.core.machine import cores
from genloss.domains.images.model import UNet
from genloss.domains.images.sampling import sample

BATCHES = (16, 32, 64, 128, 256)
REPEATS = 3


def told(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a UNet with a class, which its pipelines do not know."""
    return args, {**options, "class_labels": torch.zeros(len(args[0]), dtype=torch.long)}


def best(go: Callable[[], object]) -> float:
    """Seconds of the quickest of some repetitions, after one that does not count."""
    go()
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        go()
        found.append(time.perf_counter() - began)
    return min(found)


def saved(folder: Path, side: int) -> None:
    """A random model=unet; what it says is of no matter for the time."""
    options = UNet()
    torch.manual_seed(0)
    unet = options.made(side, 3, 10)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    options.save(unet, scheduler, folder, unet.state_dict())


def drawn(folder: Path, n: int, steps: int, chunk: int, runtime: Runtime) -> None:
    for _ in sample(folder, n, seed=0, steps=steps, chunk=chunk, runtime=runtime):
        pass


def theirs(folder: Path, kind: Any, records: int, batch: int, steps: int) -> float:
    """Seconds for so many images in batches."""
    torch.set_num_threads(cores())
    unet = UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)
    unet.register_forward_pre_hook(told, with_kwargs=True)
    noise = DDIMScheduler if kind is DDIMPipeline else DDPMScheduler
    pipe = kind(unet=unet, scheduler=noise.from_pretrained(folder, subfolder="scheduler"))
    pipe.set_progress_bar_config(disable=True)

    def go() -> None:
        left = records
        while left > 0:
            pipe(batch_size=min(batch, left), num_inference_steps=steps, output_type="np")
            left -= batch

    return best(go)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=256)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saved(folder, options.side)
        runtime = Runtime(workers=options.workers)
        n, steps = options.records, options.steps
        ours = {chunk: n / best(partial(drawn, folder, n, steps, chunk, runtime)) for chunk in (32, 64)}
        print(f"{n} images of {options.side}x{options.side}, {steps} steps, {cores()} cores; images a second")
        for chunk, rate in ours.items():
            print(f"genloss, chunk {chunk:4d}        {rate:8.1f}")
        found = {}
        for kind in (DDIMPipeline, DDPMPipeline):
            rates = {b: n / theirs(folder, kind, n, b, steps) for b in BATCHES if b <= n}
            at = max(rates, key=lambda b: rates[b])
            found[kind] = rates[at]
            print(f"{kind.__name__}, batch {at:4d}   {rates[at]:8.1f}")
        ratio = ours[64] / found[DDIMPipeline]
        print(f"genloss at its default chunk, 64, over DDIMPipeline at its best batch: {ratio:.2f}")
        assert ratio >= 1.0, f"{ratio:.2f} < 1.0"


if __name__ == "__main__":
    main()
