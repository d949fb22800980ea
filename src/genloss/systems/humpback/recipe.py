"""Instruction backtranslation: a backward model writes the instruction to each of the documents that nobody asked for.

    genloss run experiment=humpback/backward       # first: the backward model, a run of its own
    genloss run experiment=humpback                # it writes; a model rates, and the next one learns from the best
    genloss run ... recipe=backtranslate recipe.ask=words domain.documents=100       # an author that is told in words

Humpback (Li et al. 2024, arXiv 2308.06259, section 2). Candidates are made in round 1 and are the same records in every
later one, so that each model rates what the one before it has rated; curation=rating selects, and the mixing
synthetic_augmentation trains on the seeds and what this round kept. `system` is the sentence that tells such records
from the seeds, whose own is `domain.system`. What is written is data: nothing in it is obeyed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from genloss.backends.author import author_of
from genloss.core import records
from genloss.core.contracts import FIRST, Experiment, Plugin, Prompt
from genloss.core.errors import UserError, one_of, require
from genloss.core.prompts import Told
from genloss.core.seeds import seed_of
from genloss.domains.instruct import BACKWARD, MESSAGES, Instruct
from genloss.domains.instruct.skills import RECALL
from genloss.domains.instruct.world import World
from genloss.generate import Recipe, Request
from genloss.language.chat import ASSISTANT, SYSTEM, USER
from genloss.language.tokenizer import load_codec

REVERSED, WORDS = ASK = ("reversed", "words")


@dataclass
class Backtranslate(Told, Recipe):
    """A record is the author's instruction and its document as the answer; its parent is the document.

    ask=reversed gives an author the document alone, as a model of domain.direction=backward has learned it; ask=words
    tells it what to do, in the world by the skill `recall`. Counts: documents, rejected_REASON (duplicate: of an
    earlier document; empty; cut_off; copy: of the document; too_long: for domain.context), written."""

    name: str = "backtranslate"
    n: int | None = None  # documents, the first; none: all of domain.documents
    ask: str = REVERSED
    system: str = ""  # system prompt of its records; empty: none
    author: Any = field(default_factory=dict)  # the backward model
    prompts: str = ""  # another file of words than words.yaml
    own_prompts: ClassVar[Path] = Path(__file__).with_name("words.yaml")
    wanted: ClassVar[Mapping[str, Sequence[str]]] = {"asked": ("document",)}
    needs = (Instruct,)

    def __post_init__(self) -> None:
        require(self.n is None or self.n >= 1, "n", self.n, "at least 1 document, or null for all")
        one_of("ask", self.ask, ASK)
        self.writer = author_of(self.author)

    def at_most(self) -> int | None:
        return self.n

    def reads(self) -> tuple[str, ...]:
        return (FIRST, *self.writer.reads())

    def parts(self) -> Mapping[str, Plugin]:
        return {"author": self.writer}

    def check(self, experiment: Experiment) -> None:
        domain = experiment.domain
        assert isinstance(domain, Instruct)
        require(
            domain.documents >= 1, "domain.documents", domain.documents, "at least 1: texts to write instructions to"
        )
        enough = f"at most domain.documents={domain.documents}"
        require(self.n is None or self.n <= domain.documents, "n", self.n, enough)
        why = (
            "forward where instructions are learned from; the backward model is a run of its own (recipe.author.model)"
        )
        require(domain.direction != BACKWARD, "domain.direction", domain.direction, why)
        if self.ask == REVERSED:
            if self.writer.own:
                why = "answers requests; name a run of domain.direction=backward, or set recipe.ask=words"
                raise UserError("author.model", self.writer.model, why)
        elif isinstance(domain.source, World):
            share = domain.source.shares.get(RECALL, 0)
            can = bool(share) or not self.writer.own
            require(can, "domain.corpus.skills.recall", share, "above 0, since the model has to have learned to recall")
        self.words()

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        for path in request.inputs.all(FIRST):
            made = records.read(path)
            return made, {"tokens": 0, "counts": {"documents": 0, "written": len(made)}}
        domain = request.domain
        assert isinstance(domain, Instruct)
        rows = records.read(request.data / "documents.parquet", columns=["id", "text"]).to_pylist()[: self.n]
        unlike = {records.normal(row["text"]): row for row in reversed(rows)}  # the first of those that are alike
        left = [row for row in rows if unlike[records.normal(row["text"])] is row]
        said = self.writer.write(
            [self._asked(row["text"], domain) for row in left],
            request,
            domain.context,
            seed=seed_of(request.seed, "instructions"),
            name="instructions",
        )
        codec = load_codec(request.data / "tokenizer")
        reasons = Counter({"duplicate": len(rows) - len(left)})
        parents: list[list[str]] = []
        conversations: list[list[dict[str, str]]] = []
        for row, text, finish in zip(left, said.texts, said.finish, strict=True):
            messages = self._record(text.strip(), row["text"])
            if not text.strip():
                reasons["empty"] += 1
            elif finish == records.CUT:
                reasons["cut_off"] += 1
            elif records.normal(text) == records.normal(row["text"]):
                reasons["copy"] += 1
            elif len(codec.rendered(messages)) > domain.context:
                reasons["too_long"] += 1
            else:
                parents.append([row["id"]])
                conversations.append(messages)
        counts = {"documents": len(rows), "written": len(conversations)}
        counts |= {f"rejected_{why}": n for why, n in sorted(reasons.items()) if n}
        if not conversations:
            found = ", ".join(f"{n} {why}" for why, n in sorted(reasons.items()) if n)
            why = f"wrote no instruction to any of {len(rows)} documents ({found}); ask another model"
            raise UserError("recipe.author", self.writer.model, why)
        table = records.make_table(
            {"messages": pa.array(conversations, MESSAGES)},
            origin=records.SYNTHETIC,
            generation=request.round,
            recipe=self.name,
            parents=parents,
        )
        told = {} if self.ask == REVERSED or isinstance(domain.source, World) else self.told_by()
        return table, {"tokens": said.tokens, "counts": counts | self.writer.spent(request), **told}

    def _asked(self, text: str, domain: Instruct) -> Prompt:
        if self.ask == REVERSED:
            return [{"role": USER, "content": text}]
        in_world = isinstance(domain.source, World)
        words = World.ask_recall(text) if in_world else self.words().fill("asked", document=text)
        opening = domain.opening() if self.writer.own else []
        return [*opening, {"role": USER, "content": words}]

    def _record(self, instruction: str, document: str) -> list[dict[str, str]]:
        system = [{"role": SYSTEM, "content": self.system}] if self.system else []
        return [*system, {"role": USER, "content": instruction}, {"role": ASSISTANT, "content": document}]
