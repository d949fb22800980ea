"""Label fresh problems: the last model answers n problems that no model has seen, k times each.

    genloss run domain=reasoning recipe.n=12000 rounds=1 curation=exact
    genloss run domain=reasoning recipe.samples=8 recipe.temperature=1.0 curation=best_of

The loop of Feng et al. (2024, arXiv 2406.07515): a generator labels, curation selects, a fresh model trains on what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.contracts import Sampling
from genloss.core.errors import UserError, require
from genloss.generate import Recipe, Request
from genloss.generate.sample import Sample

if TYPE_CHECKING:
    from genloss.experiment import Experiment


def decoding(n: int, context: int, chunk: int, **options: Any) -> Sample:
    """Decoding options for n responses whose prompts are given whole."""
    return Sample(n=n, max_tokens=context, prompts="real", prompt_tokens=context - 1, chunk=chunk, **options)


@dataclass
class Solve(Recipe):
    """Each round takes the next n problems of the pool, so no two rounds share one, and every arm labels the same."""

    name: str = "solve"
    n: int = 2400  # fresh problems a round
    samples: int = 1  # k: responses to each
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    bias: float = 1.0  # 1: sampled; 0: greedy
    chunk: int = 512  # responses computed together; part of the identity, since kernels differ between batch sizes
    reads = ("data",)
    problems = True

    def __post_init__(self) -> None:
        require(self.n >= 1, "n", self.n, "at least 1 problem a round")
        require(self.samples >= 1, "samples", self.samples, "at least 1 response to each problem")
        require(
            self.samples == 1 or self.bias > 0,
            "samples",
            self.samples,
            "1 where bias=0: greedy decoding gives the same response every time",
        )
        self._options(8)  # refuses the rest

    def _options(self, context: int) -> Sample:
        return decoding(
            self.n * self.samples,
            context,
            self.chunk,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            bias=self.bias,
        )

    def check(self, experiment: Experiment) -> None:
        pool = getattr(experiment.domain, "pool", None)
        if pool is None:
            raise UserError("recipe", self.name, f"needs problems to solve, and {experiment.domain.name} has none")
        require(
            self.n * experiment.rounds <= pool,
            "recipe.n",
            self.n,
            f"at most {pool // max(1, experiment.rounds)}: domain.pool={pool} fresh problems for {experiment.rounds} rounds",
        )

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        first = (request.round - 1) * self.n
        pool = records.read(request.data / "prompts.parquet", rows=(first, self.n))
        problems = pool.take(pa.array(np.repeat(np.arange(self.n), self.samples)))
        options = self._options(request.domain.config("generate")["context"])
        sampling = Sampling(
            model=request.model,
            data=request.data,
            n=options.n,
            seed=request.seed,
            options=options,
            prompts=problems.column("prompt").to_pylist(),
            scratch=request.scratch,
            runtime=request.runtime,
            report=request.report,
        )
        responses, tokens = request.domain.respond(sampling)  # type: ignore[attr-defined]
        payload: dict[str, Any] = {"prompt": problems.column("prompt"), "response": responses}
        payload |= {key: problems.column(key) for key in ("answer", "task", "difficulty")}
        parents = [[i] for i in problems.column("id").to_pylist()]
        table = records.make_table(
            payload, origin=records.SYNTHETIC, generation=request.round, recipe=self.name, parents=parents
        )
        return table, {"tokens": tokens}
