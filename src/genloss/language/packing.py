"""Packing: records of many lengths into rows of one length, without an end and without holding more than a window.

    begin a a a | begin b b | pad       each row starts at a record's beginning, as sampling does;
    a     a a end b     b end             best-fit packing (Ding et al. 2024) leaves little padding
    begin d d d | begin e e             d was cut off at the limit of its recipe: no end is learned of it
    d     d d d   e     e end

Records of a prompt and a response lie one a row, as they are sampled, and only the response and its end are targets. Of
a conversation what the assistant says is, in each of its turns, or all of it.

    begin ~a ~a b b end        a token that is no target is written as the complement of its id, which is negative

A shard is read as token ids from a file that is made once (`tokenise`) and mapped into memory, which all processes of a
machine share: memory does not grow with the corpus, but for 16 bytes a record. Order is a pure function of (seed,
epoch): no state to save, any position can be reached again. Texts longer than a row are cut into rows; of a record that
begins with a prompt the first row is all that is learned, since the next one would answer nothing (`Rows.shortened`).
"""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.errors import UserError
from genloss.core.seeds import generator
from genloss.language.chat import ASSISTANT
from genloss.language.tokenizer import Codec

WINDOW = 256  # records that are packed together
PORTION = 1 << 20  # characters that are encoded together
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


