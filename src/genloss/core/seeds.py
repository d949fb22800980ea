"""Every random number derives from (run seed, purpose, round, index), never from shared state.

`seed_of(0, "train", 3)` is a 63-bit integer that depends on nothing else, so any stage of any round can be
run alone, in any order, on any number of workers. `uniforms` gives one row of numbers for every record of a
chunk from a counter-based generator (Philox; Salmon et al., SC 2011): row i is the stream of record i.
"""

from __future__ import annotations

import hashlib

import numpy as np


def seed_of(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the purpose that `path` names."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator of its own for the purpose that `path` names."""
    return np.random.Generator(np.random.Philox(key=seed_of(seed, *path)))


def uniforms(seed: int, chunk: int, rows: int, columns: int) -> np.ndarray:
    """float64 [rows, columns] in [0, 1): row i belongs to the i-th record of chunk number `chunk`."""
    return generator(seed, "chunk", chunk).random((rows, columns))
