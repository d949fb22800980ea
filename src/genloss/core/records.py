"""Records: what flows through the loop, as Parquet tables.

Columns of every table: `id` (content-derived), the payload (`text` for the text domain), `origin` (real or
synthetic), `generation` (0 for real, n if made by model n-1), `parents` (ids that it was made from), `recipe`.
Those that a model sampled have `finish`: end, or length where they were cut off. Curated tables add `score` and
`reason`.

    for part in records.parts(table):       # of a table that may be larger than memory: a part at a time
        texts = part.column("text").to_pylist()

A table of more than PART bytes lies in a file without a name that is mapped into memory (`spilled`), which the kernel
takes from there when it needs the room; it is used like any other. Python lists of its values do not.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genloss.core.errors import UserError

REAL, SYNTHETIC = "real", "synthetic"
FINISH = "finish"  # column of generated records: how they ended
ENDED, CUT = "end", "length"  # the model said so; the limit was reached
OWN = ("id", "origin", "generation", "parents", "recipe")  # columns of every table, beside its payload
GROUP = 128  # rows of arrays that are read together
PART, SHARE = 1 << 22, 1 << 24  # bytes of a file that are read together, and written
ROWS = 1024  # that are read together at most: equal texts take no bytes in a file
NARROW = 1 << 16  # the same, of columns that hold ids, numbers and short words alone


def normal(text: str) -> str:
    """What two texts share that count as copies: case and white space do not matter."""
    return " ".join(text.lower().split())


def digests(texts: Iterable[str]) -> np.ndarray:
    """16 bytes [n] of each text (BLAKE2b): equal if and only if the texts are, and numpy sorts them."""
    found = bytearray()  # 16 bytes each; objects would be 60
    for text in texts:
        found += hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
    return np.frombuffer(found, dtype="S16")


def among(wanted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """bool [n]: which of the wanted values are among the known ones, which rise."""
    if len(known) == 0:
        return np.zeros(len(wanted), dtype=bool)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return known[at] == wanted


def record_ids(payloads: Sequence[str | bytes], *, salt: str, first: int = 0) -> list[str]:
    """32 hex digits for each payload, from its content, its position (from `first` on) and `salt` (origin, generation,
    recipe).

    The position is part of it, so that two records with equal content stay two records.
    """
    head = salt.encode() + b"\x00"
    return [
        hashlib.sha256(head + str(i).encode() + b"\x00" + (p.encode() if isinstance(p, str) else p)).hexdigest()[:32]
        for i, p in enumerate(payloads, first)
    ]


def make_table(
    payload: dict[str, Sequence | pa.Array],
    *,
    origin: str,
    generation: int,
    recipe: str,
    parents: Sequence[Sequence[str]] | None = None,
    first: int = 0,
) -> pa.Table:
    """A table of records with ids. `payload` maps column names to equally long sequences; the ids hash the
    columns of text in it (or, for arrays, their bytes). first: records that came before them, where a table is made
    part by part."""
    columns = {k: v if isinstance(v, (pa.Array, pa.ChunkedArray)) else pa.array(v) for k, v in payload.items()}
    n = len(next(iter(columns.values())))
    values = [_contents(columns[k]) for k in sorted(columns)]
    contents = [b"\x1f".join(row) for row in zip(*values, strict=True)]
    return pa.table(
        {
            "id": pa.array(record_ids(contents, salt=f"{origin}/{generation}/{recipe}", first=first), pa.string()),
            **columns,
            "origin": pa.array([origin] * n, pa.string()),
            "generation": pa.array([generation] * n, pa.int32()),
            "parents": pa.array(parents if parents is not None else [[]] * n, pa.list_(pa.string())),
            "recipe": pa.array([recipe] * n, pa.string()),
        }
    )


def with_finish(table: pa.Table, finish: Sequence[str]) -> pa.Table:
    """Records with how each ended, which is no part of their ids."""
    return table.append_column(FINISH, pa.array(finish, pa.string()))


def cut_off(table: pa.Table) -> np.ndarray:
    """bool [n]: which records were cut off at the limit, so that what ends them is no end. Real records are not: a
    passage ends where it was cut from its document, and that is what models learn."""
    if FINISH not in table.column_names:
        return np.zeros(len(table), dtype=bool)
    same = pc.fill_null(pc.equal(table.column(FINISH), CUT), False)
    return np.asarray(same.to_numpy(), dtype=bool)


def _contents(column: pa.Array | pa.ChunkedArray) -> list[bytes]:
    """What is hashed of each value: the bytes of an array or of binary data, the text of anything else."""
    if pa.types.is_binary(column.type):
        return column.to_pylist()
    if not pa.types.is_fixed_size_list(column.type):
        return [str(v).encode() for v in column.to_pylist()]
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return [
        row.tobytes()
        for row in flat.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    ]


def parts(table: pa.Table, rows: int = ROWS) -> Iterator[pa.Table]:
    """A table in parts of at most so many rows, which are no copies."""
    for batch in table.to_reader(max_chunksize=rows):
        yield pa.Table.from_batches([batch])


def grouped(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of about `size` bytes, each of one chunk. Of no table, none."""
    held: list[pa.Table] = []
    total = 0
    for table in tables:
        held.append(table)
        total += table.nbytes
        if total > size:
            yield concat(held).combine_chunks()
            held, total = [], 0
    if held:
        yield concat(held).combine_chunks()


