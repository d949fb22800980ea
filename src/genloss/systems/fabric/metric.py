"""How much the images of a round are liked by a preference that gave no feedback, and how different they are.

genloss run experiment=fabric metrics=[preference]"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Images, able
from genloss.core.contracts import DROPPED, HISTORY, Experiment, Plugin
from genloss.core.errors import UserError
from genloss.core.plugin import build
from genloss.evaluate import Evidence, Metric
from genloss.systems.fabric.curator import Preferred, sessions
from genloss.systems.fabric.preferences import Preference, Resemblance, cosines, same


@dataclass
class Liking(Metric):
    """preference, preference_min, preference_max: mean, least and largest of a session's images of the round, scored by
    `preference`, which has to be another one than that of the feedback; preference_max_so_far: the largest of the
    rounds so far, which rises without feedback too. target_similarity (_min, _max): the same of the cosine of its
    pixels with a hidden target: a `Resemblance`, or, without one, the held-out real image of its class that the
    preference likes best.
    pixel_diversity: 1 - the mean cosine of the pixels of two images of a session and round (the original reports the
    cosine itself). Each is a mean over sessions. The floors of the means are those of held-out real images, of all
    classes."""

    preference: Any = field(default_factory=dict)
    target: Any = field(default_factory=dict)  # a Resemblance; empty: a real image of each class
    needs = (Images,)
    reads_models: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.judge = build(self.preference, Preference, "preference")
        self.hidden = build(self.target, Resemblance, "target") if self.target else None

    def parts(self) -> Mapping[str, Plugin]:
        return {"preference": self.judge} | ({"target": self.hidden} if self.hidden else {})

    def reads(self) -> tuple[str, ...]:
        return (HISTORY, DROPPED)

    def check(self, experiment: Experiment) -> None:
        for name, curator in experiment.curators.items():
            if isinstance(curator, Preferred) and same(curator.judge, self.judge):
                why = f"is also what gives the feedback (curation.{name}.preference); judge by another one"
                raise UserError("preference", type(self.judge).__name__, why)

    def measure(self, evidence: Evidence) -> dict[str, float]:
        domain = able(evidence.domain, Images)
        found = self._floors(evidence.floor, evidence)
        if evidence.generated is None:
            return found
        table = records.read(evidence.generated)
        pixels, whose = domain.pixels(table), sessions(table)
        liked, alike = self.judge.scores(pixels), self._alike(pixels, table, evidence)
        best = {session: float(liked[whose == session].max()) for session in np.unique(whose)}
        earlier = (evidence.inputs.all(name) for name in (HISTORY, DROPPED)) if evidence.round > 1 else ()
        for path in (path for paths in earlier for path in paths):
            for session, before in self._best(path, domain).items():
                best[session] = max(best.get(session, 0.0), before)
        found["preference_max_so_far"] = float(np.mean(list(best.values())))
        for name, score in (("preference", liked), ("target_similarity", alike)):
            for end, of in (("", np.mean), ("_min", np.min), ("_max", np.max)):
                found[name + end] = float(np.mean([of(score[whose == session]) for session in best]))
        spread = [s for session in best if (s := diversity(pixels[whose == session])) is not None]
        return found | ({"pixel_diversity": float(np.mean(spread))} if spread else {})

    def _floors(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        pixels = able(evidence.domain, Images).pixels(table)
        alike = self._alike(pixels, table, evidence)
        found = {"preference_floor": self.judge.scores(pixels).mean(), "target_similarity_floor": alike.mean()}
        spread = diversity(pixels)
        return {k: float(v) for k, v in found.items()} | ({} if spread is None else {"pixel_diversity_floor": spread})

    def _alike(self, pixels: np.ndarray, table: pa.Table, evidence: Evidence) -> np.ndarray:
        """[n]: the likeness of images to the target."""
        if self.hidden:
            return self.hidden.scores(pixels)
        real = records.read(evidence.data / "test.parquet")
        its, theirs, own = (
            able(evidence.domain, Images).pixels(real),
            real["label"].to_numpy(),
            table["label"].to_numpy(),
        )
        score, found = self.judge.scores(its), np.empty(len(pixels))
        for label in np.unique(own):
            among = np.flatnonzero(theirs == label) if label in theirs else np.arange(len(its))
            found[own == label] = cosines(pixels[own == label], its[among[score[among].argmax()]])
        return found

    def _best(self, path: Path, domain: Images) -> dict[int, float]:
        table = records.read(path)
        if not len(table):
            return {}
        whose, score = sessions(table), self.judge.scores(domain.pixels(table))
        return {int(session): float(score[whose == session].max()) for session in np.unique(whose)}


def diversity(pixels: np.ndarray) -> float | None:
    """1 - the mean cosine over all pairs of images [n, height, width, channels]; None of fewer than two. In O(n)."""
    if len(pixels) < 2:
        return None
    flat = pixels.reshape(len(pixels), -1).astype(float)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    own, n = float((flat**2).sum()), len(flat)
    return 1 - (float((flat.sum(axis=0) ** 2).sum()) - own) / (n * (n - 1))