# -- a shard as token ids ----------------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """A shard: record i is ids[edges[i] : edges[i + 1]], which begin with `begin` and end with `end`, unless it was cut
    off; what is no target is its complement."""

    edges: np.ndarray  # int64 [records + 1]
    ids: np.ndarray  # int32 [tokens]


def given(ids: Sequence[int]) -> list[int]:
    """Token ids that are no targets."""
    return [~i for i in ids]


def known(ids: np.ndarray) -> np.ndarray:
    """Token ids, targets or not."""
    return np.where(ids < 0, ~ids, ids)


def sequences(table: pa.Table, codec: Codec, columns: Sequence[str], loss: str = ASSISTANT) -> Iterator[list[int]]:
    """Each record as token ids, with its begin, and with its end unless it was cut off; what is no target as
    complements. columns: of a text, of a prompt and its response, or of conversations. loss: of conversations, what
    their targets are (genloss.language.chat)."""
    cut = records.cut_off(table)
    if pa.types.is_list(table.schema.field(columns[0]).type):
        for messages, short in zip(table.column(columns[0]).to_pylist(), cut, strict=True):
            ids = codec.rendered(messages, everything=loss != ASSISTANT)
            if short:  # without the end of the last turn, and what the template writes behind it
                ids = ids[: max(i for i, each in enumerate(ids) if each in (codec.end, ~codec.end))]
            yield ids
        return
    *prompts, texts = (codec.encode(table.column(name).to_pylist()) for name in columns)
    asked = prompts[0] if prompts else [[]] * len(table)
    for prompt, text, short in zip(asked, texts, cut, strict=True):
        yield [codec.begin, *given(prompt), *text, *([] if short else [codec.end])]


def tokenise(
    shard: Path,
    codec: Codec,
    columns: Sequence[str] = ("text",),
    folder: Path | None = None,
    loss: str = ASSISTANT,
) -> Tokens:
    """The token ids of a Parquet file of records, mapped from a file in `folder`; it is made if it is not there. None:
    from a file without a name, which is gone with the process."""
    if folder is None:
        with tempfile.TemporaryFile() as file:
            _write(shard, codec, columns, loss, file)
            return _mapped(file)
    path = folder / f"{shard.stem}.tokens"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{path.name}.{os.getpid()}"
        with aside.open("w+b") as made:
            _write(shard, codec, columns, loss, made)
            os.fsync(made.fileno())
        os.replace(aside, path)
    with path.open("rb") as there:
        return _mapped(there)


def _write(shard: Path, codec: Codec, columns: Sequence[str], loss: str, file: IO[bytes]) -> None:
    """int64 records, int64 edges [records + 1], int32 ids."""
    n = records.count(shard)
    edges = np.zeros(n + 1, dtype=np.int64)
    file.seek(8 * (n + 2))
    i = 0
    for batch in records.batches(shard, [*columns, records.FINISH]):
        for table in portions(batch, columns):
            for sequence in sequences(table, codec, columns, loss):
                file.write(np.asarray(sequence, dtype=np.int32).tobytes())
                edges[i + 1] = edges[i] + len(sequence)
                i += 1
    file.seek(0)
    for part in (np.asarray([n], dtype=np.int64), edges):
        file.write(part.tobytes())
    file.flush()


def portions(table: pa.Table, columns: Sequence[str], portion: int = PORTION) -> Iterator[pa.Table]:
    """A table in parts of about so many bytes: the ids of a text take ten times its bytes while it is encoded."""
    size = sum(table.column(name).nbytes for name in columns)
    rows = max(1, len(table) * portion // max(portion, size))
    for at in range(0, len(table), rows):
        yield table.slice(at, rows)


def _mapped(file: IO[bytes]) -> Tokens:
    size = os.fstat(file.fileno()).st_size
    n = int(np.memmap(file, np.int64, "r", shape=(1,))[0])
    at = 8 * (n + 2)
    edges = np.memmap(file, np.int64, "r", 8, (n + 1,))
    ids = np.memmap(file, np.int32, "r", at, ((size - at) // 4,)) if size > at else np.zeros(0, np.int32)
    return Tokens(*map(np.asarray, (edges, ids)))  # plain views: slices of a memmap are slow to make


def _prompted(shard: Tokens) -> np.ndarray:
    """bool [records]: its first token behind `begin` is no target."""
    second = shard.edges[:-1] + 1
    long = second < shard.edges[1:]
    found = np.zeros(len(long), dtype=bool)
    found[long] = shard.ids[second[long]] < 0
    return found


# -- rows --------------------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """A record, or a part of one, in a row."""

    shard: int
    start: int  # of its ids, in those of the shard
    length: int  # of its ids; the last one is a target alone
    targets: int  # of its ids after the first


class Row(NamedTuple):
    inputs: np.ndarray  # int64 [context]
    targets: np.ndarray  # int64 [context]; IGNORE where there is none
    weights: np.ndarray  # float32 [context], of the shards
    positions: np.ndarray  # int64 [context], each record's from 0 on


class Rows:
    """Rows for training from shards that are Parquet files of records, each with the weight of its loss.

    columns: that of the text; those of a prompt and of its response; or that of conversations, with their `loss`.
    folder: see `tokenise`."""

    def __init__(
        self,
        shards: list[Path],
        weights: list[float],
        codec: Codec,
        context: int,
        seed: int,
        columns: Sequence[str] = ("text",),
        folder: Path | None = None,
        loss: str = ASSISTANT,
    ):
        self.shards = [tokenise(path, codec, columns, folder, loss) for path in shards]
        self.first = np.cumsum([0, *(len(shard.edges) - 1 for shard in self.shards)])  # record of each shard
        self.weights, self.end, self.context, self.seed = weights, codec.end, context, seed
        self.apart = len(columns) > 1
        self.counted = np.arange(context)
        # records with a prompt that are longer than a row, and so lose what is beyond it
        self.shortened = sum(int((_prompted(each) & (np.diff(each.edges) > context + 1)).sum()) for each in self.shards)

    def __iter__(self) -> Iterator[Row]:
        return map(self.row, self.endless())

    def epoch(self, number: int) -> Iterator[Row]:
        """Every record once."""
        return map(self.row, self.plan(number))

    def endless(self) -> Iterator[list[Piece]]:
        """The plans of all epochs, one after the other."""
        for number in count():
            row = None
            for row in self.plan(number):
                yield row
            if row is None:
                raise UserError("domain", None, "holds nothing to learn from: its records are empty")

    def plan(self, number: int) -> Iterator[list[Piece]]:
        """The rows of an epoch, each as what lies in it."""
        rng = generator(self.seed, "epoch", number)
        order = rng.permutation(self.first[-1])
        for at in range(0, len(order), WINDOW):
            pieces = list(self._pieces(order[at : at + WINDOW]))
            if self.apart:
                rows = [[i] for i in range(len(pieces))]
            else:
                rows = fit([piece.length for piece in pieces], self.context + 1)
            for r in rng.permutation(len(rows)):
                yield [pieces[i] for i in rows[r]]

    def _pieces(self, chosen: np.ndarray) -> Iterator[Piece]:
        """Those records; texts are cut where they are longer than a row, what answers a prompt ends there."""
        of = np.searchsorted(self.first, chosen, side="right") - 1
        for shard, record in zip(of.tolist(), (chosen - self.first[of]).tolist(), strict=True):
            edges, ids = self.shards[shard]
            start, stop = int(edges[record]), int(edges[record + 1])
            for at in range(start, stop - 1, self.context):
                length = min(self.context + 1, stop - at)
                yield Piece(shard, at, length, int(np.count_nonzero(ids[at + 1 : at + length] >= 0)))
                if ids[start + 1] < 0:
                    break

    def row(self, pieces: Sequence[Piece]) -> Row:
        """What lies in a row as arrays; of nothing, padding."""
        inputs = np.full(self.context, self.end, dtype=np.int64)
        targets = np.full(self.context, IGNORE, dtype=np.int64)
        weights = np.zeros(self.context, dtype=np.float32)
        positions = np.empty(self.context, dtype=np.int64)
        at = 0
        for shard, start, length, _ in pieces:
            n, ids = length - 1, self.shards[shard].ids[start : start + length]
            inputs[at : at + n] = known(ids[:-1])
            targets[at : at + n] = np.where(ids[1:] < 0, IGNORE, ids[1:])
            weights[at : at + n] = self.weights[shard]
            positions[at : at + n] = self.counted[:n]
            at += n
        positions[at:] = self.counted[: self.context - at]
        return Row(inputs, targets, weights, positions)
