"""Draw points from the lab's models (genloss.domains.lab), n for every chain.

genloss run domain=gaussian recipe.n=400                  # four times as many as real ones
genloss run domain=gaussian recipe.bias=0.9               # sampling bias (Alemohammad et al. 2024)
genloss run domain=categorical recipe.temperature=0.9     # sharpened (Marchi et al. 2024)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from genloss.core.contracts import Sampling
from genloss.core.errors import UserError, require
from genloss.core.records import SYNTHETIC, make_table
from genloss.domains.lab.chains import marked
from genloss.generate import Recipe, Request


@dataclass
class Draw(Recipe):
    name: str = "draw"
    n: int = 100  # points a chain and round
    bias: float = 1.0  # λ: gaussian samples N(μ, λ v); 1 is faithful
    truncation: float = 0.0  # gaussian: no point further than this many standard deviations; 0: off
    temperature: float = 1.0  # categorical
    top_p: float = 1.0  # categorical

    def __post_init__(self) -> None:
        require(self.n >= 1, "n", self.n, "at least 1 point a round")
        require(0 < self.bias <= 1, "bias", self.bias, "in (0, 1] (1: faithful)")
        require(self.truncation >= 0, "truncation", self.truncation, "at least 0 standard deviations (0: off)")
        require(self.temperature > 0, "temperature", self.temperature, "greater than 0 (1: off)")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1] (1: off)")

    def only(self, *names: str, domain: str) -> None:
        """Refuse every option but `names`: the domain would not look at it."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("name", "n", *names) and value != field.default:
                raise UserError(
                    f"recipe.{field.name}", value, f"is no option of the domain {domain}; leave it at {field.default}"
                )

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        sampling = Sampling(
            model=request.model,
            data=request.data,
            n=self.n,
            seed=request.seed,
            options=self,
            prompts=None,
            scratch=request.scratch,
            runtime=request.runtime,
            report=request.report,
        )
        ((columns, count),) = request.domain.sample(sampling)
        table = make_table(columns, origin=SYNTHETIC, generation=request.round, recipe=self.name)
        chains: int = request.domain.config("generate")["chains"]
        return marked(table, chains, whole=True), {"points": count}
