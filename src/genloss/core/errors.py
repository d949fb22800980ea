"""The one exception that a user causes: it prints as one line; every other exception is a bug.

A message names the key (or file), the value, and the remedy, in that order, and the command exits with 2.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Something that the user can mend. `str(error)` is the whole message, on one line."""

    def __init__(self, key: str, value: Any, remedy: str):
        self.key, self.value, self.remedy = key, value, remedy
        super().__init__(key, value, remedy)  # the three arguments, so that it pickles across processes

    def __str__(self) -> str:
        shown = "" if self.value is None else f"={self.value}"
        return _written_out(without_secrets(" ".join(f"{self.key}{shown}: {self.remedy}".split())))

    def under(self, prefix: str, names: Iterable[str] = ()) -> UserError:
        """The same error, with the key placed below `prefix` in the config. names: as `naming` has them."""
        placed = self.naming(prefix, names)
        return type(self)(f"{prefix}.{self.key}" if prefix else self.key, placed.value, placed.remedy)

    def naming(self, prefix: str, names: Iterable[str]) -> UserError:
        """The same error, with `NAME=VALUE`, `NAME.MORE=VALUE` and `~NAME` in its remedy placed below `prefix`, so that
        they can be typed as they stand. names: of the options that lie there."""
        known = "|".join(map(re.escape, names))
        if not (prefix and known):
            return self
        typed = rf"(?<![\w./@=~-])(?=(?:{known})(?:\.\w+)*=\S)|(?<=~)(?=(?:{known})\b)"
        remedy = re.sub(typed, f"{prefix}.", self.remedy)
        return type(self)(self.key, self.value, remedy)


class NotThere(UserError):
    """A run directory that a config names, and that another command may still make."""


def require(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Refuse `key=value` unless `condition` holds; `allowed` says what is allowed."""
    if not condition:
        raise UserError(key, value, f"must be {allowed}")


def without_secrets(text: str) -> str:
    """Text without what addresses in it have before their hosts and behind their paths."""
    hidden = re.sub(r"://[^\s/]*@", "://***@", text)
    return re.sub(r"(://[^\s'\")?#;]*[?#;])[^\s'\")]+", r"\1***", hidden)


def _written_out(line: str) -> str:
    """A line without codes for the terminal, and marks that turn its direction: they are written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def one_line(error: BaseException) -> str:
    """All that an error of a library says, or its kind where it says nothing."""
    return _written_out(without_secrets(" ".join(str(error).split()))) or type(error).__name__


def first_line(error: BaseException) -> str:
    """What an error of a library says first, or its kind where it says nothing; with what follows a colon."""
    lines = [line for each in without_secrets(str(error)).splitlines() if (line := each.strip())]
    while len(lines) > 1 and lines[0].endswith(":"):
        lines[:2] = [" ".join(lines[:2])]
    return _written_out(lines[0]) if lines else type(error).__name__


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_name(key: str, name: Any) -> None:
    """The one rule for what becomes a folder's name, a column or a tag: short, and the same on every file system and
    server."""
    ok = NAME.fullmatch(str(name)) and isinstance(name, str | int | float)
    allowed = "a name: a letter or digit, then at most 63 letters, digits, '_', '-' and '.'"
    require(bool(ok), key, repr(name) if isinstance(name, str) else "null" if name is None else name, allowed)


def nearest(name: str, names: Iterable[str]) -> str:
    """' Did you mean X?' where a known name is close to `name`, and the list of names in any case."""
    known = sorted(set(names))  # one may be there twice: a study and a paper of the scoreboard
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}known: {', '.join(known)}"


def one_of(key: str, value: str, names: Iterable[str]) -> None:
    """Refuse a name that is not known, suggesting the nearest one."""
    known = list(names)
    if value not in known:
        raise UserError(key, value, f"unknown; {nearest(value, known)}")
