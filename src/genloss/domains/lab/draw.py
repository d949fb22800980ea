"""Draw points from the lab's models (genloss.domains.lab), n for every chain.

genloss run domain=gaussian recipe.n=400                  # four times as many as real ones
genloss run domain=gaussian recipe.bias=0.9               # sampling bias (Alemohammad et al. 2024)
genloss run domain=categorical recipe.temperature=0.9     # sharpened (Marchi et al. 2024)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from genloss.core.capabilities import Points, able
from genloss.core.contracts import Experiment
from genloss.core.errors import UserError, require
from genloss.core.records import SYNTHETIC, make_table
from genloss.domains.lab import Lab
from genloss.domains.lab.chains import COLUMN, column_of, marked
from genloss.generate import Recipe, Request


@dataclass
class Draw(Recipe):
    name: str = "draw"
    n: int = 100  # points a chain and round
    bias: float = 1.0  # λ: gaussian samples N(μ, λ v); 1 is faithful
    truncation: float = 0.0  # gaussian: no point further than this many standard deviations; 0: off
    temperature: float = 1.0  # categorical
    top_p: float = 1.0  # categorical
    needs = (Points,)

    def __post_init__(self) -> None:
        require(self.n >= 1, "n", self.n, "at least 1 point a round")
        require(0 < self.bias <= 1, "bias", self.bias, "in (0, 1] (1: faithful)")
        require(self.truncation >= 0, "truncation", self.truncation, "at least 0 standard deviations (0: off)")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1] (1: off)")

    def at_most(self) -> int:
        return self.n

    def check(self, experiment: Experiment) -> None:
        """Refuse options that the domain would not look at."""
        lab = able(experiment.domain, Lab)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("name", "n", *lab.options) and value != field.default:
                raise UserError(
                    field.name, value, f"is no option of the domain {lab.name}; leave it at {field.default}"
                )

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        lab = able(request.domain, Lab)
        payload = {COLUMN: column_of(lab.made(request, self))}
        request.report(self.n, self.n, "records")
        table = make_table(payload, origin=SYNTHETIC, generation=request.round, recipe=self.name)
        return marked(table, lab.chains, whole=True), {"points": self.n}
