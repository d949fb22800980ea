"""The machine: its cores, workers that end with their parent, and the memory of long processes, which is one heap and
is given back when a stage ends."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import signal
import threading
import time
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from genloss.core.errors import UserError

if TYPE_CHECKING:
    from genloss.core.contracts import Runtime


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(device: str = "cpu") -> float:
    """Bytes of memory of this machine, or of its first GPU; infinite where it cannot be asked."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[1])
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError):  # Windows
        return math.inf


@cache
def end_with(parent: int) -> None:
    """End this process when `parent`, which has started it, is gone, however that died: a worker of a sweep would go on
    for minutes, and a training on several devices for hours."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def check_devices(runtime: Runtime) -> None:
    """Refuse devices that this machine has not. Where work begins, not where a config is checked: a sweep's arms may
    run on other machines than the one that lists them."""
    there = 0
    if runtime.accelerator != "cpu":
        import torch

        there = torch.cuda.device_count()  # does not start CUDA, which a fork would not survive
        if there == 0 and runtime.accelerator != "cuda":
            there = int(torch.backends.mps.is_available())
    if runtime.accelerator in ("gpu", "cuda") and not there:
        wrong = "this machine has none that PyTorch can use; runtime.accelerator=cpu or auto does without"
        raise UserError("runtime.accelerator", runtime.accelerator, wrong)
    if there and runtime.devices > there:
        raise UserError("runtime.devices", runtime.devices, f"this machine has {there}")
    if runtime.strategy.startswith(("fsdp", "deepspeed")) and not there:
        raise UserError("runtime.strategy", runtime.strategy, "is for GPUs: runtime.accelerator=gpu; on CPUs use ddp")
    if runtime.strategy.startswith("deepspeed") and find_spec("deepspeed") is None:
        raise UserError("runtime.strategy", runtime.strategy, "needs the package: pip install deepspeed")


@cache
def _one_heap() -> ctypes.CDLL | None:
    """Put everything, Arrow's tables too, in one heap of the C library that keeps what is freed until a stage ends.
    Else every training step would return its pages and fault them in again (docs/decisions.md, "Memory"). None where
    there is no glibc."""
    import pyarrow as pa

    try:
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-8, 1), (-3, 1 << 28), (-1, 1 << 30)):  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(option, value)
    except (OSError, AttributeError):
        return None
    pa.set_memory_pool(pa.system_memory_pool())
    return libc


def release_memory() -> None:
    """Give back what a stage used: cycles (Lightning's, which hold model and optimizer) and freed pages.

    What survives is frozen: it is not looked through again, which took 0.4 s with all libraries loaded."""
    gc.collect()
    gc.freeze()
    if libc := _one_heap():
        libc.malloc_trim(0)
