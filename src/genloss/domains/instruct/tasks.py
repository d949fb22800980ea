"""Seed tasks: what Self-Instruct and its kin begin from.

    genloss run domain=instruct domain/corpus=seed_tasks ...                                    # the 175 of genloss
    genloss run domain=instruct domain/corpus=seed_tasks domain.corpus.path=my.jsonl ...

A task is an instruction, perhaps an input, and an output; its conversation is `instruction`, an empty line and `input`,
and the output as the answer. Tasks are compared by their instructions alone, as Self-Instruct (Wang et al. 2023, arXiv
2212.10560) compares them. Splits are drawn from the tasks, so no two may ask for nearly the same: one of them could be
a seed, and the other in the test set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genloss.core.errors import UserError
from genloss.curate.novelty import Alphabet, rouge_l
from genloss.domains.instruct.chats import ChatTable, Messages, conversation
from genloss.language.chat import ASSISTANT, USER
from genloss.language.corpus import PATH

OWN = Path(__file__).with_name("seed_tasks.jsonl")
GAP = "\n\n"  # between instruction and input
ALIKE = 0.7  # ROUGE-L above which two instructions are nearly the same, in Self-Instruct too


def parts(asked: str) -> tuple[str, str]:
    """(instruction, input) of what a user says; the instruction is its first paragraph."""
    instruction, _, more = asked.partition(GAP)
    return instruction.strip(), more.strip()


def task(instruction: str, input: str, output: str) -> Messages:
    asked = f"{instruction}{GAP}{input}" if input else instruction
    return [{"role": USER, "content": asked}, {"role": ASSISTANT, "content": output}]


@dataclass
class SeedTasks(ChatTable):
    """One JSONL file, a task a row: `instruction` and `instances`, of which the first counts, as in the file of
    Self-Instruct; or any columns of domain/corpus=chats."""

    path: str = ""  # empty: the seed tasks of genloss

    def _file(self) -> Path:
        return super()._file() if self.path else OWN

    def asks(self, messages: Messages) -> str:
        return "\n".join(parts(m["content"])[0] for m in messages if m["role"] != ASSISTANT)

    def conversations(self) -> Iterator[Messages]:
        alphabet = Alphabet()
        known: list[str] = []  # what came before, as the alphabet has it
        names: list[str] = []  # and where it stands
        rows = self._of_parquet() if self._file().suffix == ".parquet" else self.objects()
        for where, row in rows:
            messages = conversation(_first(row, where), where)
            (encoded,) = alphabet.encode([self.asks(messages)])
            alike = rouge_l([encoded], known)[0] if known else []
            for other, score in zip(names, alike, strict=True):
                if score > ALIKE:
                    why = f"asks for nearly the same as {other} (ROUGE-L {score:.2f})"
                    raise UserError(PATH, where, f"{why}: seeds may not overlap the test set; leave one of them out")
            known.append(encoded)
            names.append(where.rpartition(", ")[2])
            yield messages
        if not known:
            raise UserError(PATH, self.path, "is empty; remove it or give it tasks")


def _first(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A row with its first instance as input and output."""
    if "instances" not in row:
        return row
    found = row["instances"]
    if not isinstance(found, list) or not found or not isinstance(found[0], Mapping):
        raise UserError(PATH, where, "has no instances; give a list of input and output")
    return {"instruction": row.get("instruction"), **{key: found[0].get(key) for key in ("input", "output")}}
