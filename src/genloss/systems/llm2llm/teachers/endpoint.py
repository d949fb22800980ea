"""A teacher behind an OpenAI-compatible chat endpoint, a hosted or a local one.

    export OPENAI_API_KEY=...            # only there: never in the config, the records or a message
    genloss run domain=reasoning recipe=llm2llm recipe/teacher=endpoint recipe.teacher.model=gpt-4o-mini
    genloss run ... recipe/teacher=endpoint recipe.teacher.url=http://localhost:8000/v1 recipe.teacher.model=my-model

The messages have the structure of Lee et al. (2024, appendix): a tutor's rules, one worked example, then the missed
problem with its gold answer; asked again, it is shown what was kept, and asked for others. The words are ours. A chat
model at temperature 1 does not give the same bytes twice; what it gave is kept, and the rounds after it are
reproducible from there.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from genloss.backends import endpoint
from genloss.backends.spending import LAST
from genloss.core.errors import UserError
from genloss.domains.reasoning.tasks import Problem
from genloss.generate import Request
from genloss.systems.llm2llm.teachers import UNPARSEABLE, Ask, Teacher, read

LISTS = 100  # beginnings of a list in a reply that are tried

RULES = """You are an experienced tutor. A student was given a problem and did not solve it. You get the problem and \
its correct answer, and write new practice problems that train what the student lacks.
Rules:
1. Each new problem needs the same skill as the given one and is about as difficult.
2. It is worded and laid out exactly as the given one, with other content.
3. It is not the given problem, and no two new problems are the same.
4. It stands on its own: everything needed to solve it is in it.
5. It has exactly one correct answer.
6. Work the answer out carefully before you write it down; a wrong answer harms the student.
7. The answer is written in exactly the form of the given answer.
8. Reply with nothing but a JSON list of objects, each with the two texts "problem" and "answer"."""

EXAMPLE_ASKED = """Problem:
A crate holds 6 rows of 4 bottles, and 5 bottles are taken out. How many are left?
Correct answer:
6 * 4 = 24. 24 - 5 = 19. The answer is 19.
Write 1 new problem."""

EXAMPLE_TOLD = json.dumps(
    [
        {
            "problem": "A hall has 7 rows of 8 chairs, and 9 chairs are broken. How many can be used?",
            "answer": "7 * 8 = 56. 56 - 9 = 47. The answer is 47.",
        }
    ]
)


@dataclass
class Endpoint(endpoint.Endpoint, Teacher):
    """A chat model (its options are those of the backend) that is asked once for each parent with problems missing."""

    paid = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.last: deque[str] = deque(maxlen=LAST)  # why a problem could not be used; '' if it could

    def teach(self, asks: list[Ask], request: Request) -> Iterator[tuple[int, list[Problem | str]]]:
        """In the order in which the replies come. A reply is on the disk before the next one is asked for, and is
        removed when the recipe has dealt with it."""
        if asks[0].attempt == 0:
            self.begin(request.scratch, request.account)
        position = {ask.number: i for i, ask in enumerate(asks)}
        asked = {ask.number: messages(ask) for ask in asks}
        try:
            with closing(self.replies(asked, request.scratch / "replies", request.runtime.workers)) as found:
                for number, text in found:
                    i = position[number]
                    yield i, parse(text, asks[i], request)
        except UserError as error:
            raise error.under("recipe.teacher") from None

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
        found = self.ledger(request.scratch).spent()
        names = {"requests": "requests", "sent": "tokens_sent", "written": "tokens_written", "money": "money"}
        return {names[key]: value for key, value in found.items() if key != "money" or value}


def messages(ask: Ask) -> endpoint.Messages:
    many = "1 new problem" if ask.n == 1 else f"{ask.n} new problems"
    parts = ["Problem:", ask.parent.prompt, "Correct answer:", ask.parent.solution or ask.parent.answer]
    if ask.kept:
        parts += ["These are written already; write others:", *(f"- {p.prompt}" for p in ask.kept)]
    elif ask.attempt:
        parts += ["What you wrote before could not be used, or exists already; write something else."]
    return [
        {"role": "system", "content": RULES},
        {"role": "user", "content": EXAMPLE_ASKED},
        {"role": "assistant", "content": EXAMPLE_TOLD},
        {"role": "user", "content": "\n".join([*parts, f"Write {many}."])},
    ]


def parse(text: str, ask: Ask, request: Request) -> list[Problem | str]:
    """What a reply holds, at most `ask.n` of it; a reply without a list is unparseable, an empty list is empty."""
    listed = final_list(text)
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
