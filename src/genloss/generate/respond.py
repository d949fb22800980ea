"""Label fresh prompts: the last model answers n that no model has seen the answers of, k times each.

    genloss run domain=reasoning recipe.n=12000 rounds=1 curation=exact
    genloss run domain=reasoning recipe.samples=8 recipe.temperature=1.0 curation=best_of
    genloss run domain=instruct recipe=respond curation=exact

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
from genloss.core.capabilities import Finishes, Repeats, Responds, able
from genloss.core.contracts import Decoding, Experiment, Plugin
from genloss.core.errors import UserError, require
from genloss.generate import Recipe, Request


@dataclass
class Respond(Recipe, Repeats, Finishes):
    """Each round takes the next n prompts of the pool, so no two rounds share one, and every arm labels the same."""

    name: str = "respond"
    n: int = 2400  # fresh prompts a round
    samples: int = 1  # k: responses to each
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    bias: float = 1.0  # 1: sampled; 0: greedy
    chunk: int = 512  # responses computed together; part of the identity, since kernels differ between batch sizes
    new_tokens: int = 0  # of a response; 0: as many as domain.context leaves
    stop: list[str] = field(default_factory=list)  # a response ends before the first of these texts that it writes
    constraint: dict[str, Any] = field(default_factory=dict)  # what a response must match: regex, choice, or json
    backend: Any = field(default_factory=dict)
    needs = (Responds,)

    def __post_init__(self) -> None:
        require(self.n >= 1, "n", self.n, "at least 1 prompt a round")
        require(self.samples >= 1, "samples", self.samples, "at least 1 response to each prompt")
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
            new_tokens=self.new_tokens,
            stop=self.stop,
            constraint=self.constraint,
        )

    def parts(self) -> Mapping[str, Plugin]:
        return {"backend": self.writer}

    def check(self, experiment: Experiment) -> None:
        self.writer.check_decoding(self.decoding(1))
        if name := experiment.model.architecture():
            self.writer.check_architecture(name)
        domain, rounds = able(experiment.domain, Responds), experiment.rounds
        if domain.converses:
            self.writer.check_conversations()
        most = f"at most {domain.pool // max(1, rounds)}: domain.pool={domain.pool} fresh prompts for {rounds} rounds"
        require(self.n * rounds <= domain.pool, "n", self.n, most)

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        domain = able(request.domain, Responds)
        pool = fresh(request, self.n)
        asked = pool.take(pa.array(np.repeat(np.arange(self.n), self.samples)))
        said = self.writer.of(request.model, request.data, request.runtime).respond(
            domain.prompts(asked),
            self.decoding(domain.context),
            seed=request.seed,
            scratch=request.scratch,
            report=request.report,
            account=request.account,
        )
        answered = domain.answered(asked, said.texts)
        payload = {name: answered.column(name) for name in answered.column_names if name not in records.OWN}
        table = records.make_table(
            payload,
            origin=records.SYNTHETIC,
            generation=request.round,
            recipe=self.name,
            parents=[[i] for i in asked.column("id").to_pylist()],
        )
        counts = {"cut_off": said.finish.count(records.CUT), **self.writer.spent(request.scratch)}
        return records.with_finish(table, said.finish), {"tokens": said.tokens, "counts": counts}


def fresh(request: Request, n: int) -> pa.Table:
    """The next n records of the pool. UserError, in round 1, if it holds fewer than all rounds need: conversations that
    were too long, or are no pairs, are not in it, whatever domain.pool says."""
    path = request.data / "prompts.parquet"
    rounds = max(request.round, request.rounds)
    there, needed = records.count(path), request.round * n
    if there < rounds * n:
        why = f"is too many: the data stage has left {there} fresh prompts, and {rounds} rounds need {rounds * n}"
        raise UserError("recipe.n", n, f"{why}; lower it, or raise domain.pool")
    return records.read(path, rows=(needed - n, n))
