"""Labelled reviews: gold data of a narrow task, on which what was simulated is tested.

    genloss run experiment=data_simulation/real

72 reviews of one sentence, 36 of each label, put as words.yaml puts the task. They were written for genloss by a
language model, not by people, and are CC0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genloss.domains.instruct.chats import ChatTable

OWN = Path(__file__).with_name("reviews.jsonl")


@dataclass
class Reviews(ChatTable):
    """Another task is another file of domain/corpus=chats, whose answers are the labels."""

    path: str = ""  # empty: the reviews of genloss

    def _file(self) -> Path:
        return super()._file() if self.path else OWN
