"""Generate: a recipe asks model n-1 (or a teacher) for records.

A new recipe is one dataclass derived from `Recipe` and one file `conf/recipe/NAME.yaml`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from genloss.core.contracts import Domain, Report, Runtime, silent

if TYPE_CHECKING:
    from genloss.experiment import Experiment


@dataclass(frozen=True)
class Request:
    """What a recipe may read when it makes the records of one round."""

    domain: Domain
    round: int
    seed: int
    model: Path  # model n-1
    data: Path  # real data
    previous: Path  # records that survived the round before (the real training data in round 1)
    scratch: Path  # survives a kill
    runtime: Runtime = field(default_factory=Runtime)
    report: Report = silent
    history: tuple[
        Path, ...
    ] = ()  # records that survived rounds 1 to n-1, in this order; only if `reads` has "history"


class Recipe(ABC):
    """`generate` returns a table of records (genloss.core.records.make_table) and small JSON results; numbers in their `counts` are
    metrics, generate/NAME."""

    reads: tuple[str, ...] = ()  # of "data", "previous" and "history": what else than model n-1 the records depend on
    problems: bool = False  # whether its records are problems with answers, those of domain=reasoning

    def check(self, experiment: Experiment) -> None:
        """Refuse, before any work, options that contradict the rest of the config (UserError)."""

    def fingerprint(self) -> str:
        """Hash of what the records depend on outside the recipe's own module: files of the user, plug-ins of its own; '' if
        there is nothing."""
        return ""

    @abstractmethod
    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]: ...
