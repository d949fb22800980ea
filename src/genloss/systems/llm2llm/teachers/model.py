"""A teacher that is a saved language model: it is shown the problem and its gold answer, and goes on with a new one.

genloss run domain=reasoning recipe=llm2llm recipe/teacher=model recipe.teacher.path=my/model

Problem: 3+4*2:\\nAnswer: 4*2=8;3+8=11\\n\\nProblem:      <- shown, from `template`; the model continues
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genloss.backends import made
from genloss.backends.thoughts import without_thoughts
from genloss.core.contracts import Decoding, Experiment, Plugin
from genloss.core.errors import UserError, require
from genloss.core.records import CUT
from genloss.core.seeds import seed_of
from genloss.domains.reasoning.tasks import Problem
from genloss.generate import Request
from genloss.language import saved
from genloss.language.tokenizer import tell_ends, use_saved
from genloss.systems.llm2llm.teachers import UNPARSEABLE, Ask, Teacher, read


@dataclass
class Written(Teacher):
    """Any saved causal language model, named as that of model=pretrained is. What it writes is read by the template's
    own words; the rest is unparseable."""

    path: str = "???"
    tokenizer: str = ""  # a saved one; empty: the model's, and of a model without one the student's
    template: str = "Problem: {prompt}\nAnswer: {response}\n\n"
    max_tokens: int = 128  # of what is shown and what is written, together
    temperature: float = 1.0
    top_p: float = 1.0
    chunk: int = 64  # texts computed together; part of the identity
    backend: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        before, middle, rest = self.template.partition("{prompt}")
        between, response, after = rest.partition("{response}")
        require(
            bool(middle and response and between) and "{prompt}" not in rest and "{response}" not in before + after,
            "template",
            self.template,
            "a text with {prompt}, then something, then {response}, each once",
        )
        self._words = before, between, after
        self.decoding()  # refuses the rest
        self.writer = made(self.backend)

    def decoding(self) -> Decoding:
        return Decoding(self.max_tokens, temperature=self.temperature, top_p=self.top_p, chunk=self.chunk)

    def parts(self) -> Mapping[str, Plugin]:
        return {"backend": self.writer}

    def check(self, experiment: Experiment) -> None:
        if self.writer.elsewhere:
            why = "is another model, and this teacher a saved one; use recipe/teacher=endpoint"
            raise UserError("backend", type(self.writer).__name__, why)
        self.writer.check_decoding(self.decoding())
        saved.check_saved(self.path, "path")
        if name := saved.architecture(self.path):
            self.writer.check_architecture(name)
        if self.tokenizer:
            saved.check_saved(self.tokenizer, "tokenizer", saved.ONE_OF)

    def places(self) -> tuple[str, ...]:
        return ("path", "tokenizer")

    def fingerprint(self) -> str:
        model, own = saved.folder_of(self.path), self._tokenizer()
        return saved.identity(model) + (saved.hash_of(saved.folder_of(own), saved.TOKENIZER_FILES) if own else "")

    def show(self, ask: Ask) -> str:
        before, between, after = self._words
        gold = ask.parent.solution or ask.parent.answer
        return f"{before}{ask.parent.prompt}{between}{gold}{after}{before}"

    def parse(self, text: str, finish: str) -> tuple[str, str] | None:
        """(prompt, response) of a continuation; None if it does not keep to the template, or stops early."""
        _, between, after = self._words
        prompt, found, rest = without_thoughts(text).partition(between)
        response, ended, _ = rest.partition(after) if after else (rest, finish != CUT, "")
        return (prompt.strip(), response.strip()) if found and ended else None

    def teach(self, asks: list[Ask], request: Request) -> Iterator[tuple[int, list[Problem | str]]]:
        shown = [self.show(ask) for ask in asks for _ in range(ask.n)]
        attempt = asks[0].attempt
        backend = self.writer.of(saved.folder_of(self.path), self._data(request), request.runtime)
        scratch = request.scratch / "teacher" / str(attempt)
        seed = seed_of(request.seed, "teacher", attempt)
        said = backend.respond(shown, self.decoding(), seed=seed, scratch=scratch)
        written = zip(said.texts, said.finish, strict=True)
        for i, ask in enumerate(asks):
            found = [self.parse(*next(written)) for _ in range(ask.n)]
            yield i, [read(*parts, ask, request) if parts else UNPARSEABLE for parts in found]

    def _data(self, request: Request) -> Path:
        """A folder with the teacher's tokenizer in it."""
        own = self._tokenizer()
        if not own:
            return request.data
        folder = request.scratch / "teacher"
        use_saved(own, folder / "tokenizer", "recipe.teacher.tokenizer")
        tell_ends(folder / "tokenizer", own)
        return folder

    def _tokenizer(self) -> str:
        """The name of the teacher's own tokenizer; '' if it has none."""
        return self.tokenizer or (self.path if (saved.folder_of(self.path) / "tokenizer.json").is_file() else "")
