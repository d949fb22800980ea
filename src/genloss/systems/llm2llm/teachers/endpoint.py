"""A teacher behind an OpenAI-compatible chat endpoint, a hosted or a local one.

    export OPENAI_API_KEY=...            # only there: never in the config, the records or a message
    genloss run domain=reasoning recipe=llm2llm recipe/teacher=endpoint recipe.teacher.model=gpt-4o-mini
    genloss run ... recipe/teacher=endpoint recipe.teacher.url=http://localhost:8000/v1 recipe.teacher.model=my-model

The messages have the structure of Lee et al. (2024, appendix): a tutor's rules, one worked example, then the missed
problem with its gold answer; asked again, it is shown what was kept, and asked for others. The words are in tutor.yaml.
A chat model at temperature 1 does not give the same bytes twice; what it gave is kept, and a rerun finds it.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from genloss.backends import endpoint
from genloss.backends.spending import LAST
from genloss.backends.thoughts import without_thoughts
from genloss.core.contracts import Experiment
from genloss.core.errors import UserError, require
from genloss.core.prompts import Prompts, Told
from genloss.core.seeds import seed_of
from genloss.domains.reasoning.tasks import Problem
from genloss.generate import Request
from genloss.systems.llm2llm.teachers import CUT_OFF, UNPARSEABLE, Ask, Teacher, read

LISTS = 100  # beginnings of a list in a reply that are tried

PROMPTS = Path(__file__).with_name("tutor.yaml")


WANTED = {
    "system": (),
    "example_asked": (),
    "example_told": (),
    "asked": ("problem", "answer", "before", "many"),
    "one": (),
    "several": ("n",),
    "kept": ("kept",),
    "unused": (),
}


def messages(words: Prompts, ask: Ask) -> endpoint.Messages:
    before = ""
    if ask.kept:
        before = words.fill("kept", kept="\n".join(f"- {p.prompt}" for p in ask.kept))
    elif ask.asked:
        before = words["unused"]
    asked = words.fill(
        "asked",
        problem=ask.parent.prompt,
        answer=ask.parent.solution or ask.parent.answer,
        before=before,
        many=words["one"] if ask.n == 1 else words.fill("several", n=ask.n),
    )
    return [
        {"role": "system", "content": words["system"]},
        {"role": "user", "content": words["example_asked"]},
        {"role": "assistant", "content": words["example_told"]},
        {"role": "user", "content": asked},
    ]


@dataclass
class Endpoint(endpoint.Endpoint, Told, Teacher):
    """A chat model that is asked once for each parent with problems missing. What it thinks aloud is no answer."""

    temperature: float | None = 1.0  # null: not sent; some models refuse it
    top_p: float | None = 1.0  # null: not sent
    prompts: str = ""  # a file like tutor.yaml; empty: that one
    paid = True
    own_prompts = PROMPTS
    wanted = WANTED

    def __post_init__(self) -> None:
        super().__post_init__()
        cold, top = self.temperature, self.top_p
        require(cold is None or cold >= 0, "temperature", cold, "at least 0, or null: not sent")
        require(top is None or 0 < top <= 1, "top_p", top, "in (0, 1], or null: not sent")
        self.last: deque[str] = deque(maxlen=LAST)  # why a problem could not be used; '' if it could

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        self.words()

    def question(self, said: endpoint.Messages, stream: int = 0) -> endpoint.Question:
        sent = {"temperature": self.temperature, "top_p": self.top_p}
        return endpoint.Question({"messages": said} | {k: v for k, v in sent.items() if v is not None}, stream)

    def teach(self, asks: list[Ask], request: Request) -> Iterator[tuple[int, list[Problem | str]]]:
        """In their order, so that a rerun, which finds all replies on the disk, keeps the same problems."""
        if asks[0].attempt == 0:
            self.begin_round(request.scratch, request.account)
        words = self.words()
        streams = [seed_of(request.seed, "teacher", ask.number, ask.asked) for ask in asks]
        asked = [self.question(messages(words, ask), stream) for ask, stream in zip(asks, streams, strict=True)]
        try:
            with closing(self.replies(enumerate(asked), request.runtime.workers)) as found:
                for i, reply in found:
                    yield i, [CUT_OFF] * asks[i].n if reply.cut else parse(reply.text, asks[i], request)
        except UserError as error:
            raise error.under("recipe.teacher", [f.name for f in fields(self)]) from None

    def told(self, reason: str) -> None:
        self.last.append(reason)
        refused = Counter(filter(None, self.last))
        if len(self.last) == LAST and refused.total() > self.budget.refused * LAST:
            self.last.clear()  # the next call of the same command may try as many again
            why = f"{refused.total()} of the last {LAST} problems could not be used"
            reasons = ", ".join(f"{n} {name}" for name, n in refused.most_common(3))
            remedy = "ask another model, or raise it, and the same command goes on"
            raise UserError("recipe.teacher.budget.refused", self.budget.refused, f"{why} ({reasons}); {remedy}")

    def spent(self, request: Request) -> dict[str, float]:
        return self.costs(request.scratch)


def parse(text: str, ask: Ask, request: Request) -> list[Problem | str]:
    """What a reply holds, at most `ask.n` of it; a reply without a list is unparseable, an empty list is empty."""
    listed = final_list(without_thoughts(text))
    if listed is None:
        return [UNPARSEABLE]
    found: list[Problem | str] = []
    for item in listed[: ask.n]:
        problem, answer = (item.get(key) if isinstance(item, dict) else None for key in ("problem", "answer"))
        if isinstance(problem, str) and isinstance(answer, (str, int)):
            found.append(read(problem.strip(), str(answer).strip(), ask, request))
        else:
            found.append(UNPARSEABLE)
    return found or ["empty"]


def final_list(text: str) -> list[Any] | None:
    """The last JSON list of objects in a text: models wrap it in words, and those that come before it may hold drafts
    of it. An empty list if that is all there is."""
    decoder = json.JSONDecoder()
    found, start = None, 0
    for _ in range(LISTS):
        start = text.find("[", start)
        if start < 0:
            break
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        start = end  # what stands inside of a list is no list of its own
        if value == [] or isinstance(value[0], dict):
            found = value or found or value
    return found
