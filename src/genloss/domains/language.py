"""What the domains of language models share: a tokenizer, a context, models and trainers."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from genloss.core.capabilities import Scores, Texts, Tokenized
from genloss.core.hashes import folder_hash
from genloss.domains import RecordDomain
from genloss.language.model import TextModel
from genloss.language.tokenizer import use_saved
from genloss.language.trainer import Supervised


class LanguageDomain(RecordDomain, Texts, Scores, Tokenized):
    """Fields of a domain derived from it: `tokenizer`, `vocabulary` (of one that is trained here) and `context`."""

    vocabulary: int
    models = (TextModel,)
    trainers = (Supervised,)

    def fingerprint(self) -> str:
        saved = Path(self.tokenizer)
        return folder_hash(saved) if self.tokenizer != "bpe" and saved.is_dir() else ""

    @abstractmethod
    def train_tokenizer(self, texts: list[str], out: Path) -> None:
        """Train the domain's own tokenizer on the texts of the training split."""

    def make_tokenizer(self, texts: list[str], out: Path) -> None:
        if self.tokenizer == "bpe":
            self.train_tokenizer(texts, out)
        else:
            use_saved(self.tokenizer, out)
