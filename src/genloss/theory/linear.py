"""Theory of linear models: regression in closed form, and classifiers in the limits where they have one.

    average({2: 1}, [{"real": 1}, {"real": 1, 1: 1}])     # replace: model 2 adds the noise of its own fit to model 1's
    mixed_bias(real=99, synthetic=1, dimension=10)        # the share of a labeller's error that a pool inherits
    ridge_accuracy(points=400, error=0.2, ridge=0.1, dimension=200, separation=2)

A fit by least squares to several sets with one design is the average of their own fits, w = sum_g share_g w_g, and the
fit to what model j made is w_j plus noise. So a model is a combination of independent noises, one for each set that
was ever made, and `average` keeps its coefficients, for any regime. Replace and accumulate (Gerstgrasser et al. 2024,
arXiv 2404.01413, theorems 1 and 2) are its simplest cases. The names say how exact the rest is: nothing added: exact;
`asymptotic`: the leading order in the number of points; `limit`: infinitely many points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genloss.core.errors import UserError
from genloss.theory.pairs import NoPrediction

if TYPE_CHECKING:
    from genloss.core.contracts import Experiment

Group = Any  # the number of the round that made a synthetic set; anything else that is hashable is a real set
Noises = dict[Group, float]  # coefficients of the groups' noises


@dataclass(frozen=True)
class Member:
    """What a training set has of one group: so many points of the slots from `first` on, and a share of the loss."""

    group: Group
    first: int
    points: int
    share: float
    whole: bool  # all points of those slots, not some that every chain chose


def pools(x: Experiment, kept: Mapping[int, int]) -> list[list[Member]]:
    """The training set of every round, as far as their counts are no chance. kept: records that round n >= 1 keeps."""
    available: int = x.domain.config("data")["slots"]
    found: list[list[Member]] = []
    slices: set[tuple[int, int]] = set()
    for n in range(x.rounds + 1):
        mixing = x.regime.rounds[n]
        try:
            parts = x.regime.plan(n, available, kept)
        except UserError:  # the expected number of kept records does not suffice; that of the run may
            break
        pool = sum(p.take for p in parts)
        total = mixing.budget.records(n) if n > 0 else None
        if total not in (None, pool) or (n > 0 and mixing.replacement):
            break
        slices |= {(p.first, p.size) for p in parts if p.source == "real"}
        real = sum(p.take for p in parts if p.source == "real")
        shares = {p.name: p.take / pool for p in parts}
        if mixing.by == "weight" and 0 < real < pool and n > 0:
            w = mixing.value or 0.0
            shares = {p.name: p.take * (w / real if p.source == "real" else (1 - w) / (pool - real)) for p in parts}
        found.append(
            [
                Member(
                    ("real", p.first) if p.source == "real" else int(p.source),
                    p.first,
                    p.take,
                    shares[p.name],
                    p.take == p.size,
                )
                for p in parts
            ]
        )
    if any(a + size > b for (a, size), (b, _) in itertools.pairwise(sorted(slices))):
        raise NoPrediction("slices of the real data overlap")
    return found


def average(shares: Mapping[Group, float], models: Sequence[Noises] | None) -> Noises:
    """The noises in the average of groups' fits. models: of the rounds before, where round j's records were labelled
    by model j-1; None: by something that no round changes."""
    model: Noises = {}
    for group, share in shares.items():
        inherited = models[group - 1] if models is not None and isinstance(group, int) else {}
        for noise, coefficient in (*inherited.items(), (group, 1.0)):
            model[noise] = model.get(noise, 0.0) + share * coefficient
    return model


# -- regression ------------------------------------------------------------------------------------------------------


def ols_noise(points: int, dimension: int) -> float:
    """E tr (X'X)^-1 for standard normal rows: d / (n - d - 1), the mean of an inverse Wishart matrix."""
    if points <= dimension + 1:
        raise NoPrediction(f"{points} points have no finite expected risk in {dimension} dimensions")
    return dimension / (points - dimension - 1)


def mixed_bias(real: int, synthetic: int, dimension: int) -> float:
    """E |w - w*|^2 / |w_syn - w*|^2 of least squares without noise, on real labels and on labels of w_syn (Strong
    Model Collapse, Dohmatob et al. 2025, arXiv 2410.04840). Exact for standard normal rows; theirs is the limit of
    high dimension, p2^2 + p1 p2 phi / (1 - phi) with phi = d / n.

    With A = A_real + A_syn the error is A^-1 A_syn (w_syn - w*). A^-1/2 A_syn A^-1/2 = U is a matrix-variate beta
    variable that is independent of A, with E U_ij U_kl = a [ij][kl] + b ([ik][jl] + [il][jk]), which its zonal
    polynomials give; and E tr A tr A^-1 = (n d - 2) E tr A^-1, by the scaling of the Wishart density."""
    if synthetic == 0:
        return 0.0
    n = real + synthetic
    ols_noise(n, dimension)
    both = synthetic * (synthetic + 2) / (n * (n + 2))
    apart = synthetic * (synthetic - 1) / (n * (n - 1))
    a, b = (both + 2 * apart) / 3, (both - apart) / 3
    return a + b + b * (n * dimension - 2) / (n - dimension - 1)


def regression(
    sets: Sequence[Sequence[Member]], dimension: int, noise: float, *, shared: bool, misalignment: float
) -> list[float]:
    """E |w - w*|^2 of least squares in rounds 0, 1, ..., for as many of them as it is exact."""
    risks: list[float] = []
    models: list[Noises] = []
    variance: dict[Group, float] = {}
    follow = misalignment == 0
    even_before = True

    def pool(members: Sequence[Member]) -> list[tuple[Group, int, bool]]:
        return [(m.group, m.points, m.whole) for m in members]

    for n, members in enumerate(sets):
        points = sum(m.points for m in members)
        even = all(math.isclose(m.share * points, m.points) for m in members)
        synthetic = [m for m in members if isinstance(m.group, int)]
        whole = all(m.whole for m in members)
        bias = 0.0
        try:
            if whole and (len(members) == 1 or (shared and len({(m.first, m.points) for m in members}) == 1)):
                for m in members:
                    variance[m.group] = noise**2 * ols_noise(m.points, dimension)
                model = average({m.group: m.share for m in members}, models if follow else None)
                bias = misalignment * sum(m.share for m in synthetic) ** 2
            elif shared or not even:
                break
            elif not synthetic or not follow:  # rows and noise are independent of all else: one fit to one pool
                made = sum(m.points for m in synthetic)
                model = {("pool", n): 1.0}
                variance["pool", n] = noise**2 * ols_noise(points, dimension)
                bias = misalignment * mixed_bias(points - made, made, dimension)
            elif whole and [m for m in pool(members) if m[0] != n] == pool(sets[n - 1]) and even_before:
                # Recursive least squares: w_n = w_{n-1} + A_n^-1 X'e, with only the new rows and their noise in X'e.
                # Old and new rows are exchangeable, so that E tr A_n^-1 X'X A_n^-1 is their share of E tr A_n^-1.
                new = next(m.points for m in members if m.group == n)
                model = {**models[n - 1], ("added", n): 1.0}
                variance["added", n] = noise**2 * new / points * ols_noise(points, dimension)
            else:
                break
        except NoPrediction:
            break
        models.append(model)
        even_before = even
        risks.append(bias + sum(c**2 * variance[g] for g, c in model.items()))
    return risks


# -- classification --------------------------------------------------------------------------------------------------


def normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def verified(error: float, phi: float, psi: float) -> tuple[float, float]:
    """(share that is kept, share of wrong labels among the kept) of a verifier that keeps right labels with
    probability phi and wrong ones with psi (Feng et al. 2024, arXiv 2406.07515)."""
    kept = phi * (1 - error) + psi * error
    return kept, psi * error / kept if kept else math.nan


def ridge_accuracy(points: float, error: float, ridge: float, dimension: int, separation: float) -> float:
    """Accuracy of least squares with penalty `ridge` a point on x = y mu + z, |mu| = separation, with a share `error`
    of wrong labels, in the limit of points and dimension in proportion (its own error is O(1/d)).

    `points` and `error` are those after verification, which turns m points into m a with the error psi p / a, and a
    ridge of g a generated point into one of g / a for a kept one. The code released for "Maximizing the Potential of
    Synthetic Data" (Firdoussi et al. 2024) counts a twice in delta, and is wrong unless nearly everything is kept."""
    eta, fair, mu2 = dimension / points, 1 - 2 * error, separation**2
    if ridge == 0 and eta >= 1:
        raise NoPrediction("least squares without a penalty has no limit with fewer points than dimensions")
    half = 1 + ridge - eta
    root = math.sqrt(half**2 + 4 * eta * ridge)
    delta = 2 * eta / (root + half) if half > 0 else (root - half) / (2 * ridge)
    d = mu2 + 1 + ridge * (1 + delta)
    h = 1 - eta / (1 + ridge * (1 + delta)) ** 2
    mean = fair * mu2 / d
    second = (fair**2 * mu2) / (h * d) * ((mu2 + 1) / d - 2 * (1 - h)) + (1 - h) / h
    return normal_cdf(mean / math.sqrt(second - mean**2))


def mean_accuracy(points: float, error: float, dimension: int, separation: float) -> float:
    """The same of w = mean of y x, which is (1 - 2 error) mu plus noise of variance 1/points a coordinate."""
    fair = 1 - 2 * error
    return normal_cdf(fair * separation**2 / math.sqrt((fair * separation) ** 2 + dimension / points))


def limit_accuracy(error: float, separation: float | None) -> float:
    """With infinitely many points, a share `error` of them with wrong labels, whatever the estimator: the direction is
    right below one half and opposite above. separation: of the mixture; None: labels without noise (half-space)."""
    if math.isclose(error, 0.5):
        return 0.5
    right = 1.0 if separation is None else normal_cdf(separation)
    return right if error < 0.5 else 1 - right


def angle_noise(kind: str, points: float, dimension: int) -> float:
    """E angle^2 of a classifier fitted to sign<w*, x>, x ~ N(0, I), to first order in d/n."""
    return ((math.pi / 2 - 1) if kind == "ols" else math.pi / 2) * (dimension - 1) / points


def bisector(generator: float, verifier: float) -> float:
    """Angle, in a plane, of what infinitely many points teach on which the labels of two linear classifiers agree:
    kept points lie symmetrically about the bisector. With the model as the next generator, every round halves the
    angle to the verifier."""
    return (generator + verifier) / 2
