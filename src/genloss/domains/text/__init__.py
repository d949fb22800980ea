"""The text domain: real documents, a tokenizer, causal language models.

A document is cut into passages of at most `max_characters`, at line breaks and then at spaces: a passage is a record, as long
as the records that models sample (so that `replace` changes where the text comes from, and not how long it is). Documents
are split into train, validation, test and prompts; no model ever trains on the last three.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.contracts import Domain, Fit, Report, Runtime, Sampling, silent
from genloss.core.errors import UserError, require
from genloss.core.hashes import folder_hash
from genloss.core.plugin import build
from genloss.core.seeds import generator
from genloss.curate.duplicates import normal
from genloss.language.corpus import Corpus
from genloss.language.tokenizer import train_bpe, use_saved

if TYPE_CHECKING:
    from genloss.experiment import Experiment

SPLITS = ("train", "validation", "test", "prompts")


def passages(text: str, longest: int, shortest: int) -> Iterator[str]:
    """Cut a document at line breaks, and longer lines at spaces, into passages of `shortest`..`longest` characters."""
    for line in text.splitlines():
        line = line.strip()
        while len(line) > longest:
            at = line.rfind(" ", shortest, longest + 1)
            at = at if at > 0 else longest
            if len(line[:at].strip()) < shortest:  # cut in a run of white space, which is worth one space
                line = " ".join(line.split())
                continue
            yield line[:at].strip()
            line = line[at:].strip()
        if len(line) >= shortest:
            yield line


@dataclass
class Text(Domain):
    name: str = "text"
    corpus: Any = field(default_factory=dict)
    tokenizer: str = (
        "bpe"  # bpe: byte-level BPE trained on the real training split; else a folder or hub name of a saved one
    )
    vocabulary: int = 512  # size of the trained BPE
    context: int = 128  # longest sequence of the model, in tokens
    max_characters: int = 240
    min_characters: int = 20
    validation: float = 0.05  # shares of documents
    test: float = 0.1
    prompts: float = 0.05
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
        for key in ("validation", "test", "prompts"):
            require(0 < getattr(self, key) < 1, key, getattr(self, key), "a share of the documents in (0, 1)")
        shares = self.validation + self.test + self.prompts
        require(shares < 1, "test", self.test, "small enough that validation + test + prompts < 1")
        self.source = build(self.corpus, Corpus, "corpus")  # type: ignore[type-abstract]

    def check(self, experiment: Experiment) -> None:
        from genloss.curate import Curator
        from genloss.language.model import TextModel
        from genloss.language.trainer import Supervised

        if not isinstance(experiment.model, TextModel):
            raise UserError("model", type(experiment.model).__name__, "is not a model of the text domain")
        if not isinstance(experiment.trainer, Supervised):
            raise UserError("trainer", type(experiment.trainer).__name__, "is not a trainer of the text domain")
        for name, curator in experiment.curators.items():
            if type(curator).judge is Curator.judge:
                raise UserError(
                    f"curation.{name}", type(curator).__name__, "works on the points of the lab, not on text"
                )
        experiment.model.check(self)
        experiment.recipe.check(experiment)
        self.source.check()

    # -- what stages depend on ---------------------------------------------------------------------------------------

    def config(self, stage: str) -> dict[str, Any]:
        everything = {k: v for k, v in vars(self).items() if k != "source"}
        return everything if stage == "data" else {"context": self.context}

    def code(self, stage: str) -> tuple[str, ...]:
        package = "genloss.domains.text"
        own = {
            "data": (package, f"{package}.corpus", "genloss.language.tokenizer", "genloss.curate.duplicates"),
            "generate": (
                "genloss.language.sampling",
                "genloss.language.decode",
                "genloss.language.model",
                "genloss.language.tokenizer",
            ),
            "train": ("genloss.language.training", "genloss.language.packing", "genloss.language.model"),
            "evaluate": (
                "genloss.language.scoring",
                "genloss.language.packing",
                "genloss.language.model",
                "genloss.language.tokenizer",
            ),
        }
        return own.get(stage, ())

    def libraries(self, stage: str) -> tuple[str, ...]:
        return ("tokenizers", "numpy") if stage == "data" else ("torch", "transformers", "tokenizers", "numpy")

    def fingerprint(self) -> str:
        saved = Path(self.tokenizer)
        return self.source.fingerprint() + (folder_hash(saved) if self.tokenizer != "bpe" and saved.is_dir() else "")

    # -- data --------------------------------------------------------------------------------------------------------

    def prepare(self, out: Path) -> dict[str, Any]:
        documents = [(name, text) for name, text in self.source.documents() if text.strip()]
        if not documents:
            raise UserError("domain.corpus", None, "holds no text; give it documents")
        if len(documents) < 4:
            raise UserError(
                "domain.corpus",
                f"{len(documents)} documents",
                "train, validation, test and prompts need one each: give at least 4",
            )
        order = generator(self.split_seed, "documents").permutation(len(documents))
        counts = {k: max(1, round(getattr(self, k) * len(documents))) for k in SPLITS[1:]}
        edges = np.cumsum([0, *counts.values()])
        member = {k: order[lo:hi] for k, lo, hi in zip(counts, edges[:-1], edges[1:], strict=True)}
        member["train"] = order[edges[-1] :]
        if len(member["train"]) == 0:
            raise UserError(
                "domain.corpus", f"{len(documents)} documents", "leaves none to train on; give more documents"
            )

        seen: set[str] = set()  # a passage stays in the first of test, validation, prompts, train that has it
        result: dict[str, Any] = {"documents": len(documents)}
        splits: dict[str, list[str]] = {}
        for split in ("test", "validation", "prompts", "train"):
            mine: list[tuple[str, str]] = []
            own: set[str] = set()
            for i in member[split]:
                for passage in passages(documents[i][1], self.max_characters, self.min_characters):
                    key = normal(passage)
                    if key not in seen:
                        own.add(key)
                        mine.append((documents[i][0], passage))
            seen |= own
            if not mine:
                raise UserError(
                    "domain.corpus",
                    split,
                    f"this split has no passage of {self.min_characters} characters or more that is not "
                    "in another split; give more text or lower domain.min_characters",
                )
            shuffle = generator(self.split_seed, split).permutation(len(mine))
            splits[split] = [mine[i][1] for i in shuffle]
            table = records.make_table(
                {"text": splits[split]}, origin=records.REAL, generation=0, recipe=f"corpus/{split}"
            ).append_column("document", pa.array([mine[i][0] for i in shuffle], pa.string()))
            records.write(table, out / f"{split}.parquet")
            result[split] = len(mine)
        if self.tokenizer == "bpe":
            train_bpe(splits["train"], self.vocabulary, self.context, out / "tokenizer")
        else:
            use_saved(self.tokenizer, out / "tokenizer")
        return result

    # -- models: imported when used, since torch and transformers take seconds to load ----------------------------------

    def train(self, fit: Fit) -> dict[str, Any]:
        from genloss.language.training import train

        return train(fit)

    def sample(self, request: Sampling) -> Iterator[tuple[dict[str, list], int]]:
        from genloss.language.sampling import sample

        return sample(request)

    def losses(
        self, model: Path, data: Path, table: pa.Table, runtime: Runtime, report: Report = silent
    ) -> tuple[np.ndarray, np.ndarray]:
        from genloss.language.scoring import losses

        return losses(model, data, table.column("text").to_pylist(), self.context, runtime, report)
