"""What the domains of language models share: a tokenizer, a context, models and trainers."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from genloss.core.capabilities import Scores, Texts, Tokenized
from genloss.core.contracts import Experiment
from genloss.core.hashes import folder_hash
from genloss.core.places import check_saved, in_project, on_hub
from genloss.domains import RecordDomain
from genloss.language.model import TextModel
from genloss.language.tokenizer import TOKENIZER_FILES, use_saved
from genloss.language.trainer import Supervised

OWN = "bpe"  # a tokenizer that is trained on the real data


class LanguageDomain(RecordDomain, Texts, Scores, Tokenized):
    """Fields of a domain derived from it: `tokenizer`, `vocabulary` (of one that is trained here) and `context`."""

    vocabulary: int
    models = (TextModel,)
    trainers = (Supervised,)

    def check(self, experiment: Experiment) -> None:
        if self.tokenizer != OWN:
            check_saved(self.tokenizer, "tokenizer", TOKENIZER_FILES)

    def fingerprint(self) -> str:
        return "" if self.tokenizer == OWN or on_hub(self.tokenizer) else folder_hash(in_project(self.tokenizer))

    @abstractmethod
    def train_tokenizer(self, texts: list[str], out: Path) -> None:
        """Train the domain's own tokenizer on the texts of the training split."""

    def make_tokenizer(self, texts: list[str], out: Path) -> None:
        if self.tokenizer == OWN:
            self.train_tokenizer(texts, out)
        else:
            use_saved(self.tokenizer, out, "domain.tokenizer")
