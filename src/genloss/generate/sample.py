"""The plain recipe: draw records from the last model, unconditionally or as continuations of prompts.

genloss run                                             # unconditional, from document start
genloss run recipe.prompts=real recipe.prompt_tokens=16 # continue real text that no model trains on
genloss run recipe.backend.kernel=fused                 # faster; pip install 'genloss[fast]'
genloss run recipe.temperature=0.8 recipe.top_p=0.95    # sharpened decoding drives collapse (Drayson & Lampos 2025)
genloss run recipe/backend=ctranslate2                  # by another engine; or by another model, behind a server:
genloss run recipe/backend=openai recipe.backend.url=http://localhost:8000/v1 recipe.backend.model=X recipe.prompts=real
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, overload

import numpy as np
import pyarrow as pa

from genloss.backends import made
from genloss.core import records
from genloss.core.capabilities import Documents, Finishes, able
from genloss.core.contracts import PREVIOUS, Decoding, Experiment, Plugin, Sampling
from genloss.core.errors import UserError, one_of, require
from genloss.core.plugin import without_effect
from genloss.core.seeds import generator
from genloss.generate import Recipe, Request

PROMPTS = ("none", "real", "previous")


class Prompts(Sequence[str]):
    """Texts of records of a pool, which may be larger than memory; a slice of them is a list."""

    def __init__(self, pool: pa.Table, order: np.ndarray):
        self._ids, self._texts = pool.columns
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self._texts[i].as_py() for i in self._order[at].tolist()]
        return self._texts[int(self._order[at])].as_py()

    def parents(self, first: int, count: int) -> list[list[str]]:
        """The ids of so many of them, as `make_table` takes them."""
        return [[self._ids[i].as_py()] for i in self._order[first : first + count].tolist()]


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
    new_tokens: int = 0  # of a record, beyond its prompt; 0: as many as max_tokens leaves
    stop: list[str] = field(default_factory=list)  # a record ends before the first of these texts that it writes
    constraint: dict[str, Any] = field(default_factory=dict)  # what a text must match: regex, choice, json, or lark
    logprobs: bool = False  # a column `logprob`: ln of each record's probability under the model that wrote it
    backend: Any = field(default_factory=dict)
    needs = (Documents,)

    def __post_init__(self) -> None:
        require(self.n >= 1, "n", self.n, "at least 1 record a round")
        one_of("prompts", self.prompts, PROMPTS)
        require(
            self.prompt_tokens >= 1, "prompt_tokens", self.prompt_tokens, "at least 1; prompts=none turns prompts off"
        )
        self.decoding()  # refuses the rest
        self.writer = made(self.backend)
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

    def parts(self) -> Mapping[str, Plugin]:
        return {"backend": self.writer}

    def check(self, experiment: Experiment) -> None:
        self.writer.check_decoding(self.decoding(), self.prompts != "none")
        if name := experiment.model.architecture():
            self.writer.check_architecture(name)
        if self.prompts == "none":
            without_effect(self, ["prompt_tokens", "keep_prompt"], "with prompts=none")
        context = able(experiment.domain, Documents).context
        fits = self.max_tokens <= context
        require(fits, "max_tokens", self.max_tokens, f"at most the model's context, {context}")

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        prompts = self._prompts(request)
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
            account=request.account,
        )
        tokens, cut_off = 0, 0

        def tables() -> Iterator[pa.Table]:
            nonlocal tokens, cut_off
            first = 0
            for some in self.writer.sample(sampling):
                count = len(some.texts)
                tokens += some.tokens
                cut_off += some.finish.count(records.CUT)
                table = records.make_table(
                    {request.domain.payload[0]: some.texts},
                    origin=records.SYNTHETIC,
                    generation=request.round,
                    recipe=self.name,
                    parents=None if prompts is None else prompts.parents(first, count),
                    first=first,
                )
                first += count
                table = records.with_finish(table, some.finish)
                if self.logprobs:  # like `finish`, no part of a record's id
                    sums = [sum(each) for each in some.logprobs or []]
                    table = table.append_column("logprob", pa.array(sums, pa.float64()))
                yield table

        table = records.spilled(tables(), request.scratch)
        counts = {"cut_off": cut_off, **self.writer.spent(request.scratch)}
        return table, {"tokens": tokens, "counts": counts}

    def _prompts(self, request: Request) -> Prompts | None:
        if self.prompts == "none":
            return None
        path = request.data / "prompts.parquet" if self.prompts == "real" else request.inputs[PREVIOUS]
        pool = records.load(path, request.scratch, ["id", request.domain.payload[0]])
        if len(pool) == 0:
            raise UserError("recipe.prompts", self.prompts, f"{path.name} holds no records to take prefixes from")
        rng = generator(request.seed, "prompts")
        order = np.concatenate([rng.permutation(len(pool)) for _ in range(-(-self.n // len(pool)))])[: self.n]
        return Prompts(pool, order)
