"""Generate: a recipe asks model n-1 (or a teacher) for records.

A new recipe is one dataclass derived from `Recipe` and one file `conf/recipe/NAME.yaml`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from genloss.core.contracts import Domain, Inputs, Plugin, Report, Runtime, silent


@dataclass(frozen=True)
class Request:
    """What a recipe may read when it makes the records of one round."""

    domain: Domain
    round: int
    seed: int
    model: Path  # model n-1
    data: Path  # real data
    inputs: Inputs  # what else the recipe `reads`
    scratch: Path  # survives a kill
    runtime: Runtime = field(default_factory=Runtime)
    report: Report = silent
    rounds: int = 0  # of the run, to refuse at once what a later one would lack; records do not depend on it
    account: Path = field(kw_only=True)  # where a sweep, or a run without one, counts what it has paid


class Recipe(Plugin, ABC):
    """`generate` returns a table of records (genloss.core.records.make_table) and small JSON results; numbers in their
    `counts` are metrics, generate/NAME. The records depend on model n-1, on the real data, and on what the recipe
    `reads`."""

    name: str  # of its records

    def at_most(self) -> int | None:
        """Records that it can make in a round; none: only the round knows. A mix that needs more is refused at once."""
        return None

    @abstractmethod
    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]: ...
