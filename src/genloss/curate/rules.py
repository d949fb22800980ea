"""Rules on the surface of a text: length, characters, repetition.

genloss run curation=rules
genloss run curation=rules curation.rules.max_repeated=0.2
genloss run curation=[complete,rules]
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Finishes, Texts
from genloss.core.contracts import Experiment
from genloss.core.errors import UserError, require
from genloss.core.words import words
from genloss.curate import Context, Decision, RecordCurator, blank, decision, texts


def repeated_share(text: str, n: int) -> float:
    """Share of a text's word n-grams that are not the first of their kind (0: all distinct)."""
    said = words(text)
    grams = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass
class Rules(RecordCurator):
    """Drop texts that are too short or long, hold broken characters, or repeat themselves (thresholds in the spirit of
    Gopher's quality rules; Rae et al. 2021, A1.1). The score is the share of repeated word n-grams."""

    min_characters: int = 20
    max_characters: int = 100_000
    max_broken: float = 0.01  # share of U+FFFD and control characters
    ngram: int = 3
    max_repeated: float = 0.3  # share of word n-grams that came before in the same text
    max_top_word: float = 0.3  # share of the most frequent word, for texts of 10 words and more
    needs = (Texts,)

    def __post_init__(self) -> None:
        require(self.min_characters >= 0, "min_characters", self.min_characters, "at least 0")
        require(
            self.max_characters >= self.min_characters,
            "max_characters",
            self.max_characters,
            f"at least min_characters={self.min_characters}",
        )
        require(self.ngram >= 1, "ngram", self.ngram, "at least 1")
        for key in ("max_broken", "max_repeated", "max_top_word"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "a fraction in [0, 1]")

    def decide(self, table: pa.Table, context: Context) -> Decision:
        reason = blank(len(table))
        score = np.zeros(len(table))
        for i, text in enumerate(texts(table, context.domain)):
            score[i] = repeated_share(text, self.ngram)
            reason[i] = self._fault(text, score[i])
        return decision(reason == "", score, reason)

    def _fault(self, text: str, repeated: float) -> str:
        if len(text.strip()) < self.min_characters:
            return "too short"
        if len(text) > self.max_characters:
            return "too long"
        broken = sum(c == "�" or (ord(c) < 32 and c not in "\t\n\r") for c in text)
        if broken > self.max_broken * len(text):
            return "broken characters"
        said = words(text.lower())
        if len(said) >= 10 and Counter(said).most_common(1)[0][1] > self.max_top_word * len(said):
            return "one word"
        return "repetitive" if repeated > self.max_repeated else ""


@dataclass
class Complete(RecordCurator):
    """Drop records that were cut off at the recipe's longest: what the model would have said next is not there."""

    needs = (Texts,)

    def check(self, experiment: Experiment) -> None:
        if not isinstance(experiment.recipe, Finishes):
            recipe = type(experiment.recipe).__name__
            raise UserError("_target_", "Complete", f"needs a recipe that says how records ended; {recipe} does not")

    def decide(self, table: pa.Table, context: Context) -> Decision:
        return decision(~records.cut_off(table), reason="cut off")
