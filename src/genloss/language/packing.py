"""Packing: records of many lengths into rows of one length, without an end and without holding more than a window.

    begin a a a end  b b end | pad          each row starts at a record's beginning, as sampling does;
    begin c c c c c c c end  | pad          best-fit packing (Ding et al. 2024) leaves little padding

Records of a prompt and a response lie one a row, as they are sampled, and only the response and its end are targets.

Order is a pure function of (seed, epoch): no state to save, any position can be reached again. Records longer than a
row are cut into rows. Attention runs over the records that share a row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.seeds import generator
from genloss.language.tokenizer import Codec

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
    """Endless rows for training: iterating yields (inputs [T], targets [T], weights [T]) of NumPy arrays.

    columns: that of the text; or those of a prompt and of its response."""

    def __init__(
        self,
        shards: list[Path],
        weights: list[float],
        codec: Codec,
        context: int,
        seed: int,
        columns: Sequence[str] = ("text",),
    ):
        tables = [records.read(path, columns=list(columns)) for path in shards]
        *given, texts = (records.concat(tables).column(name).combine_chunks() for name in columns)
        self.texts, self.prompts = texts, given[0] if given else None
        self.weights = np.repeat(np.asarray(weights, dtype=np.float32), [len(t) for t in tables])
        self.codec, self.context, self.seed = codec, context, seed
        self._kept: dict[int, tuple[list[int], int]] = {}

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
            pieces: list[tuple[list[int], float, int]] = []
            for (ids, given), weight in zip(self._ids(chosen), self.weights[chosen], strict=True):
                sequence = [self.codec.begin, *ids, self.codec.end]
                pieces += [
                    (sequence[i : i + self.context + 1], float(weight), max(0, given - i))
                    for i in range(0, len(sequence) - 1, self.context)
                ]
            if self.prompts is None:
                rows = fit([len(p) for p, _, _ in pieces], self.context + 1)
            else:
                rows = [[i] for i in range(len(pieces))]
            for r in rng.permutation(len(rows)):
                yield self._row([pieces[i] for i in rows[r]])

    def _ids(self, chosen: np.ndarray) -> list[tuple[list[int], int]]:
        """Token ids of these records, and how many of them are the prompt; a record is encoded when it is first met."""
        new = [i for i in chosen.tolist() if i not in self._kept]
        rows = pa.array(new, pa.int64())
        ids = self.codec.encode(self.texts.take(rows).to_pylist())
        given = self.codec.encode(self.prompts.take(rows).to_pylist()) if self.prompts is not None else [[]] * len(new)
        found = {i: ([*prompt, *text], len(prompt)) for i, prompt, text in zip(new, given, ids, strict=True)}
        wanted = [found[i] if i in found else self._kept[i] for i in chosen.tolist()]
        if len(self._kept) + len(found) <= KEEP:
            self._kept |= found
        return wanted

    def _row(self, pieces: list[tuple[list[int], float, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs = np.full(self.context, self.codec.end, dtype=np.int64)
        targets = np.full(self.context, IGNORE, dtype=np.int64)
        weights = np.zeros(self.context, dtype=np.float32)
        at = 0
        for sequence, weight, given in pieces:
            n = len(sequence) - 1
            inputs[at : at + n] = sequence[:-1]
            targets[at + given : at + n] = sequence[1 + given :]
            weights[at : at + n] = weight
            at += n
        return inputs, targets, weights
