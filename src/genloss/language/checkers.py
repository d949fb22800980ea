"""What a text may be: a pattern, a grammar, JSON, XML, a program, a language, of some topics.

A checker reads what a model wrote and executes none of it. `genloss.evaluate.validity` measures how many records one
accepts, `genloss.curate.format` keeps those."""

from __future__ import annotations

import ast
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from genloss.core.contracts import Experiment, Plugin
from genloss.core.errors import UserError, first_line, one_of, require
from genloss.core.hashes import sha256_file
from genloss.core.places import in_project

SECONDS = 1.0  # a pattern may take for one record: some take longer than the universe has


class Checker(Plugin, ABC):
    """Accepts a text or not."""

    @abstractmethod
    def valid(self, texts: Sequence[str]) -> np.ndarray:
        """bool [n] of n texts, which are untrusted."""


@dataclass
class Pattern(Checker):
    """Texts that a regular expression (of the package `regex`) matches from begin to end. One that takes longer than a
    second is not valid."""

    pattern: str = "???"

    def check(self, experiment: Experiment) -> None:
        import regex

        try:
            regex.compile(self.pattern)
        except regex.error as error:
            raise UserError("pattern", self.pattern, f"is no regular expression ({error})") from None

    def valid(self, texts: Sequence[str]) -> np.ndarray:
        import regex

        compiled = regex.compile(self.pattern)

        def matches(text: str) -> bool:
            try:
                return compiled.fullmatch(text, timeout=SECONDS) is not None
            except TimeoutError:
                return False

        return np.array([matches(text) for text in texts], dtype=bool)


@dataclass
class Grammar(Checker):
    """Texts of a context-free language: a file in the notation of Lark, whose first rule is `start` (`pip install
    'genloss[grammar]'`). Relative paths start at the project."""

    path: str = "???"

    @cached_property
    def _parser(self) -> Any:
        try:
            import lark
        except ImportError:
            raise UserError("path", self.path, "needs Lark; pip install 'genloss[grammar]'") from None
        try:
            return lark.Lark(in_project(self.path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, lark.exceptions.LarkError) as error:
            raise UserError("path", self.path, f"is no grammar of Lark ({first_line(error)})") from None

    def check(self, experiment: Experiment) -> None:
        assert self._parser

    def places(self) -> tuple[str, ...]:
        return ("path",)

    def fingerprint(self) -> str:
        return sha256_file(in_project(self.path))

    def valid(self, texts: Sequence[str]) -> np.ndarray:
        import lark

        def parses(text: str) -> bool:
            try:
                self._parser.parse(text)
            except (lark.exceptions.LarkError, RecursionError):
                return False
            return True

        return np.array([parses(text) for text in texts], dtype=bool)


@dataclass
class Python(Checker):
    """Programs whose syntax is that of Python 3; they are parsed, and not run."""

    def valid(self, texts: Sequence[str]) -> np.ndarray:
        def parses(text: str) -> bool:
            try:
                with warnings.catch_warnings(action="ignore"):  # of odd escapes and comparisons
                    ast.parse(text)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                return False
            return True

        return np.array([parses(text) for text in texts], dtype=bool)


def _json(text: str) -> Any:
    """The value that a text is in JSON (RFC 8259: no NaN). ValueError if it is none."""

    def no(name: str) -> Any:
        raise ValueError(name)

    try:
        return json.loads(text, parse_constant=no)
    except RecursionError:
        raise ValueError("too deep") from None


@dataclass
class Json(Checker):
    """Texts that are JSON, of a JSON Schema if there is one. What a schema names elsewhere is not fetched."""

    schema: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _validator(self) -> Any:
        from jsonschema import Draft202012Validator
        from referencing import Registry

        return Draft202012Validator(self.schema, registry=Registry())

    def check(self, experiment: Experiment) -> None:
        if not self.schema:
            return
        try:
            from jsonschema import Draft202012Validator, SchemaError
        except ImportError:
            raise UserError("schema", None, "needs jsonschema; pip install 'genloss[grammar]'") from None
        try:
            Draft202012Validator.check_schema(self.schema)
        except SchemaError as error:
            raise UserError("schema", self.schema, f"is no JSON Schema ({first_line(error)})") from None

    def valid(self, texts: Sequence[str]) -> np.ndarray:
        def accepts(text: str) -> bool:
            try:
                value = _json(text)
            except ValueError:
                return False
            return not self.schema or bool(self._validator.is_valid(value))

        return np.array([accepts(text) for text in texts], dtype=bool)


@dataclass
class Xml(Checker):
    """Texts that are well-formed XML. One that declares a document type is not: entities can grow without bound."""

    def valid(self, texts: Sequence[str]) -> np.ndarray:
        from xml.parsers import expat

        def refuse(*_: Any) -> None:
            raise ValueError

        def parses(text: str) -> bool:
            parser = expat.ParserCreate()
            parser.StartDoctypeDeclHandler = refuse
            try:
                parser.Parse(text.encode(), True)
            except (expat.ExpatError, ValueError):  # ValueError: also of lone surrogates
                return False
            return True

        return np.array([parses(text) for text in texts], dtype=bool)


@dataclass
class Length(Checker):
    """Texts of so many words, that white space separates."""

    min_words: int = 1
    max_words: int = 100_000

    def __post_init__(self) -> None:
        require(self.min_words >= 0, "min_words", self.min_words, "at least 0")
        require(self.max_words >= self.min_words, "max_words", self.max_words, f"at least min_words={self.min_words}")

    def valid(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self.min_words <= len(text.split()) <= self.max_words for text in texts], dtype=bool)


@dataclass
class Language(Checker):
    """Texts of one of these languages (ISO 639-1), as py3langid tells 97 of them apart (Lui & Baldwin 2012; pip install
    'genloss[language]'). Of a few words it is often wrong."""

    only: list[str] = field(default_factory=lambda: ["en"])

    def check(self, experiment: Experiment) -> None:
        require(bool(self.only), "only", self.only, "one language or more")
        try:
            known = [str(code) for code in _identifier().labels]
        except ImportError:
            raise UserError("only", self.only, "needs py3langid; pip install 'genloss[language]'") from None
        for name in self.only:
            one_of("only", name, known)

    def valid(self, texts: Sequence[str]) -> np.ndarray:
        classify = _identifier().classify
        return np.array([classify(text)[0] in self.only for text in texts], dtype=bool)


@lru_cache(maxsize=1)  # reads its model
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
