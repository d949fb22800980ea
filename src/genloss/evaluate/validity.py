"""Validity: the share of records that a checker of yours accepts, and how many different ones there are.

    P=genloss.evaluate.validity
    genloss run metrics=[heldout,validity] +metrics.validity.checker._target_=$P.Python
    genloss run metrics=[heldout,validity] "+metrics.validity.checker={_target_: $P.Pattern, pattern: '[A-Z].*[.]'}"

A checker reads what a model wrote and executes none of it: a regular expression, a grammar, the syntax of a language,
or a class of your own with `valid`. Read both numbers: a model that repeats one valid record has valid = 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from genloss.core.contracts import Plugin
from genloss.core.errors import UserError
from genloss.core.plugin import build
from genloss.evaluate import Evidence, SampleMetric
from genloss.language.checkers import Checker, Grammar, Json, Pattern, Python, Xml

__all__ = ["Checker", "Grammar", "Json", "Pattern", "Python", "Validity", "Xml"]  # configs name them here


@dataclass
class Validity(SampleMetric):
    """valid: share of the records that the checker accepts; valid_distinct: different ones among those, as a share of
    the records. Records differ if their characters do."""

    panels = ("valid",)
    checker: Any = None  # a `Checker` and its fields

    def __post_init__(self) -> None:
        if not self.checker:
            remedy = "name one: +metrics.validity.checker._target_=genloss.evaluate.validity.Python"
            raise UserError("checker", None, f"is missing: {remedy}")
        self._checker = build(self.checker, Checker, "checker")

    def parts(self) -> Mapping[str, Plugin]:
        return {"checker": self._checker}

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        texts = evidence.texts(table)
        valid = self._checker.valid(texts)
        different = {text for text, ok in zip(texts, valid, strict=True) if ok}
        return {"valid": float(valid.mean()), "valid_distinct": len(different) / len(texts)}
