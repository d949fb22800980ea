"""Who gives feedback: a scripted preference, or a person's clicks. What is liked is kept: the next round's references,
and what a next model would be trained on. What is disliked is dropped with that reason.

    genloss run experiment=fabric curation.preferred.preference._target_=genloss.systems.fabric.preferences.Brightness
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from genloss.core.capabilities import Images, able
from genloss.core.contracts import Experiment, Plugin
from genloss.core.errors import UserError, require
from genloss.core.plugin import build
from genloss.curate import Context, Decision, RecordCurator, blank, decision
from genloss.generate import Recipe
from genloss.systems.fabric.preferences import Preference

SESSION = "session"  # column of generated records: whose feedback they are for
LIKED, DISLIKED, LEFT = "liked", "disliked", "left"


def sessions(table: pa.Table) -> np.ndarray:
    """int [n]: the session of each record; 0 where records know of none."""
    if SESSION not in table.column_names:
        return np.zeros(len(table), dtype=int)
    return np.asarray(table.column(SESSION).to_numpy())


class Feedback(RecordCurator):
    """Keeps what is liked; of what it drops, it says what is disliked."""

    needs: ClassVar[tuple[type, ...]] = (Images,)

    @abstractmethod
    def say(self, table: pa.Table, context: Context) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """liked bool [n], disliked bool [n], score float [n] (nan: none)."""

    def decide(self, table: pa.Table, context: Context) -> Decision:
        liked, disliked, score = self.say(table, context)
        reason = blank(len(table), LEFT)
        reason[disliked] = DISLIKED
        return decision(liked, score, reason)


@dataclass
class Preferred(Feedback):
    """Of each session's images of a round, the best `liked` by `preference` are liked, the worst `disliked` disliked.
    Of equal ones, the first are the better."""

    preference: Any = field(default_factory=dict)
    liked: int = 1
    disliked: int = 1

    def __post_init__(self) -> None:
        require(self.liked >= 1, "liked", self.liked, "at least 1 image a session and round")
        require(self.disliked >= 0, "disliked", self.disliked, "at least 0")
        self.judge = build(self.preference, Preference, "preference")

    def parts(self) -> Mapping[str, Plugin]:
        return {"preference": self.judge}

    def say(self, table: pa.Table, context: Context) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        score = self.judge.scores(able(context.domain, Images).pixels(table))
        liked, disliked, whose = np.zeros(len(table), bool), np.zeros(len(table), bool), sessions(table)
        for session in np.unique(whose):
            mine = np.flatnonzero(whose == session)
            order = mine[np.argsort(-score[mine], kind="stable")]
            liked[order[: self.liked]] = True
            disliked[order[max(self.liked, len(order) - self.disliked) :]] = True
        return liked, disliked, score


@dataclass
class Clicks(Feedback):
    """What a person said of the images of a round, by their numbers in it, from 0. Of each round by the schedule:

    schedule: {1: {curation: {clicks: {liked: [2], disliked: [0, 5]}}}}

    as `genloss feedback` writes it, so that a session is a config that runs again."""

    liked: list[int] = field(default_factory=list)
    disliked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key in (LIKED, DISLIKED):
            numbers = getattr(self, key)
            ok = all(i >= 0 for i in numbers) and len(set(numbers)) == len(numbers)
            require(ok, key, numbers, "numbers of images, from 0, each once")
        both = sorted(set(self.liked) & set(self.disliked))
        require(not both, "disliked", self.disliked, f"of other images than the liked ones, and {both} are both")

    def check(self, experiment: Experiment) -> None:
        most = experiment.recipe.at_most() if isinstance(experiment.recipe, Recipe) else None
        for key in (LIKED, DISLIKED):
            there = most is None or all(i < most for i in getattr(self, key))
            require(there, key, getattr(self, key), f"numbers of images, of which a round has {most}, from 0")

    def say(self, table: pa.Table, context: Context) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = []
        for key in (LIKED, DISLIKED):
            numbers = getattr(self, key)
            if any(i >= len(table) for i in numbers):
                raise UserError(f"curation.clicks.{key}", numbers, f"round {context.round} has {len(table)} images")
            found.append(np.isin(np.arange(len(table)), numbers))
        if not self.liked:
            why = f"likes none of the {len(table)} images of round {context.round}; like at least one"
            raise UserError("curation.clicks.liked", "[]", why)
        return found[0], found[1], np.full(len(table), np.nan)
