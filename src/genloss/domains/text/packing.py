"""Packing: records of many lengths into rows of one length, without an end and without holding more than a window.

    begin a a a end  b b end | pad          each row starts at a record's beginning, as sampling does;
    begin c c c c c c c end  | pad          best-fit packing (Ding et al. 2024) leaves little padding

Order is a pure function of (seed, epoch): no state to save, any position can be reached again. Records longer than a row are
cut into rows. Attention runs over the records that share a row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from genloss import records
from genloss.domains.text.tokenizer import Codec
from genloss.seeds import generator

WINDOW = 256  # records that are packed together
KEEP = 1 << 16  # records whose token ids are kept for the next epoch
IGNORE = -100  # target of padding


def fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing bin packing: lists of positions whose lengths sum to at most `capacity`."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free space, bin), sorted
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(room, (lengths[i], -1))
        if at < len(room):
            free, b = room.pop(at)
        else:
            free, b = capacity, len(bins)
            bins.append([])
        bins[b].append(i)
        insort(room, (free - lengths[i], b))
    return bins


class Rows:
    """Endless rows for training: iterating yields (inputs [T], targets [T], weights [T]) of NumPy arrays."""

    def __init__(self, shards: list[Path], weights: list[float], codec: Codec, context: int, seed: int):
        tables = [records.read(path, columns=["text"]) for path in shards]
        self.texts = records.concat(tables).column("text").combine_chunks()
        self.weights = np.repeat(np.asarray(weights, dtype=np.float32), [len(t) for t in tables])
        self.codec, self.context, self.seed = codec, context, seed
        self._kept: dict[int, list[int]] = {}

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        epoch = 0
        while True:
            yield from self.epoch(epoch)
            epoch += 1

    def epoch(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Every record once."""
        rng = generator(self.seed, "epoch", number)
        order = rng.permutation(len(self.texts))
        for at in range(0, len(order), WINDOW):
            chosen = order[at : at + WINDOW]
            pieces: list[tuple[list[int], float]] = []
            for ids, weight in zip(self._ids(chosen), self.weights[chosen], strict=True):
                sequence = [self.codec.begin, *ids, self.codec.end]
                pieces += [
                    (sequence[i : i + self.context + 1], float(weight))
                    for i in range(0, len(sequence) - 1, self.context)
                ]
            rows = fit([len(p) for p, _ in pieces], self.context + 1)
            for r in rng.permutation(len(rows)):
                yield self._row([pieces[i] for i in rows[r]])

    def _ids(self, chosen: np.ndarray) -> list[list[int]]:
        """Token ids of these records; a record is encoded when it is first met."""
        new = [i for i in chosen.tolist() if i not in self._kept]
        found = dict(zip(new, self.codec.encode(self.texts.take(pa.array(new, pa.int64())).to_pylist()), strict=True))
        ids = [found[i] if i in found else self._kept[i] for i in chosen.tolist()]
        if len(self._kept) + len(found) <= KEEP:
            self._kept |= found
        return ids

    def _row(self, pieces: list[tuple[list[int], float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs = np.full(self.context, self.codec.end, dtype=np.int64)
        targets = np.full(self.context, IGNORE, dtype=np.int64)
        weights = np.zeros(self.context, dtype=np.float32)
        at = 0
        for sequence, weight in pieces:
            n = len(sequence) - 1
            inputs[at : at + n] = sequence[:-1]
            targets[at : at + n] = sequence[1:]
            weights[at : at + n] = weight
            at += n
        return inputs, targets, weights
