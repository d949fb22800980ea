"""Words, in any script: what white space separates, and in scripts that write none between words each character."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

import regex

T = TypeVar("T")

# Thai, Lao, Tibetan, Burmese, Khmer, kana, Han
UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_ALONE = re.compile(f"([{UNSPACED}])")


def spaced(text: str) -> str:
    """The text with spaces around each character of a script that writes none; other text as it is."""
    return text if text.isascii() else _ALONE.sub(r" \1 ", text)


def characters(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON can write and no file can hold: U+FFFD stands for them."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


TERM = regex.compile(r"[\p{L}\p{M}\p{N}_']+")


def terms(text: str) -> list[str]:
    """Runs of letters with their marks, digits and apostrophes, lower-cased; of unspaced scripts single characters."""
    return TERM.findall(spaced(text.lower()))


_STANDING = regex.compile(rf"(?:(?![{UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}_'])+|[\p{{L}}\p{{M}}\p{{N}}_']")


def standing(text: str) -> list[tuple[str, int, int]]:
    """The terms of a text, each with where it begins and ends there."""
    return [(m.group().lower(), m.start(), m.end()) for m in _STANDING.finditer(text)]


def grams(said: Sequence[T], n: int) -> Iterator[tuple[T, ...]]:
    """The n-grams of a text's words, in their order; none where it has fewer than n."""
    return zip(*(said[i:] for i in range(n)), strict=False)


def words(text: str) -> list[str]:
    return spaced(text).split()
