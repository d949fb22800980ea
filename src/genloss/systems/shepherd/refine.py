"""Refine: solve, have a critic look at it, try again from the step that it names (Shepherd; Wang et al. 2023, arXiv
2308.04592).

    genloss run experiment=critic                                                 # first: the critic
    genloss run experiment=shepherd curation=none recipe=refine metrics=[accuracy,refinement]
    genloss run experiment=shepherd curation=none recipe=refine recipe.restart=start metrics=[refinement]   # control

A solution that the critic rejects is begun again: the model is given its own steps before the one that the critic
names. The controls try as often, from the start (`restart: start`), or from a step that chance names (`restart:
random`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import able
from genloss.core.contracts import Experiment, Replies
from genloss.core.errors import one_of, require
from genloss.core.seeds import generator, seed_of
from genloss.domains.reasoning import Reasoning
from genloss.domains.reasoning.solve import KEPT_COLUMNS, Solve
from genloss.generate import Request
from genloss.systems.shepherd.critic import TrainedCritic, find, worked
from genloss.systems.shepherd.task import Said

RESTART = ("step", "start", "random")


@dataclass
class Refine(Solve):
    """As `Solve`, with at most `revisions` further tries at what the critic rejects. Beside the response, a record has
    `first` (its first response), `critiques` (of every response, the last one too; "unparseable" where the critic wrote
    none) and `attempts` (responses drawn). What is still rejected in the end stays, for curation to judge."""

    name: str = "refine"
    critic: str = "???"  # run directory of a critic, as curation.critic.path
    revisions: int = 3
    restart: str = "step"  # before the step that the critic names; start: from the beginning; random: before any step

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.revisions <= 100, "revisions", self.revisions, "from 1 to 100; recipe=solve has none")
        one_of("restart", self.restart, RESTART)

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        worked(experiment)
        self._critic()

    def _critic(self) -> TrainedCritic:
        return find(self.critic, self.chunk, "recipe.critic")

    def fingerprint(self) -> str:
        return self._critic().fingerprint()

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        table, result = super().generate(request)
        critic = self._critic()
        problems, first = (table.column(name).to_pylist() for name in ("prompt", "response"))
        responses, finish = list(first), table.column(records.FINISH).to_pylist()
        said = self._said(critic, problems, responses, request)
        critiques = [[str(s) if s else "unparseable"] for s in said]
        left = [i for i, s in enumerate(said) if s is None or not s.ok]
        tokens: int = result["tokens"]
        for attempt in range(1, self.revisions + 1):
            if not left:
                break
            starts = self._starts([responses[i] for i in left], [said[i] for i in left], attempt, request)
            prompts = [problems[i] + start for i, start in zip(left, starts, strict=True)]
            more = self._continue(prompts, attempt, request)
            tokens += more.tokens
            for i, start, end, finished in zip(left, starts, more.texts, more.finish, strict=True):
                responses[i], finish[i] = start + end, finished
            new = self._said(critic, [problems[i] for i in left], [responses[i] for i in left], request)
            for i, s in zip(left, new, strict=True):
                said[i] = s
                critiques[i].append(str(s) if s else "unparseable")
            left = [i for i in left if not ((s := said[i]) and s.ok)]
        payload: dict[str, Any] = {"prompt": table.column("prompt"), "response": responses}
        payload |= {key: table.column(key) for key in KEPT_COLUMNS}
        payload |= {"first": first, "critiques": critiques, "attempts": [len(c) for c in critiques]}
        made = records.make_table(
            payload,
            origin=records.SYNTHETIC,
            generation=request.round,
            recipe=self.name,
            parents=table.column("parents").to_pylist(),
        )
        counts = {"attempts": sum(payload["attempts"]), "rejected": len(left), "cut_off": finish.count(records.CUT)}
        return records.with_finish(made, finish), {"tokens": tokens, "counts": counts}

    @staticmethod
    def _said(
        critic: TrainedCritic, problems: Sequence[str], responses: Sequence[str], request: Request
    ) -> list[Said | None]:
        return critic.critiques(problems, responses, request.runtime, request.report)

    def _starts(
        self, responses: Sequence[str], said: Sequence[Said | None], attempt: int, request: Request
    ) -> list[str]:
        """What of each rejected response is kept: the text before a step, without the semicolon, so that the model
        reads the same tokens as when it wrote them."""
        chance = generator(request.seed, "restart", attempt).random(len(responses))
        starts = []
        for response, s, u in zip(responses, said, chance, strict=True):
            parts = response.split(";")
            keep = 0
            if self.restart == "random":
                keep = int(u * len(parts))
            elif self.restart == "step" and s is not None:
                keep = s.step - 1
            starts.append(";".join(parts[:keep]))
        return starts

    def _continue(self, prompts: list[str], attempt: int, request: Request) -> Replies:
        """The model's continuations, and the number of tokens drawn."""
        domain = able(request.domain, Reasoning)
        scratch = request.scratch / f"revision-{attempt:02d}"
        scratch.mkdir(parents=True, exist_ok=True)
        return domain.backend(request.model, request.data, request.runtime).respond(
            prompts,
            self.decoding(domain.context),
            seed=seed_of(request.seed, "revision", attempt),
            scratch=scratch,
            report=request.report,
        )
