"""Label fresh problems: the last model answers n problems that no model has seen, k times each.

    genloss run domain=reasoning recipe.n=12000 rounds=1 curation=exact
    genloss run domain=reasoning recipe.samples=8 recipe.temperature=1.0 curation=best_of

The loop of Feng et al. (2024, arXiv 2406.07515): a generator labels, curation selects, a fresh model trains on what is
kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.backends import made
from genloss.core import records
from genloss.core.capabilities import Finishes, Repeats, able
from genloss.core.contracts import Decoding, Experiment, Plugin
from genloss.core.errors import require
from genloss.domains.reasoning import Reasoning
from genloss.generate import Recipe, Request

KEPT_COLUMNS = ("answer", "task", "difficulty")  # of a problem, in the record of a response to it


@dataclass
class Solve(Recipe, Repeats, Finishes):
    """Each round takes the next n problems of the pool, so no two rounds share one, and every arm labels the same."""

    name: str = "solve"
    n: int = 2400  # fresh problems a round
    samples: int = 1  # k: responses to each
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    bias: float = 1.0  # 1: sampled; 0: greedy
    chunk: int = 512  # responses computed together; part of the identity, since kernels differ between batch sizes
    constraint: dict[str, Any] = field(default_factory=dict)  # what a response must match: regex, choice, or json
    backend: Any = field(default_factory=dict)
    needs = (Reasoning,)

    def __post_init__(self) -> None:
        require(self.n >= 1, "n", self.n, "at least 1 problem a round")
        require(self.samples >= 1, "samples", self.samples, "at least 1 response to each problem")
        varied = self.samples == 1 or self.bias > 0
        require(varied, "samples", self.samples, "1 where bias=0: greedy decoding gives the same response every time")
        self.decoding(1)  # refuses the rest
        self.writer = made(self.backend)

    def decoding(self, context: int) -> Decoding:
        return Decoding(
            context,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            bias=self.bias,
            chunk=self.chunk,
            constraint=self.constraint,
        )

    def parts(self) -> Mapping[str, Plugin]:
        return {"backend": self.writer}

    def check(self, experiment: Experiment) -> None:
        self.writer.check_decoding(self.decoding(1))
        if name := experiment.model.architecture():
            self.writer.check_architecture(name)
        pool, rounds = able(experiment.domain, Reasoning).pool, experiment.rounds
        most = f"at most {pool // max(1, rounds)}: domain.pool={pool} fresh problems for {rounds} rounds"
        require(self.n * rounds <= pool, "n", self.n, most)

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        domain = able(request.domain, Reasoning)
        first = (request.round - 1) * self.n
        pool = records.read(request.data / "prompts.parquet", rows=(first, self.n))
        problems = pool.take(pa.array(np.repeat(np.arange(self.n), self.samples)))
        said = self.writer.of(request.model, request.data, request.runtime).respond(
            problems.column("prompt").to_pylist(),
            self.decoding(domain.context),
            seed=request.seed,
            scratch=request.scratch,
            report=request.report,
            account=request.account,
        )
        payload: dict[str, Any] = {"prompt": problems.column("prompt"), "response": said.texts}
        payload |= {key: problems.column(key) for key in KEPT_COLUMNS}
        parents = [[i] for i in problems.column("id").to_pylist()]
        table = records.make_table(
            payload, origin=records.SYNTHETIC, generation=request.round, recipe=self.name, parents=parents
        )
        counts = {"cut_off": said.finish.count(records.CUT), **self.writer.spent(request.scratch)}
        return records.with_finish(table, said.finish), {"tokens": said.tokens, "counts": counts}
