"""One recursion over pairs of records that predicts every mixing regime exactly.

    predict(mixing, rounds=10, available=1000, kept=100, law=gaussian("mle"))[n].diversity

Records are points of an inner-product space: numbers, of which the real ones have mean 0 (Gaussian), or one-hot
vectors, where <x, y> = [x = y] (categorical). Model n is fitted to a weighted training set; its mean is
mu_n = sum_i w_i x_i, and its variance is v_n = sum_i w_i |x_i|^2 - |mu_n|^2. For one-hot vectors mu_n is the vector p_n
of relative frequencies and v_n = 1 - sum p_n^2 (Gini-Simpson). A record y that model n makes then has

    E<y, x> = E<mu_n, x> for every older x,    E<y, y'> = E|mu_n|^2 for two of them,    E|y|^2 = E|mu_n|^2 + E v_n.

The training set is drawn without looking at the values, so E w_i w_j <x_i, x_j> = E[w_i w_j] E<x_i, x_j>, and these
equations are a closed linear recursion: no other property of the family matters, and nothing is approximated.
Known closed forms are special cases: (1 - 1/N)^n of replace (Seddik et al. 2024, arXiv 2404.05090), the product
over 1 - 1/(N i^2) of accumulate (cf. Kazdan et al. 2025, arXiv 2410.16713).

Records that no rule of the schema tells apart form a group: the kept records of one round, or a stretch of the frozen
order of the real data that every slice contains whole or not at all (slices of different rounds may overlap).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from genloss.core.errors import UserError, one_of, require
from genloss.mix import Mixing, Part, Regime

ESTIMATORS = ("mle", "unbiased", "kde", "known")


class NoPrediction(Exception):
    """The run has no exact expectation that this module knows; the message says why, on one line."""


@dataclass(frozen=True)
class Law:
    """What the recursion must know of a family. The variance of model n is scale * v_n + added, with v_n divided by
    1 - sum w_i^2 over the points of its training set if `unbiased`; what it makes has `spread` times that variance."""

    self_real: float  # E<x, x> of a real point
    pair_real: float  # E<x, y> of two real points, which is |their mean|^2
    unbiased: bool = False
    scale: float = 1.0
    added: float = 0.0
    spread: float = 1.0
    batch: int = 1  # points in a record: they are drawn together, and enter the products as their mean


@dataclass(frozen=True)
class Prediction:
    """Expectations over runs of one round."""

    diversity: float  # of the model: its variance per coordinate, or 1 - sum p^2
    drift: float  # squared distance of the model's mean from the real mean, per coordinate
    points: int  # records in the training set


def gaussian(
    estimator: str = "mle",
    bias: float = 1.0,
    truncation: float | None = None,
    bandwidth: float = 0.0,
    variance: float = 1.0,
    batch: int = 1,
) -> Law:
    """A coordinate of a Gaussian fit. mle, unbiased: estimators of the variance; known: only the mean is fitted;
    kde: a random training record plus noise of the given bandwidth, which the others do not use.

    bias: records are drawn with `bias` times the variance (Alemohammad et al. 2024, arXiv 2307.01850: lambda).
    truncation: records farther than so many standard deviations from the mean are drawn again.
    batch: points that every record stands for."""
    one_of("estimator", estimator, ESTIMATORS)
    require(truncation is None or truncation > 0, "truncation", truncation, "above 0 standard deviations")
    require(batch >= 1, "batch", batch, "at least 1 point a record")
    if estimator == "kde" and (bias != 1 or truncation is not None):
        raise NoPrediction("a kernel density estimate has no single variance to scale or to truncate")
    if estimator == "kde" and batch > 1:
        raise NoPrediction("a kernel density estimate needs the points, and a record of many keeps their moments only")
    known = estimator == "known"
    return Law(
        variance,
        0.0,
        unbiased=estimator == "unbiased",
        scale=0.0 if known else 1.0,
        added=variance if known else bandwidth**2 if estimator == "kde" else 0.0,
        spread=bias * truncated(truncation),
        batch=batch,
    )


def truncated(c: float | None) -> float:
    """Variance of a standard normal variable on [-c, c]: 1 - 2 c phi(c) / (2 Phi(c) - 1)."""
    if c is None:
        return 1.0
    return 1 - 2 * c * math.exp(-c * c / 2) / math.sqrt(2 * math.pi) / math.erf(c / math.sqrt(2))


def categorical(collision: float) -> Law:
    """Relative frequencies of tokens. collision: the chance that two real records are equal, sum p^2."""
    return Law(1.0, collision)


def predict(
    mixing: Mixing | Callable[[int], Mixing],
    rounds: int,
    available: int,
    kept: int | Callable[[int], int],
    law: Law | Callable[[int], Law],
) -> list[Prediction]:
    """Expectations of rounds 0..`rounds`. mixing, law: one for all rounds, or that of round n, whose law says how
    model n is fitted and with what spread model n-1 made its records; kept: how many of those round n >= 1 keeps;
    available: real training records."""
    mixings = [mixing if isinstance(mixing, Mixing) else mixing(n) for n in range(rounds + 1)]
    counts = {n: kept if isinstance(kept, int) else kept(n) for n in range(1, rounds + 1)}
    laws = [law if isinstance(law, Law) else law(n) for n in range(rounds + 1)]
    pairs = Pairs(plans(Regime(tuple(mixings)), available, counts), counts, laws)
    return [pairs.fit(n, m) for n, m in enumerate(mixings)]


def plans(regime: Regime, available: int, kept: dict[int, int]) -> list[list[Part]]:
    """The plan of every round; NoPrediction where one cannot be."""
    try:
        return [regime.plan(n, available, kept) for n in range(len(regime.rounds))]
    except UserError as error:
        raise NoPrediction(str(error)) from None


class Pairs:
    """The state of the recursion: expected inner products of the groups' records."""

    def __init__(self, plans: list[list[Part]], kept: dict[int, int], laws: list[Law]):
        self.plans, self.laws = plans, laws
        law = laws[0]  # that of the real records
        real = [p for parts in plans for p in parts if p.source == "real"]
        cuts = sorted({edge for p in real for edge in (p.first, p.first + p.size)})
        self.cut = {cut: group for group, cut in enumerate(cuts)}
        self.made = max(0, len(cuts) - 1) - 1  # + j: the group of round j's kept records
        self.size = np.array([*np.diff(cuts), *(kept[j] for j in sorted(kept))], dtype=float)
        self.square = np.full(len(self.size), law.self_real)  # of a record's points, their mean square
        own = law.pair_real + (law.self_real - law.pair_real) / law.batch
        self.own = np.full(len(self.size), own)  # of a record's mean, its square
        # two records of groups g and h drawn independently: within a group they may be the same record
        self.pair = np.full((len(self.size), len(self.size)), law.pair_real)
        np.fill_diagonal(self.pair, law.pair_real + (own - law.pair_real) / np.maximum(1, self.size))

    def fit(self, n: int, mixing: Mixing) -> Prediction:
        """Round n, whose earlier rounds have been fitted. Fitting it again forgets the first time."""
        law, weighted = self.laws[n], mixing.by == "weight" and n > 0
        split = [[p for p in self.plans[n] if (p.source == "real") == real] for real in (True, False)]
        sides = [Side(self, parts, mixing, n) for parts in (split if weighted else [self.plans[n]]) if parts]
        if not sides:
            raise NoPrediction(f"round {n} has no records to train on")
        pool = sum(side.rows for side in sides)
        total = mixing.budget.records(n) if n > 0 and mixing.by != "fraction" else None
        again = mixing.replacement and total is not None
        points = pool if total is None else total
        chance, count, share = _divide([side.rows for side in sides], points, again, mixing.value)
        squares = (share**2 / np.maximum(1, count)).sum(axis=0) / law.batch  # sum of the points' squared weights
        if law.unbiased and squares.max() >= 1:
            raise NoPrediction(f"round {n} may train on one record, of which no variance can be estimated")
        corrected = chance / (1 - squares) if law.unbiased else chance

        mean = sum(side.mix * u for side, u in zip(sides, share @ chance, strict=True))
        second = self._second(sides, chance, count, share, again)
        variance = sum(side.square * u for side, u in zip(sides, share @ corrected, strict=True)) - self._second(
            sides, corrected, count, share, again
        )
        diversity = law.scale * variance + law.added
        if n + 1 < len(self.plans):
            new = self.made + n + 1
            members = np.flatnonzero(mean)
            self.pair[new] = self.pair[:, new] = mean[members] @ self.pair[members]
            spread = self.laws[n + 1].spread * diversity
            self.square[new] = second + spread
            self.own[new] = second + spread / law.batch
            self.pair[new, new] = second + (self.own[new] - second) / max(1, self.size[new])
        return Prediction(float(diversity), float(second - law.pair_real), points)

    def _second(
        self, sides: list[Side], chance: np.ndarray, count: np.ndarray, share: np.ndarray, again: bool
    ) -> float:
        """E|mu|^2, the cases weighted by `chance`: a record with itself, two of one side, two of different sides."""
        result = 0.0
        for side, u, records in zip(sides, share, count, strict=True):
            itself = chance @ (u**2 / np.maximum(1, records))
            repeat = 1 / side.rows if again else 0.0  # two draws of a budget may be the same row
            two = repeat * side.own + (1 - repeat) * side.two
            result += itself * side.own + (chance @ u**2 - itself) * two
        if len(sides) == 2:
            members = np.flatnonzero(sides[0].mix)
            result += 2 * (chance @ (share[0] * share[1])) * (sides[0].mix[members] @ self.pair[members] @ sides[1].mix)
        return result