def spilled(tables: Iterable[pa.Table], folder: Path | None = None) -> pa.Table:
    """One table of at least one; beyond PART bytes it is mapped from a file in `folder` (None: the system's for
    temporary files), which has no name and is gone with the table."""
    groups = grouped(tables, PART)
    some = list(itertools.islice(groups, 2))
    if len(some) == 1:
        return some[0]
    with tempfile.TemporaryFile(dir=folder) as file:
        with pa.ipc.new_file(file, some[0].schema) as made:
            for group in itertools.chain(some, groups):
                made.write_table(group)
                pa.default_memory_pool().release_unused()  # what Arrow keeps for later grows with every group
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_file(pa.py_buffer(mapped)).read_all()


def write(table: pa.Table, path: Path) -> None:
    """Write a Parquet file aside and rename it into place."""
    whole = table.nbytes <= SHARE or _arrays(table.schema)
    write_parts([table] if whole else parts(table), path)


def write_parts(tables: Iterable[pa.Table], path: Path) -> int:
    """Write at least one table as a Parquet file, in row groups of about SHARE bytes. Returns how many records."""
    rest, count = iter(tables), 0
    first = next(rest)
    with _written(first.schema, path) as put:
        for group in grouped(itertools.chain([first], rest), SHARE):
            put(group)
            count += len(group)
            pa.default_memory_pool().release_unused()
    return count


def _arrays(schema: pa.Schema) -> bool:
    return any(pa.types.is_fixed_size_list(t) for t in schema.types)


@contextlib.contextmanager
def _written(schema: pa.Schema, path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """A function that adds a table to a Parquet file, which is renamed into place at the end. Arrays of random numbers
    do not compress, and are left as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    arrays = _arrays(schema)
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(aside, schema, **(options if arrays else {"compression": "zstd"})) as file:
        yield lambda table: file.write_table(table, row_group_size=GROUP if arrays else None)
    os.replace(aside, path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A damaged file is a UserError that says what to do."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            str(path),
            None,
            f"cannot be read ({str(error).splitlines()[0]}); delete it and run again to restore it",
        ) from None


def read(path: Path, columns: list[str] | None = None, rows: tuple[int, int] | None = None) -> pa.Table:
    """Read a Parquet file of records, or `rows` (first, count) of it; a damaged file is a UserError that says what to
    do."""
    with _reading(path):
        # not read_table, which builds a data set first: five times as slow on files of this size
        file = pq.ParquetFile(path, memory_map=True)
        if rows is None:
            return file.read(columns=columns)
        first, size = rows
        if not 0 <= first <= first + size <= file.metadata.num_rows:
            raise IndexError(f"{path} has {file.metadata.num_rows} rows; {size} from {first} on are not all there")
        edges = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))])
        groups = [i for i in range(file.num_row_groups) if edges[i] < first + size and edges[i + 1] > first]
        return file.read_row_groups(groups, columns=columns).slice(first - edges[groups[0]] if groups else 0, size)


def count(path: Path) -> int:
    """How many records a file has."""
    with _reading(path):
        return int(pq.ParquetFile(path).metadata.num_rows)


def batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """A file in parts of about PART bytes, those of `columns` that it has: texts of more than 2 GiB are no column of
    Arrow, whose offsets have 32 bits."""
    with _reading(path):
        file = pq.ParquetFile(path, memory_map=True)
        named = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            size = max(1, min(ROWS, about.num_rows * PART // max(PART, about.total_byte_size)))
            for batch in file.iter_batches(size, row_groups=[group], columns=named):
                yield pa.Table.from_batches([batch])


def columns(path: Path) -> list[str]:
    """The names of a file's columns."""
    with _reading(path):
        return list(pq.read_schema(path).names)


def scan(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Narrow columns of a file, those that it has, in parts of NARROW rows. What is repeated (`reason`, `recipe`) is
    read as a dictionary."""
    with _reading(path):
        named = [name for name in pq.read_schema(path).names if name in columns]
        words = [name for name in named if name in ("reason", "recipe")]
        file = pq.ParquetFile(path, memory_map=True, read_dictionary=words)
        for batch in file.iter_batches(NARROW, columns=named):
            yield pa.Table.from_batches([batch])


def _taken(files: Sequence[Path], rows: np.ndarray) -> Iterator[pa.Table]:
    """Those rows of some files, one after the other, in parts; before them none, which have the columns."""
    with _reading(files[0]):
        yield pq.read_schema(files[0]).empty_table()
    first = 0
    for path in files:
        for part in batches(path):
            low, high = np.searchsorted(rows, [first, first + len(part)])
            if low < high:
                yield part.take(pa.array(rows[low:high] - first))
            first += len(part)


def choose(source: Path, rows: np.ndarray, target: Path) -> None:
    """Write those rows of a file (int64, rising, perhaps more than once) to another, in row groups of about SHARE
    bytes; no more is in memory."""
    write_parts(_taken([source], rows), target)


def take(files: Sequence[Path], rows: np.ndarray) -> pa.Table:
    """Those rows (int64, rising) of some files, one after the other; nothing else of them is held."""
    return concat(list(_taken(files, rows))).combine_chunks()


def load(path: Path, folder: Path | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """A file as a table that may be larger than memory (`spilled`)."""
    with _reading(path):
        schema = pq.read_schema(path)
    named = [name for name in schema.names if columns is None or name in columns]
    empty = schema.empty_table().select(named)
    return spilled(itertools.chain([empty], batches(path, named)), folder)


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="default")
