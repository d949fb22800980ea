"""The text domain: real documents, a tokenizer, causal language models.

A document is cut into passages of at most `max_characters`, at the ends of its paragraphs and then at spaces: a passage
is a record, as long as the records that models sample (so that `replace` changes where the text comes from, and not how
long it is). Lines that an editor has wrapped are joined again.
Documents are split into train, validation, test and prompts; no model ever trains on the last three."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Documents
from genloss.core.contracts import Plugin, Report, Runtime, silent
from genloss.core.errors import UserError, require
from genloss.core.plugin import build, named
from genloss.core.records import normal
from genloss.core.seeds import generator
from genloss.core.spool import Spool
from genloss.domains.language import LanguageDomain
from genloss.language.corpus import Corpus
from genloss.language.packing import portions
from genloss.language.tokenizer import load_codec, train_bpe

WIDTHS = (60, 120)  # columns that editors wrap at
CUT = 0.1  # of the passages may be longer than the context before a warning
TOGETHER = 1 << 20  # characters of passages that are put in order together
SCORED = 1 << 22  # bytes of text that are scored together: as token ids they take ten times that
SHARES = ("validation_share", "test_share", "prompts_share")


def unwrapped(text: str) -> list[str]:
    """The lines of a document; where an editor has wrapped it, its paragraphs. A break between two lines of text is
    soft if the first word behind it would not have fit before it, at the width that nine in ten lines keep. A document
    is wrapped if that is a width that editors use, and one line in three ends in a soft break."""
    lines = [line.strip() for line in text.splitlines()]
    inner = [(a, b) for a, b in itertools.pairwise(lines) if a and b]
    lengths = sorted(len(a) for a, _ in inner)
    near = int(0.9 * (len(lengths) - 1))  # the quantile lies between this one and the next
    if not lengths or lengths[min(near + 1, len(lengths) - 1)] < WIDTHS[0] or lengths[near] > WIDTHS[1]:
        return lines
    width = float(np.quantile(lengths, 0.9))

    def soft(a: str, b: str) -> bool:
        return len(a) + 1 + len(b.split()[0]) > width

    if not WIDTHS[0] <= width <= WIDTHS[1] or 3 * sum(soft(a, b) for a, b in inner) < sum(map(bool, lines)):
        return lines
    joined = lines[:1]
    for before, line in itertools.pairwise(lines):
        if before and line and soft(before, line):
            joined[-1] += f" {line}"
        else:
            joined.append(line)
    return joined


def passages(text: str, longest: int, shortest: int) -> Iterator[str]:
    """Cut a document at the ends of its paragraphs, and longer ones at spaces, into passages of `shortest`..`longest`
    characters."""
    for line in unwrapped(text):
        start = 0
        while len(line) - start > longest:
            window = line[start : start + longest + 1]  # not the rest of the line, which may have megabytes
            at = window.rfind(" ", shortest)
            at = at if at > 0 else longest
            passage = window[:at].strip()
            if len(passage) < shortest:  # cut in a run of white space, which is worth one space
                line, start = " ".join(line[start:].split()), 0
                continue
            yield passage
            start += at
            while start < len(line) and line[start].isspace():
                start += 1
        if len(line) - start >= shortest:
            yield line[start:]


def _tables(spool: Spool, order: np.ndarray, rows: int, recipe: str) -> Iterator[pa.Table]:
    """Passages as records, in that order."""
    for at in range(0, len(order), rows):
        names, texts = zip(*(spool[i] for i in order[at : at + rows]), strict=True)
        made = records.make_table({"text": texts}, origin=records.REAL, generation=0, recipe=recipe, first=at)
        yield made.append_column("document", pa.array(names, pa.string()))


@dataclass
class Text(LanguageDomain, Documents):
    name: str = "text"
    corpus: Any = field(default_factory=dict)
    tokenizer: str = (
        "bpe"  # bpe: byte-level BPE trained on the real training split; else a saved one, named like a model's path
    )
    vocabulary: int = 512  # size of the trained BPE
    begin: str | None = None  # token of a saved tokenizer that begins a document; None: its document separator
    end: str | None = None  # ... that ends one
    context: int = 128  # longest sequence of the model, in tokens
    max_characters: int = 240
    min_characters: int = 20
    validation_share: float = 0.05  # of the documents
    test_share: float = 0.1
    prompts_share: float = 0.05
    split_seed: int = 0  # not the run's seed: all seeds share one split, so that their spread is that of training
    payload = ("text",)
    headline = "heldout_bits_per_byte"
    panels = ("coverage_d1", "loss_under_round0")

    def __post_init__(self) -> None:
        require(
            self.vocabulary >= 257,
            "vocabulary",
            self.vocabulary,
            "at least 257: 256 bytes and the end of text",
        )
        require(self.context >= 8, "context", self.context, "at least 8 tokens")
        require(self.min_characters >= 1, "min_characters", self.min_characters, "at least 1")
        require(
            self.max_characters > self.min_characters,
            "max_characters",
            self.max_characters,
            f"more than min_characters={self.min_characters}",
        )
        for key in SHARES:
            require(0 < getattr(self, key) < 1, key, getattr(self, key), "a share of the documents in (0, 1)")
        shares = sum(getattr(self, key) for key in SHARES)
        require(shares < 1, "test_share", self.test_share, "so small that the three shares are less than 1 together")
        self.source = build(self.corpus, Corpus, "corpus", group="domain/corpus")

    def parts(self) -> Mapping[str, Plugin]:
        return {"corpus": self.source}

    def config(self, stage: str) -> dict[str, Any]:
        if stage == "data":
            return named({k: v for k, v in vars(self).items() if k != "source"})
        return {"context": self.context}

    # -- data --------------------------------------------------------------------------------------------------------

    def prepare(self, out: Path) -> dict[str, Any]:
        """Two files without a name hold the documents, and the passages of a split, while they are put in order. Memory
        is flat but for 16 bytes a document, 16 a passage of a split, and 16 a passage that is held out."""
        documents = Spool(out)
        for name, text in self.source.documents():
            if text.strip():
                documents.add(name, text)
        if not len(documents):
            raise UserError("domain.corpus", None, "holds no text; give it documents")
        if len(documents) < 4:
            raise UserError(
                "domain.corpus",
                f"{len(documents)} documents",
                "train, validation, test and prompts need one each: give at least 4",
            )
        order = generator(self.split_seed, "documents").permutation(len(documents))
        counts = {k.removesuffix("_share"): max(1, round(getattr(self, k) * len(documents))) for k in SHARES}
        edges = np.cumsum([0, *counts.values()])
        member = {k: order[lo:hi] for k, lo, hi in zip(counts, edges[:-1], edges[1:], strict=True)}
        member["train"] = order[edges[-1] :]
        if len(member["train"]) == 0:
            raise UserError(
                "domain.corpus", f"{len(documents)} documents", "leaves none to train on; give more documents"
            )

        held_out = records.digests([])  # a passage stays in the first of test, validation, prompts, train that has it
        rows = max(1, TOGETHER // self.max_characters)
        result: dict[str, Any] = {"documents": len(documents)}
        for split in ("test", "validation", "prompts", "train"):
            mine = Spool(out)
            own = [held_out]
            those = self._passages(documents, member[split])
            while found := list(itertools.islice(those, rows)):
                keys = records.digests(normal(passage) for _, passage in found)
                new = ~records.among(keys, held_out)
                for (name, passage), is_new in zip(found, new.tolist(), strict=True):
                    if is_new:
                        mine.add(name, passage)
                if split != "train":
                    own.append(keys[new])
            held_out = np.unique(np.concatenate(own))
            if not len(mine):
                raise UserError(
                    "domain.corpus",
                    split,
                    f"this split has no passage of {self.min_characters} characters or more that is not "
                    "in another split; give more text or lower domain.min_characters",
                )
            shuffle = generator(self.split_seed, split).permutation(len(mine))
            records.write_parts(_tables(mine, shuffle, rows, f"corpus/{split}"), out / f"{split}.parquet")
            result[split] = len(mine)
        train = out / "train.parquet"
        self.make_tokenizer((text for texts in self._texts_of(train) for text in texts), out / "tokenizer")
        codec = load_codec(out / "tokenizer")
        result["cut"] = sum(
            len(ids) + 1 > self.context for texts in self._texts_of(train) for ids in codec.encode(texts)
        )  # with the end of the text
        if result["cut"] > CUT * result["train"]:
            what = f"{result['cut']} of {result['train']} passages are longer than domain.context={self.context} tokens"
            remedy = f"raise it, or domain.vocabulary, or lower domain.max_characters={self.max_characters}"
            print(f"genloss: warning: {what}, and models see their beginnings alone; {remedy}", file=sys.stderr)
        return result

    def _passages(self, documents: Spool, numbers: np.ndarray) -> Iterator[tuple[str, str]]:
        """(name of the document, passage) of those documents."""
        for i in numbers:
            name, text = documents[i]
            for passage in passages(text, self.max_characters, self.min_characters):
                yield name, passage

    def _texts_of(self, path: Path) -> Iterator[list[str]]:
        for table in records.batches(path, self.payload):
            yield from map(self.texts, portions(table, self.payload))

    def train_tokenizer(self, texts: Iterable[str], out: Path) -> None:
        train_bpe(texts, self.vocabulary, self.context, out)

    # -- models: imported when used, since torch and transformers take seconds to load ---------------------------------

    def texts(self, table: pa.Table) -> list[str]:
        return table.column("text").to_pylist()

    def losses(
        self, model: Path, data: Path, table: pa.Table, runtime: Runtime, report: Report = silent
    ) -> tuple[np.ndarray, np.ndarray]:
        from genloss.language.scoring import losses

        nats: list[np.ndarray] = []
        tokens: list[np.ndarray] = []
        for part in list(portions(table, self.payload, SCORED)) or [table]:
            done = sum(map(len, nats))

            def tell(at: float, of: float, unit: str, done: int = done, n: int = len(part)) -> None:
                report(done + at / of * n, len(table), unit)

            some = losses(model, data, self.texts(part), self.context, runtime, tell, records.cut_off(part))
            nats.append(some[0])
            tokens.append(some[1])
        return np.concatenate(nats), np.concatenate(tokens)