class Side:
    """Shards of one training set that share a weight: a pool of rows from which a budget may draw."""

    def __init__(self, pairs: Pairs, parts: list[Part], mixing: Mixing, n: int):
        self.rows = sum(p.take for p in parts)
        self.mix = np.zeros(len(pairs.size))  # the groups' shares of the rows
        bootstrap = mixing.replacement and mixing.by == "fraction" and n > 0
        excess = 0.0  # over the rows' products, of taking any two rows of a part for independent draws from its slice
        for p in parts:
            low, high = (
                (pairs.cut[p.first], pairs.cut[p.first + p.size])
                if p.source == "real"
                else (pairs.made + int(p.source), pairs.made + int(p.source) + 1)
            )
            share = pairs.size[low:high] / p.size
            self.mix[low:high] += share * p.take / self.rows
            independent = share @ pairs.pair[low:high, low:high] @ share
            if bootstrap or p.take > p.size:
                excess += p.take * independent
            elif p.size > 1:
                distinct = (p.size * independent - share @ pairs.own[low:high]) / (p.size - 1)
                excess += p.take * (p.take * independent - (p.take - 1) * distinct)
            else:
                excess += independent
        members = np.flatnonzero(self.mix)
        mix = self.mix[members]
        self.square = float(mix @ pairs.square[members])
        self.own = float(mix @ pairs.own[members])  # a row with itself
        products = self.rows**2 * (mix @ pairs.pair[np.ix_(members, members)] @ mix) - excess
        self.two = float(products / max(1, self.rows * (self.rows - 1)))  # two different rows


def _divide(
    rows: list[int], points: int, again: bool, value: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every way to divide the drawn records between the sides: its chance, and each side's records and loss share."""
    if len(rows) == 1:
        return np.ones(1), np.full((1, 1), points), np.ones((1, 1))
    real, pool = rows[0], sum(rows)
    # n_R: hypergeometric, or binomial with replacement; log-ratios of successive chances stay exact for large pools
    k = np.arange(0, points + 1) if again else np.arange(max(0, points - rows[1]), min(points, real) + 1)
    here, there = k[:-1].astype(float), k[1:].astype(float)
    if again:
        ratio = (points - here) / there * real / rows[1]
    else:
        ratio = (real - here) * (points - here) / (there * (pool - real - points + there))
    log = np.concatenate([[0.0], np.cumsum(np.log(ratio))])
    chance = np.exp(log - log.max())
    first = np.where(k == 0, 0.0, np.where(k == points, 1.0, value or 0.0))
    return chance / chance.sum(), np.stack([k, points - k]), np.stack([first, 1 - first])
