"""Theory: what a run must give on average, exactly, for families whose fit has a known mean and variance.

pairs.py predicts the diversity and the drift of every round of any mixing regime; golden.py finds the loss weights
that keep the drift smallest.
"""

from genloss.theory.golden import Optimum, limit, optimal, schedule, weight
from genloss.theory.pairs import Law, NoPrediction, Prediction, categorical, gaussian, predict

__all__ = [
    "Law",
    "NoPrediction",
    "Optimum",
    "Prediction",
    "categorical",
    "gaussian",
    "limit",
    "optimal",
    "predict",
    "schedule",
    "weight",
]
