"""From an arm's config to what the engine needs: the mixing of every round, and how many records every round keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from genloss.curate.choose import Random, kept_of
from genloss.mix import Mixing
from genloss.theory.pairs import Law, NoPrediction, Prediction, predict

if TYPE_CHECKING:
    from genloss.config import Experiment


def predict_arm(x: Experiment, law: Law | Callable[[int], Law], batch: int = 1) -> list[Prediction]:
    """The engine's prediction of an arm of the lab. batch: points that one record stands for."""
    if callable(law):
        laws = {law(n) for n in range(x.rounds + 1)}
        if len(laws) > 1:
            raise NoPrediction("sampling changes between rounds")
        law = laws.pop()

    def mixing(n: int) -> Mixing:
        own = x.at_round(n).mixing
        if batch == 1:
            return own
        if own.budget.kind != "grow" or own.synthetic.n is not None or own.by in ("fraction", "ratio"):
            raise NoPrediction("sums of points are not picked apart by chance")
        real = replace(own.real, n=None if own.real.n is None else own.real.n * batch)
        return replace(own, real=real)

    available: Any = x.domain.config("data")["slots"]
    return predict(mixing, x.rounds, available * batch, lambda n: batch * kept(x.at_round(n)), law)


def kept(x: Experiment) -> int:
    """Records that are kept of one round, if it is a fixed number of them chosen blindly."""
    recipe: Any = x.recipe
    count: int = recipe.n
    for name, curator in x.curators.items():
        if not isinstance(curator, Random):
            raise NoPrediction(f"{name} looks at what it keeps")
        count = kept_of(curator.fraction, count)
    return count
