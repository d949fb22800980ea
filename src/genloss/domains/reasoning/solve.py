"""Answers to problems: the recipe `respond` for this domain.

genloss run domain=reasoning recipe.n=12000 rounds=1 curation=exact"""

from __future__ import annotations

from dataclasses import dataclass

from genloss.domains.reasoning import Reasoning
from genloss.generate.respond import Respond

KEPT_COLUMNS = ("answer", "task", "difficulty")  # of a problem, in the record of a response to it


@dataclass
class Solve(Respond):
    """Model n-1 answers the next n problems of the pool, `samples` times each."""

    name: str = "solve"
    needs = (Reasoning,)
