"""The plain recipe: draw records from the last model, unconditionally or as continuations of prompts.

genloss run                                             # unconditional, from document start
genloss run recipe.prompts=real recipe.prompt_tokens=16 # continue real text that no model trains on
genloss run recipe.kernel=fused                         # several times as fast; pip install 'genloss[fast]'
genloss run recipe.temperature=0.8 recipe.top_p=0.95    # sharpened decoding drives collapse (Drayson & Lampos 2025)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Documents, Finishes, able
from genloss.core.contracts import PREVIOUS, Decoding, Experiment, Sampling
from genloss.core.errors import UserError, one_of, require
from genloss.core.plugin import without_effect
from genloss.core.seeds import generator
from genloss.generate import Recipe, Request

PROMPTS = ("none", "real", "previous")


@dataclass
class Sample(Recipe, Finishes):
    """Ancestral sampling. The options from `temperature` to `bias` are those of `Decoding`, which says in which order
    they act."""

    name: str = "sample"
    n: int = 1024  # records a round
    max_tokens: int = 128  # the longest record, in tokens, its prompt included
    prompts: str = "none"  # none: document start; real: prefixes from the prompts split; previous: last round's records
    prompt_tokens: int = 16  # length of a prefix
    keep_prompt: bool = False  # whether the record's text contains its prompt
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    bias: float = 1.0
    chunk: int = 256  # records computed together; part of the identity, since kernels differ between batch sizes
    kernel: str = "torch"  # or fused: several times as fast for Llama-like models on CPUs, with other roundings
    needs = (Documents,)

    def __post_init__(self) -> None:
        require(self.n >= 1, "n", self.n, "at least 1 record a round")
        one_of("prompts", self.prompts, PROMPTS)
        require(
            self.prompt_tokens >= 1, "prompt_tokens", self.prompt_tokens, "at least 1; prompts=none turns prompts off"
        )
        self.decoding()  # refuses the rest
        if self.prompts != "none":
            room = self.prompt_tokens < self.max_tokens
            allowed = f"less than max_tokens={self.max_tokens}, or there is no room for a continuation"
            require(room, "prompt_tokens", self.prompt_tokens, allowed)

    def decoding(self) -> Decoding:
        shared = {f.name for f in fields(Decoding)}
        return Decoding(**{f.name: getattr(self, f.name) for f in fields(self) if f.name in shared})

    def at_most(self) -> int:
        return self.n

    def reads(self) -> tuple[str, ...]:
        return (PREVIOUS,) if self.prompts == "previous" else ()

    def check(self, experiment: Experiment) -> None:
        if self.prompts == "none":
            without_effect(self, ["prompt_tokens", "keep_prompt"], "with prompts=none")
        context = able(experiment.domain, Documents).context
        fits = self.max_tokens <= context
        require(fits, "max_tokens", self.max_tokens, f"at most the model's context, {context}")

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        prompts, parents = self._prompts(request)
        sampling = Sampling(
            model=request.model,
            data=request.data,
            n=self.n,
            seed=request.seed,
            decoding=self.decoding(),
            prompts=prompts,
            scratch=request.scratch,
            runtime=request.runtime,
            report=request.report,
        )
        columns: dict[str, Any] = {}
        tokens = 0
        for payload, count in able(request.domain, Documents).sample(sampling):
            tokens += count
            for key, values in payload.items():
                columns.setdefault(key, []).extend(values)
        finish = columns.pop(records.FINISH)
        table = records.make_table(
            columns, origin=records.SYNTHETIC, generation=request.round, recipe=self.name, parents=parents
        )
        counts = {"cut_off": finish.count(records.CUT)}
        return records.with_finish(table, finish), {"tokens": tokens, "counts": counts}

    def _prompts(self, request: Request) -> tuple[list[str] | None, list[list[str]] | None]:
        if self.prompts == "none":
            return None, None
        path = request.data / "prompts.parquet" if self.prompts == "real" else request.inputs[PREVIOUS]
        pool = records.read(path, columns=["id", request.domain.payload[0]])
        if len(pool) == 0:
            raise UserError("recipe.prompts", self.prompts, f"{path.name} holds no records to take prefixes from")
        rng = generator(request.seed, "prompts")
        order = np.concatenate([rng.permutation(len(pool)) for _ in range(-(-self.n // len(pool)))])[: self.n]
        chosen = pool.take(pa.array(order))
        return chosen.column(1).to_pylist(), [[i] for i in chosen.column("id").to_pylist()]
