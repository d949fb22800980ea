"""What the domains of language models share: a tokenizer, a context, models and trainers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Embeds, Scores, Texts, Tokenized
from genloss.core.contracts import Experiment
from genloss.core.errors import UserError
from genloss.domains import RecordDomain
from genloss.language import saved
from genloss.language.embedding import Ngrams
from genloss.language.model import TextModel
from genloss.language.tokenizer import END, check_template, tell_ends, use_saved
from genloss.language.trainer import Supervised

OWN = "bpe"  # a tokenizer that is trained on the real data


class LanguageDomain(RecordDomain, Texts, Scores, Tokenized, Embeds):
    """Fields of a domain derived from it: `tokenizer`, `vocabulary` (of one that is trained here), `context`, and of a
    saved tokenizer the tokens that `begin` and `end` a document (None: its document separator)."""

    vocabulary: int
    begin: str | None
    end: str | None
    models = (TextModel,)
    trainers = (Supervised,)

    def check(self, experiment: Experiment) -> None:
        if self.tokenizer != OWN:
            if self.tokenizer == getattr(experiment.model, "path", None):  # which the user has named
                saved.check_saved(self.tokenizer, "model.path")
            saved.check_saved(self.tokenizer, "tokenizer", saved.ONE_OF)
            return
        for key in ("begin", "end"):
            if (value := getattr(self, key)) is not None:
                why = f"has no effect on a tokenizer that is trained here: {END} begins and ends its records"
                raise UserError(key, value, f"{why}; leave it at null")

    def places(self) -> tuple[str, ...]:
        return () if self.tokenizer == OWN else ("tokenizer",)

    def fingerprint(self) -> str:
        if self.tokenizer == OWN:
            return ""
        return saved.hash_of(saved.folder_of(self.tokenizer, "domain.tokenizer"), saved.TOKENIZER_FILES)

    def record_bytes(self) -> int:
        return 4 * self.context + 100  # four bytes a token; ids, scores and reasons

    def embed(self, table: pa.Table, data: Path, store: Path | None = None) -> np.ndarray:
        """By hashed n-grams (genloss.language.embedding.Ngrams): of length 1, or 0 where no word is known."""
        path, known = data / "train.parquet", Ngrams()
        real = self.texts(records.read(path, rows=(0, min(known.fit, records.count(path)))))
        parts = records.parts(table)
        return np.concatenate([known.embed(self.texts(part), lambda n: real[:n]) for part in parts])

    @abstractmethod
    def train_tokenizer(self, texts: Iterable[str], out: Path) -> None:
        """Train the domain's own tokenizer on the texts of the training split."""

    def make_tokenizer(self, texts: Iterable[str], out: Path) -> None:
        if self.tokenizer == OWN:
            self.train_tokenizer(texts, out)
        else:
            use_saved(self.tokenizer, out, "domain.tokenizer", self.begin, self.end)
        self.give_template(out)
        if self.tokenizer != OWN:
            check_template(out, "domain.tokenizer", self.tokenizer)
            tell_ends(out, self.tokenizer)

    def give_template(self, tokenizer: Path) -> None:
        """Where records are conversations: their chat template, which says how they begin and end."""
