"""The one exception that a user causes: it prints as one line; every other exception is a bug.

A message names the key (or file), the value, and the remedy, in that order, and the command exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Something that the user can mend. `str(error)` is the whole message, on one line."""

    def __init__(self, key: str, value: Any, remedy: str):
        self.key, self.value, self.remedy = key, value, remedy
        super().__init__(key, value, remedy)  # the three arguments, so that it pickles across processes

    def __str__(self) -> str:
        shown = "" if self.value is None else f"={self.value}"
        return " ".join(f"{self.key}{shown}: {self.remedy}".split())

    def under(self, prefix: str) -> UserError:
        """The same error, with the key placed below `prefix` in the config."""
        return type(self)(f"{prefix}.{self.key}" if prefix else self.key, self.value, self.remedy)


class NotThere(UserError):
    """A run directory that a config names, and that another command may still make."""


def require(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Refuse `key=value` unless `condition` holds; `allowed` says what is allowed."""
    if not condition:
        raise UserError(key, value, f"must be {allowed}")


def nearest(name: str, names: Iterable[str]) -> str:
    """' Did you mean X?' where a known name is close to `name`, and the list of names in any case."""
    known = sorted(names)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}known: {', '.join(known)}"


def one_of(key: str, value: str, names: Iterable[str]) -> None:
    """Refuse a name that is not known, suggesting the nearest one."""
    known = list(names)
    if value not in known:
        raise UserError(key, value, f"unknown; {nearest(value, known)}")
