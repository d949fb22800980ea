"""From an arm's config to what the engine needs: the mixing of every round, and how many records every round keeps."""

from __future__ import annotations

from collections.abc import Callable

from genloss.core.capabilities import able
from genloss.core.contracts import Experiment
from genloss.curate.choose import Random, kept_of
from genloss.domains.lab.draw import Draw
from genloss.theory.pairs import Law, NoPrediction, Prediction, predict


def predict_arm(x: Experiment, law: Callable[[Experiment], Law]) -> list[Prediction]:
    """The engine's prediction of an arm of the lab; law: of one round's experiment."""
    at = [x.at_round(n) for n in range(x.rounds + 1)]
    available: int = x.domain.config("data")["slots"]
    return predict(lambda n: at[n].mixing, x.rounds, available, lambda n: kept(at[n]), lambda n: law(at[n]))


def kept(x: Experiment) -> int:
    """Records that are kept of one round, if it is a fixed number of them chosen blindly."""
    count = able(x.recipe, Draw).n
    for name, curator in x.curators.items():
        if not isinstance(curator, Random):
            raise NoPrediction(f"{name} looks at what it keeps")
        count = kept_of(curator.fraction, count)
    return count
