"""The machine: its cores, and the memory of long processes, which is one heap and is given back when a stage ends."""

from __future__ import annotations

import ctypes
import gc
import os
from functools import cache


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
