"""What a domain can do, and what a recipe can. A domain derives from the capabilities that it has; a plug-in names
those that it `needs`.

    class Text(Domain, Documents, Scores): ...          # what it can
    class Perplexity(RecordCurator): needs = (Scores,)  # what it needs

What does not fit is refused before any work (genloss.experiment), in one line that names the domains that do. A
capability is one question with few methods. One that a single world knows of lives with that world (`Labelled` in
domains/lab)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from genloss.core.contracts import Checked, Prompt, Report, Responder, Runtime, silent

C = TypeVar("C")


def able(thing: object, kind: type[C]) -> C:
    """A domain (or its model) as what it can do. What a plug-in `needs` has been checked; anything else is a bug of the
    plug-in."""
    if not isinstance(thing, kind):
        raise TypeError(f"{type(thing).__name__} is no {kind.__name__}, which is not among the `needs` of the plug-in")
    return thing


class Texts(ABC):
    """records that hold a text"""

    @abstractmethod
    def texts(self, table: pa.Table) -> list[str]:
        """The text [n] by which records are compared with each other: a document, or the prompt of a problem."""


class Documents(Texts):
    """records that are documents: one column of text, the first of the domain's `payload`"""

    context: int  # longest record of its models, in tokens


class Scores(ABC):
    """models that give a record a probability"""

    @abstractmethod
    def losses(
        self, model: Path, data: Path, table: pa.Table, runtime: Runtime, report: Report = silent
    ) -> tuple[np.ndarray, np.ndarray]:
        """Total loss in nats [n] and number of predicted tokens [n] of each record under `model`."""


class Responds(ABC):
    """models that answer prompts"""

    context: int  # longest prompt with its response, in tokens
    converses: bool = False  # whether prompts are conversations
    pool: int  # records whose prompts alone models see, for all rounds together: data/prompts.parquet

    @abstractmethod
    def prompts(self, table: pa.Table) -> list[Prompt]:
        """What is asked in records [n]."""

    @abstractmethod
    def answered(self, table: pa.Table, responses: Sequence[str]) -> pa.Table:
        """The records with other responses."""

    @abstractmethod
    def backend(self, model: Path, data: Path, runtime: Runtime) -> Responder:
        """What answers prompts by this model; `data` holds its tokenizer."""


class Tokenized(ABC):
    """records that are read by a tokenizer"""

    tokenizer: str  # bpe: one that is trained on the real data; else a saved one (genloss.language.saved)
    context: int  # longest record of its models, in tokens


class Verifies(ABC):
    """exact answers"""

    @abstractmethod
    def verify(self, table: pa.Table) -> Checked:
        """Which responses of a table of records are right."""


class Embeds(ABC):
    """records that have vectors"""

    @abstractmethod
    def embed(self, table: pa.Table, data: Path, store: Path | None = None) -> np.ndarray:
        """float64 [n, d] of n records, of which there may be more than memory has room for: how far two lie from each
        other is how unlike they are. `data`: the folder of the real data, whose training records are all that it knows;
        `store`: where what is made of these is kept (`Context.store`)."""


class Images(ABC):
    """records that are images"""

    @property
    @abstractmethod
    def side(self) -> int:
        """Pixels a side."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """1: grey; 3: RGB."""

    @abstractmethod
    def pixels(self, table: pa.Table) -> np.ndarray:
        """uint8 [n, side, side, channels] of a table of records."""


class Points(ABC):
    """records that are points of many chains (genloss.domains.lab)"""

    chains: int  # independent repetitions


class Finishes:
    """Of a recipe: it says how each record ended, in a column `finish`."""


class Repeats(ABC):
    """Of a recipe: it asks for several responses to one problem, among which a curator can choose."""

    samples: int
