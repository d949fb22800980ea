"""The instruct domain: conversations, and chat models that learn what the assistant says in them.

    genloss run domain=instruct curation=exact                       # a small world whose requests have exact checkers
    genloss run domain=instruct domain.loss=all                      # loss on every token, as Baize's released code
    genloss run domain=instruct domain.direction=backward            # a model that writes the request to an answer
    genloss run domain=instruct domain/corpus=chats domain.corpus.path=my.jsonl
    genloss run domain=instruct model=smollm2 model/adapter=lora domain.template=chatml domain.context=512

A record is a list of messages, each a role and a content, as the Hugging Face tools have them. No two conversations of
the data have the same system prompt and requests. `prompts` is the pool of fresh requests: recipes draw from it, and
their models see no answer of it. `documents` are texts that nobody asked for; of the world their attributes are known,
and are for evaluation alone."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.backends.torch import Torch
from genloss.core import records
from genloss.core.capabilities import Responds, Verifies
from genloss.core.contracts import Checked, Experiment, Plugin, Prompt, Report, Responder, Runtime, silent
from genloss.core.errors import UserError, one_of, require
from genloss.core.hashes import sha256_file
from genloss.core.places import in_project
from genloss.core.plugin import build, named, plain
from genloss.core.seeds import generator
from genloss.core.spool import Spool
from genloss.domains.instruct.chats import Backward, Chats, Checks, Messages, Papers, Web, backward
from genloss.domains.language import OWN, LanguageDomain
from genloss.language.chat import ASSISTANT, LOSSES, SYSTEM, TURNS, USER, answered, own_template, template_text
from genloss.language.corpus import Corpus
from genloss.language.tokenizer import load_codec, train_bpe, use_template

SPLITS = ("test", "validation", "train", "prompts")  # in this order they are taken, so a larger pool changes no test
COUNTS = {"test": "test", "validation": "validation", "train": "examples", "prompts": "pool"}
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
LONG = ("refuse", "drop")
FORWARD, BACKWARD = DIRECTIONS = ("forward", "backward")
ROWS = 1024  # records of a split that are made together


@dataclass
class Instruct(LanguageDomain, Responds, Verifies):
    """conversations"""

    name: str = "instruct"
    corpus: Any = field(default_factory=dict)
    tokenizer: str = "bpe"  # bpe: trained on the real training split, with special tokens for turns; else a saved one
    vocabulary: int = 512
    template: str = ""  # empty: the saved tokenizer's own, or turns; turns, chatml, or a file of yours
    loss: str = "assistant"  # on what the assistant says, or on all tokens
    direction: str = FORWARD  # backward: answers are what the user says, and requests what is learned
    system: str = ""  # of real conversations that have no system prompt; empty: none
    context: int = 160  # longest conversation, in tokens
    too_long: str = "refuse"  # or drop: conversations that are longer
    examples: int = 4000  # real training conversations, at most; a regime uses the first `size` of them
    validation: int = 256
    test: int = 512
    pool: int = 8000  # fresh requests, for all rounds together
    documents: int = 0  # texts without instructions, at most
    web: Any = None  # a corpus of these; None: the world's own
    split_seed: int = 0  # not the run's seed: all seeds share one split
    begin = None  # of a conversation, and of a turn's end: what the template has
    end = None
    converses = True
    payload = ("messages",)
    headline = "followed"
    panels = ("kept_accuracy", "response_bits_per_byte")

    def __post_init__(self) -> None:
        least = 257 + len(TURNS)
        require(
            self.vocabulary >= least, "vocabulary", self.vocabulary, f"at least {least}: bytes, and the marks of turns"
        )
        require(self.context >= 16, "context", self.context, "at least 16 tokens")
        for key in COUNTS.values():
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1 conversation")
        require(self.documents >= 0, "documents", self.documents, "a number of texts, or 0 for none")
        one_of("loss", self.loss, LOSSES)
        one_of("too_long", self.too_long, LONG)
        one_of("direction", self.direction, DIRECTIONS)
        chats: Chats = build(self.corpus, Chats, "corpus")
        self.source: Chats = Backward(chats) if self.direction == BACKWARD else chats
        self.papers: Papers | None = Web(build(self.web, Corpus, "web")) if self.web else None
        if self.papers is None and isinstance(chats, Papers):
            self.papers = chats

    def parts(self) -> Mapping[str, Plugin]:
        chats = self.source.forward if isinstance(self.source, Backward) else self.source
        return {"corpus": chats} | ({"web": self.papers.corpus} if isinstance(self.papers, Web) else {})

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        if self.documents and self.papers is None:
            why = (
                "has no texts to take; use domain/corpus=world, or domain/corpus@domain.web=folder domain.web.path=..."
            )
            raise UserError("documents", self.documents, why)
        if isinstance(self.papers, Web):
            require(self.documents > 0, "documents", self.documents, "at least 1 with domain.web; or leave that out")
            self.papers.check(experiment)
        if (file := self._template()) and not file.is_file():
            raise UserError("template", self.template, "is none of turns and chatml, and no file of the project")
        if file:
            template_text(file, "template", self.template)
        if self.template and self.tokenizer == OWN and self.template != "turns":
            why = "has other marks than a tokenizer that is trained here knows; leave it out, or name a saved tokenizer"
            raise UserError("template", self.template, why)
        for group, plugins in (("curation", experiment.curators), ("metrics", experiment.metrics)):
            for name, plugin in plugins.items():
                if Verifies in plugin.needs and not isinstance(self.source, Checks):
                    why = "nobody can check these conversations; use domain/corpus=world, or leave it out"
                    raise UserError(f"{group}.{name}", type(plugin).__name__, f"needs exact answers, and {why}")

    def places(self) -> tuple[str, ...]:
        return (*super().places(), *(["template"] if self.template and not own_template(self.template) else []))

    def fingerprint(self) -> str:
        file = self._template()
        return super().fingerprint() + (sha256_file(file) if file else "")

    def config(self, stage: str) -> dict[str, Any]:
        if stage == "data":
            return named({f.name: plain(getattr(self, f.name)) for f in fields(self)})
        if stage == "train":
            return {"context": self.context, "columns": list(self.payload), "loss": self.loss}
        return {  # the corpus checks answers
            "context": self.context,
            "corpus": named(plain(self.corpus)),
            "direction": self.direction,
            "system": self.system,
        }

    def _template(self) -> Path | None:
        """The file of the template; None: the tokenizer has its own."""
        if not self.template:
            return own_template("turns") if self.tokenizer == OWN else None
        return own_template(self.template) or in_project(self.template, "domain.template")

    # -- data --------------------------------------------------------------------------------------------------------

    def prepare(self, out: Path) -> dict[str, Any]:
        """Conversations lie in a file without a name until they are split."""
        sizes = {split: getattr(self, key) for split, key in COUNTS.items()}
        found = Spool(out)
        repeated: list[int] = []
        for name, messages in self._distinct(sum(sizes.values()), repeated):
            found.add(name, json.dumps(messages, ensure_ascii=False))
        held_out = sum(n for split, n in sizes.items() if split != "train")
        if len(found) <= held_out:
            sought = ", ".join(f"domain.{COUNTS[split]}={n}" for split, n in sizes.items() if split != "train")
            why = f"{sought} take {held_out}, and train needs some; lower these, or give more"
            raise UserError("domain.corpus", f"{len(found)} conversations that ask different things", why)
        order = np.arange(len(found))
        if not self.source.endless:
            self._tell(len(repeated), len(found) + len(repeated), "ask what an earlier one asks, and are left out")
            order = generator(self.split_seed, "conversations").permutation(len(found))
        sizes["train"] = min(sizes["train"], len(found) - held_out)
        edges = np.cumsum([0, *(sizes[split] for split in SPLITS)])
        member = {split: order[lo:hi] for split, lo, hi in zip(SPLITS, edges[:-1], edges[1:], strict=True)}
        asked = [json.loads(found[i][1]) for split in ("test", "validation") for i in member[split]]
        if self.direction == BACKWARD:
            member = {split: self._pairs(found, some) for split, some in member.items()}
            no_pair = int(edges[-1]) - sum(map(len, member.values()))
            self._tell(no_pair, int(edges[-1]), "are no pair of a request and its answer, and are left out")
            sizes = {split: len(some) for split, some in member.items()}
            for split, n in sizes.items():
                why = f"needs pairs of a request and its answer, and {split} has none; raise domain.{COUNTS[split]}"
                if n == 0:
                    raise UserError("domain.direction", self.direction, why)
            order, edges = np.concatenate(list(member.values())), np.cumsum([0, *sizes.values()])
        said = (m["content"] for i in member["train"] for m in self._told(found[i][1]))
        self.make_tokenizer(said, out / "tokenizer")
        lengths = self._lengths(found, order[: edges[-1]], out / "tokenizer")
        long = lengths > self.context
        if long.any() and self.too_long == "refuse":
            # of what is much longer the tokens are not counted (`Codec.length`)
            least = "at least " * bool(lengths.max() > 2 * self.context)
            many = f"{int(long.sum())} of {len(long)} conversations are longer, the longest has {least}{lengths.max()}"
            raise UserError("domain.context", self.context, f"{many}; raise it, or set domain.too_long=drop")
        result: dict[str, Any] = {"longest": int(lengths[~long].max(initial=0)), "dropped": int(long.sum())}
        self._tell(int(long.sum()), len(long), "are too long")
        if not self.source.endless:
            result["repeated"] = len(repeated)
        for split, lo, hi in zip(SPLITS, edges[:-1], edges[1:], strict=True):
            fit = order[lo:hi][~long[lo:hi]]
            if len(fit) < (sizes[split] if split == "prompts" and self.source.endless else 1):
                raise UserError("domain.context", self.context, f"leaves {len(fit)} of {hi - lo} in {split}; raise it")
            records.write_parts(self._tables(found, fit, split), out / f"{split}.parquet")
            result[split] = len(fit)
        if self.documents:
            result["documents"] = self._documents(asked, out)
        return result

    def _documents(self, held_out: list[Messages], out: Path) -> int:
        """Texts without instructions, with what their source knows of them. Returns how many."""
        assert self.papers is not None  # `check` has seen to it
        codec = load_codec(out / "tokenizer")
        answer = [{"role": USER, "content": "?"}, {"role": ASSISTANT, "content": ""}]
        room = self.context - len(codec.rendered(answer))
        texts = self.papers.papers(self.split_seed, held_out, lambda text: len(codec.encode([text])[0]) <= room)
        rows = list(itertools.islice(texts, self.documents))
        if not rows:
            raise UserError("domain.context", self.context, "no document is short enough for it; raise it")
        if len(rows) < self.documents:
            print(f"genloss: warning: domain.documents={self.documents}: {len(rows)} are there", file=sys.stderr)
        columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in rows[0]}
        table = records.make_table(columns, origin=records.REAL, generation=0, recipe="corpus/documents")
        records.write(table, out / "documents.parquet")
        return len(table)

    @staticmethod
    def _tell(lost: int, of: int, why: str) -> None:
        if lost:
            print(f"genloss: warning: {lost} of {of} conversations {why}", file=sys.stderr)

    def _distinct(self, most: int, repeated: list[int]) -> Iterator[tuple[str, Messages]]:
        """Conversations with their numbers, the first of those that ask the same; the numbers of the others are put
        into `repeated`."""
        seen: set[bytes] = set()
        for i, messages in enumerate(self.source.conversations()):
            key = bytes(records.digests([records.normal(self.source.asks(messages))])[0])
            if key in seen:
                repeated.append(i)
                if self.source.endless and len(repeated) > 10 * most:
                    return
                continue
            seen.add(key)
            yield str(i), messages
            if self.source.endless and len(seen) == most:
                return

    def _lengths(self, found: Spool, order: np.ndarray, tokenizer: Path) -> np.ndarray:
        """int [n]: tokens of each conversation, as `Codec.length` counts them."""
        codec = load_codec(tokenizer)
        return np.fromiter((codec.length(self._told(found[i][1]), self.context) for i in order), int, len(order))

    def _told(self, text: str) -> Messages:
        """A conversation of the spool as models learn it."""
        messages: Messages = json.loads(text)
        if self.direction == BACKWARD:
            messages = backward(messages)
        return [*self.opening(), *messages] if messages[0]["role"] != SYSTEM else messages

    def opening(self) -> Messages:
        """The system prompt of what is asked without one."""
        return [{"role": SYSTEM, "content": self.system}] if self.system else []

    def _pairs(self, found: Spool, order: np.ndarray) -> np.ndarray:
        return np.array([i for i in order if self.source.is_pair(json.loads(found[i][1]))], dtype=int)

    def _tables(self, found: Spool, order: np.ndarray, split: str) -> Iterator[pa.Table]:
        for at in range(0, max(1, len(order)), ROWS):
            messages = [self._told(found[i][1]) for i in order[at : at + ROWS]]
            yield records.make_table(
                {"messages": pa.array(messages, MESSAGES)},
                origin=records.REAL,
                generation=0,
                recipe=f"corpus/{split}",
                first=at,
            )

    def train_tokenizer(self, texts: Iterable[str], out: Path) -> None:
        train_bpe(texts, self.vocabulary, self.context, out, special=TURNS)

    def give_template(self, tokenizer: Path) -> None:
        file = self._template()
        text = template_text(file, "domain.template", self.template) if file else None
        use_template(tokenizer, text, self.loss, name=self.template)

    # -- models: imported when used, since torch and transformers take seconds to load ---------------------------------

    def texts(self, table: pa.Table) -> list[str]:
        """What is asked, by which conversations are compared."""
        return [self.source.asks(messages) for messages in table.column("messages").to_pylist()]

    def prompts(self, table: pa.Table) -> list[Prompt]:
        return [messages[:-1] for messages in table.column("messages").to_pylist()]

    def answered(self, table: pa.Table, responses: Sequence[str]) -> pa.Table:
        told = zip(table.column("messages").to_pylist(), responses, strict=True)
        column = pa.array([answered(messages, said) for messages, said in told], MESSAGES)
        return table.set_column(table.column_names.index("messages"), "messages", column)

    def verify(self, table: pa.Table) -> Checked:
        assert isinstance(self.source, Checks)  # `check` has seen to it
        return self.source.verify(table.column("messages").to_pylist())

    def backend(self, model: Path, data: Path, runtime: Runtime) -> Responder:
        return Torch().of(model, data, runtime)

    def losses(
        self, model: Path, data: Path, table: pa.Table, runtime: Runtime, report: Report = silent
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of what the assistant says, whatever a model is trained on: its ends included, if there are any; what is
        beyond the context is not counted."""
        from genloss.language.packing import sequences
        from genloss.language.scoring import Window, score

        codec = load_codec(data / "tokenizer")
        loss = ASSISTANT if self._marked(codec.template) else "all"
        windows = [
            Window(i, ids[: self.context + 1]) for i, ids in enumerate(sequences(table, codec, self.payload, loss))
        ]
        return score(model, codec, windows, len(windows), self.context, runtime, report)

    @staticmethod
    def _marked(template: str | None) -> bool:
        from genloss.language.chat import MARKS

        return MARKS.search(template or "") is not None
