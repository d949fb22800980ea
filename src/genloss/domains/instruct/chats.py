"""Where conversations come from: files and data sets of messages, of prompts and responses, or of instructions.

    genloss run domain=instruct domain/corpus=chats domain.corpus.path=my.jsonl           # or Parquet
    genloss run domain=instruct domain/corpus=chat_datasets domain.corpus.path=hub:OWNER/NAME

A row is `messages` (a list of role and content), or `prompt` and `response`, or `instruction`, `input` and `output` as
Alpaca has them. What is no conversation (genloss.language.chat.wrong) is refused by its row."""

from __future__ import annotations

import contextlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from genloss.core.contracts import Checked, Experiment
from genloss.core.errors import UserError, first_line
from genloss.language.chat import ASSISTANT, USER, wrong
from genloss.language.corpus import AHEAD, PATH, Corpus, Datasets, Table, as_text

Messages = list[dict[str, str]]
LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("messages",),
    ("prompt", "response"),
    ("instruction", "output"),
)  # the columns that a row must have
LONG = 1 << 16  # characters of a document that is not looked at as a whole
COLUMNS = ("messages", "prompt", "response", "instruction", "input", "output")


class Chats(Corpus):
    """Real conversations; as documents they are JSON."""

    endless: ClassVar[bool] = False  # whether there are as many as one asks for, independent of each other

    @abstractmethod
    def conversations(self) -> Iterator[Messages]: ...

    def asks(self, messages: Messages) -> str:
        """What a conversation is compared by: its system prompt and requests."""
        return "\n".join(m["content"] for m in messages if m["role"] != ASSISTANT)

    def is_pair(self, messages: Messages) -> bool:
        """Whether it is one request and its answer, and no more."""
        return len(messages) == 2

    def documents(self) -> Iterator[tuple[str, str]]:
        for i, messages in enumerate(self.conversations()):
            yield str(i), json.dumps(messages, ensure_ascii=False)


@dataclass
class Backward(Chats):
    """The conversations of another source, which nobody can check any more where `backward` turns them round; they are
    compared by what they ask forward, so that both directions of one config have the same splits."""

    forward: Chats

    @property
    def endless(self) -> bool:  # type: ignore[override]
        return self.forward.endless

    def conversations(self) -> Iterator[Messages]:
        return self.forward.conversations()

    def asks(self, messages: Messages) -> str:
        return self.forward.asks(messages)

    def is_pair(self, messages: Messages) -> bool:
        return self.forward.is_pair(messages)


class Checks:
    """Of conversations: whether what the assistant says is right."""

    @abstractmethod
    def verify(self, conversations: list[Messages]) -> Checked: ...


class Papers:
    """Texts that nobody asked for, as a web has them."""

    @abstractmethod
    def papers(
        self, seed: int, held_out: Sequence[Messages], fits: Callable[[str], bool]
    ) -> Iterator[dict[str, str | None]]:
        """`text`, and what is known of it, which models must not see. None answers what is asked in the conversations
        that are held out, where that is known; none is too long for `fits`."""


@dataclass
class Web(Papers):
    """The texts of a corpus, in its order; of one that is too long, the paragraphs (between empty lines) that fit."""

    corpus: Corpus

    def check(self, experiment: Experiment) -> None:
        with _in_web():
            self.corpus.check(experiment)

    def papers(
        self, seed: int, held_out: Sequence[Messages], fits: Callable[[str], bool]
    ) -> Iterator[dict[str, str | None]]:
        with _in_web():
            for name, text in self.corpus.documents():
                whole = len(text) <= LONG and fits(text)
                for each in [text] if whole else text.split("\n\n"):
                    if each.strip() and (whole or (len(each) <= LONG and fits(each.strip()))):
                        yield {"text": each.strip(), "name": name}


@contextlib.contextmanager
def _in_web() -> Iterator[None]:
    """Errors of a corpus name domain.web."""
    try:
        yield
    except UserError as error:
        raise type(error)(error.key.replace("domain.corpus", "domain.web"), error.value, error.remedy) from None


def backward(messages: Messages) -> Messages:
    """A request and its answer in reverse, which is what a model of instruction backtranslation learns (Li et al. 2024,
    arXiv 2308.06259, section 2.1): the answer is what the user says, the request what the assistant does."""
    asked, said = (m["content"] for m in messages)
    return [{"role": USER, "content": said}, {"role": ASSISTANT, "content": asked}]


def conversation(row: Mapping[str, Any], where: str) -> Messages:
    """The messages of a row; UserError if they are no conversation. where: the row, for errors."""
    layout = next((columns for columns in LAYOUTS if all(row.get(name) is not None for name in columns)), None)
    if layout is None:
        wanted = "; ".join(" and ".join(columns) for columns in LAYOUTS)
        raise UserError(PATH, where, f"has the columns {', '.join(map(str, row)) or '(none)'}, and not {wanted}")
    found = row[layout[0]]
    if layout != ("messages",):
        more = (row.get("input") if layout[0] == "instruction" else None) or ""
        if not isinstance(more, str):
            raise UserError(PATH, where, f"has an input that is {type(more).__name__}, and not text")
        asked = f"{found}\n\n{more}" if isinstance(found, str) and found.strip() and more.strip() else found
        found = [{"role": USER, "content": asked}, {"role": ASSISTANT, "content": row[layout[1]]}]
    if why := wrong(found):
        raise UserError(PATH, where, f"is no conversation: {why}")
    return [{"role": m["role"], "content": as_text(m["content"], "content", where)} for m in found]


@dataclass
class ChatTable(Chats, Table):
    """One JSONL (perhaps compressed) or Parquet file, a conversation a row."""

    path: str = "???"
    column: str = ""  # of no use here: the columns are known by their names

    def conversations(self) -> Iterator[Messages]:
        rows = self._of_parquet() if self._file().suffix == ".parquet" else self.objects()
        empty = True
        for where, row in rows:
            empty = False
            yield conversation(row, where)
        if empty:
            raise UserError(PATH, self.path, "is empty; remove it or give it conversations")

    def _of_parquet(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        import pyarrow as pa
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(self._file(), buffer_size=AHEAD)
            names = [name for name in file.schema_arrow.names if name in COLUMNS] or file.schema_arrow.names
            rows = (row for batch in file.iter_batches(64, columns=names) for row in batch.to_pylist())
            for i, row in enumerate(rows):
                yield f"{self.path}, row {i}", row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(PATH, self.path, f"cannot be read as Parquet ({first_line(error)})") from None


@dataclass
class ChatDatasets(Chats, Datasets):
    """A data set of the library `datasets`, a conversation a row."""

    path: str = "???"
    column: str = ""  # of no use here: the columns are known by their names

    def conversations(self) -> Iterator[Messages]:
        try:
            for i, row in enumerate(self.rows()):
                yield conversation(row, f"{self.path}, row {i}")
        except (UserError, GeneratorExit):
            raise
        except Exception as error:  # the library raises many kinds; all mean that it cannot be loaded
            raise UserError(PATH, self.path, f"datasets cannot load it ({first_line(error)})") from None
