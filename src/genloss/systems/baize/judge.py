"""Self-distillation with feedback (SDF; Xu et al. 2023): of several answers to a request, the best by a judge.

    genloss run experiment=baize/real_sdf domain.corpus.path=my.jsonl recipe.samples=4

The judge is any `Author`: a model of the run, of another run, a saved one, or one behind a server. Its reply is free
text, of which the first number from 1 to 100 is the score. What has none is dropped as unparseable, and so counted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.backends.author import author_of
from genloss.core.contracts import Experiment, Plugin
from genloss.core.errors import UserError
from genloss.core.prompts import Told
from genloss.curate import Context, Decision, RecordCurator, decision
from genloss.curate.choose import best_of_each, needs_several
from genloss.domains.instruct import Instruct
from genloss.domains.instruct.choosing import requests
from genloss.domains.instruct.judging import tell_if_alike
from genloss.language.chat import USER

LOWEST, HIGHEST = 1, 100
NUMBER = re.compile(r"(?<![\d.,-])(\d{1,3})(?![\d]|[.,]\d)")
ROOM = 24  # tokens of a reply


def score_of(text: str) -> float:
    """The first whole number from 1 to 100; nan if there is none."""
    found = (int(n) for n in NUMBER.findall(text))
    return float(next((n for n in found if LOWEST <= n <= HIGHEST), np.nan))


@dataclass
class Judge(Told, RecordCurator):
    """Of the answers to one request keep the one with the highest score; of equal ones the first."""

    author: Any = field(default_factory=dict)  # who judges
    prompts: str = ""  # a file like judge.yaml; empty: that one
    needs = (Instruct,)
    own_prompts = Path(__file__).with_name("judge.yaml")
    wanted = {"asked": ("conversation", "answer")}  # noqa: RUF012 (as its base has it)

    def __post_init__(self) -> None:
        self.judge = author_of(self.author, bias=0.0, new_tokens=ROOM)

    def parts(self) -> Mapping[str, Plugin]:
        return {"author": self.judge}

    def reads(self) -> tuple[str, ...]:
        return self.judge.reads()

    def check(self, experiment: Experiment) -> None:
        self.words()
        try:
            self.judge.writer.check_conversations()
        except UserError as error:
            raise error.under("author", ["backend"]) from None
        needs_several(experiment, "_target_", type(self).__name__)

    def decide(self, table: pa.Table, context: Context) -> Decision:
        domain = context.domain
        assert isinstance(domain, Instruct)
        words = self.words()
        asked = []
        for messages in table.column("messages").to_pylist():
            before = "\n".join(f"{m['role']}: {m['content']}" for m in messages[:-1])
            text = words.fill("asked", conversation=before, answer=messages[-1]["content"])
            asked.append([{"role": USER, "content": text}])
        said = self.judge.write(asked, context, domain.context, seed=context.seed, name="judge")
        score = np.array([score_of(text) for text in said.texts])
        tell_if_alike(score[~np.isnan(score)], "the judge")  # so that it keeps the first answer to each request
        best = best_of_each(requests(table), np.where(np.isnan(score), -np.inf, score)) & ~np.isnan(score)
        reason = np.where(np.isnan(score), "unparseable", "not the best").astype(object)
        return decision(best, score, reason)
