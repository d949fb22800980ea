"""The definitions of collapse, a statistical test each, of a group of arms against its control.

    DEFINITIONS["any_rise"](Pair(group, control, groups))      what was found; Untestable says why nothing can be

The eight are those that Schaeffer et al. (2025, arXiv 2503.03150) find in the literature; the criteria are ours, one
test each (docs/verdicts.md):

    catastrophic     risk in the last round above that of a stated useless baseline, and above the control's
    any_rise         risk in the last round above the control's
    diverging        its excess grows in the last half, and a line predicts held-out rounds better than what saturates
    variance         spread falls against the control's, and a line predicts held-out rounds better than what saturates
    scaling          the exponent of risk in the size of the data is worse than the control's (three sizes or more)
    entanglement     modes are confused more than under the control
    tail             less of the real distribution's tail is left than under the control
    hallucination    more lies outside of the real support than under the control

Every condition is a one-sided Student's t test of one number a seed, on a log scale where a metric is positive. A
definition with two conditions has the larger of their p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from genloss.observatory.compare import LEVEL, SEEDS, chance, flat, interval
from genloss.observatory.controls import Group
from genloss.observatory.curves import fit, fit_at
from genloss.observatory.quantities import quantity

RELEVANT = 0.05  # a rise that is surely smaller is none: 5 % of a positive metric, 0.05 of any other
POWER = 0.8  # with which the seeds that are asked for would decide
MOST = 1000  # seeds that are asked for
FEW = 5  # rounds that a note names
TREND = 5  # rounds below which nobody can tell a line from a curve: three to fit, two to predict


# -- what a definition reads -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A metric, and which way is worse (1: up, -1: down)."""

    metric: str
    worse: int
    log: bool = False  # compared by ratios, as long as every value is positive


RISK, SPREAD, MODES, TAIL, OUTSIDE = "risk", "spread", "modes", "tail", "outside"  # what a metric stands for

# Which metrics the definitions read, by the domain's name; of several the first one that all arms have.
READS: dict[str, dict[str, tuple[Reading, ...]]] = {
    "text": {
        RISK: (Reading("heldout_bits_per_byte", 1, log=True),),
        SPREAD: (Reading("entropy_1", -1, log=True),),
        TAIL: (Reading("coverage_d10", -1),),
        OUTSIDE: (Reading("loss_under_round0_p99", 1, log=True),),  # text that is improbable under the real one
    },
    "reasoning": {
        RISK: (Reading("accuracy", -1),),
        OUTSIDE: (Reading("label_accuracy", -1),),  # wrong answers among those generated
    },
    "instruct": {
        RISK: (Reading("followed", -1),),
        TAIL: (Reading("breadth", -1),),
        OUTSIDE: (Reading("label_accuracy", -1),),
    },
    "gaussian": {
        RISK: (Reading("w2", 1, log=True),),
        SPREAD: (Reading("log_diversity", -1), Reading("diversity", -1, log=True)),
    },
    "categorical": {
        RISK: (Reading("heldout_loss", 1, log=True), Reading("drift", 1, log=True)),
        SPREAD: (Reading("diversity", -1, log=True),),  # whose logarithm falls in a line under replace
        TAIL: (Reading("lost_mass", 1, log=True),),
    },
    "gmm": {
        RISK: (Reading("log_likelihood", -1),),
        SPREAD: (Reading("diversity", -1, log=True),),
        MODES: (Reading("confusion", 1),),
        TAIL: (Reading("recall", -1),),
        OUTSIDE: (Reading("outside", 1),),
    },
    "images": {
        RISK: (Reading("denoising_loss", 1, log=True),),
        SPREAD: (Reading("feature_spread", -1, log=True),),
        MODES: (Reading("sprite_entangled", 1),),
        TAIL: (Reading("sprite_tail", -1), Reading("manifold_recall", -1)),
        OUTSIDE: (Reading("sprite_outside", 1), Reading("manifold_precision", -1)),
    },
    "regression": {RISK: (Reading("risk", 1, log=True),)},
    "classification": {
        RISK: (Reading("accuracy", -1),),
        MODES: (Reading("error_rate", 1),),  # the next round's labels that are wrong
    },
}


def useless(domain: str, metric: str, known: Mapping[str, Any]) -> float | None:
    """The risk of a baseline that is of no use; None where none is stated. known: the arm's config by dotted keys."""
    if (domain, metric) == ("gmm", "log_likelihood"):  # one Gaussian with the mean and the variance of all modes
        side = math.ceil(math.sqrt(known["domain.modes"]))
        at = np.array([divmod(i, side) for i in range(known["domain.modes"])], dtype=float)
        variance = float(known["domain.spacing"] ** 2 * at.var(axis=0).mean() + known["domain.std"] ** 2)
        return -1 - math.log(2 * math.pi * variance)
    if (domain, metric) == ("categorical", "heldout_loss"):  # all tokens equally likely
        given = known.get("domain.probabilities") or ()
        return math.log(len(given) or known["domain.vocabulary"])
    return {
        ("text", "heldout_bits_per_byte"): 8.0,  # all bytes equally likely
        ("gaussian", "w2"): 1.0,  # the real mean, always
        ("regression", "risk"): 1.0,  # w = 0
        ("images", "denoising_loss"): 1.0,  # no noise, ever
        ("classification", "accuracy"): 0.5,  # a coin
    }.get((domain, metric))


# -- the tests ---------------------------------------------------------------------------------------------------------


class Untestable(Exception):
    """Why a definition cannot be tested."""


@dataclass(frozen=True)
class Condition:
    """One number a seed, of which the mean is tested: above 0 is worse. margin: what is surely less is no collapse."""

    values: np.ndarray
    margin: float = RELEVANT

    @cached_property
    def p(self) -> float:
        """One-sided, of Student's t; of signs where seeds do not differ."""
        two = chance(self.values)
        return two / 2 if self.values.mean() > 0 else 1 - two / 2

    @cached_property
    def interval(self) -> tuple[float, float, float]:
        return interval(self.values)

    @cached_property
    def absent(self) -> bool:
        return self.interval[2] < self.margin

    def needed(self, level: float) -> int:
        """Seeds with which it would be decided, if the effect and the spread over seeds are those that were seen: that
        it holds, at this level, or that it is absent, whichever is the sooner."""
        mean = float(self.values.mean())
        if flat(self.values):
            return math.ceil(math.log2(1 / level)) if mean > 0 else len(self.values)
        sd = float(self.values.std(ddof=1))
        sooner = [needed(mean / sd, level), needed((self.margin - mean) / sd, LEVEL / 2)]
        return min(sooner)


@cache
def needed(d: float, level: float) -> int:
    """The least number of seeds for which a one-sided t test at this level finds an effect of d standard deviations
    with probability POWER; at most MOST + 1."""
    if d <= 0 or power(d, MOST, level) < POWER:
        return MOST + 1
    low, high = 2, MOST
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(d, middle, level) >= POWER else (middle + 1, high)
    return low


def power(d: float, seeds: int, level: float) -> float:
    """Of the one-sided t test: the noncentral t distribution (as TTestPower of statsmodels)."""
    from scipy import stats

    limit = stats.t.isf(level, seeds - 1)
    found = float(stats.nct.sf(limit, seeds - 1, d * math.sqrt(seeds)))
    return found if math.isfinite(found) else float(d * math.sqrt(seeds) > limit)


@dataclass(frozen=True)
class Found:
    """What a definition was tested on. The first condition's effect is the one that is told, in the metric's own
    direction. by_round: {round: values of the seeds, above 0 is worse}, for the onset."""

    metric: str
    worse: int
    scale: str  # of the effect: "log ratio", "difference", "change over the run", "exponent"
    conditions: tuple[Condition, ...]
    by_round: Mapping[int, np.ndarray]
    note: str  # what a verdict on it has to add
    missing: tuple[int, ...]  # rounds that others have and that it does not rest on

    @cached_property
    def p(self) -> float:
        return max(condition.p for condition in self.conditions)


@dataclass(frozen=True)
class Pair:
    """A group and its control, the seeds that both have and the rounds that all of these have."""

    group: Group
    control: Group
    all: Sequence[Group]

    @cached_property
    def ended(self) -> dict[int, int]:
        """{seed: the last round that both have}, of the seeds that both have."""
        sides = (self.group.seeds, self.control.seeds)
        return {seed: min(max(side[seed]) for side in sides) for seed in sorted(sides[0].keys() & sides[1].keys())}

    @cached_property
    def seeds(self) -> list[int]:
        """Those that are tested: without those that ended early, as long as SEEDS are left. One that failed would cut
        all others to its rounds."""
        last = sorted(self.ended.values(), reverse=True)[:SEEDS]
        return [seed for seed, end in self.ended.items() if end >= last[-1]]

    @cached_property
    def rounds(self) -> list[int]:
        """Those that all of these seeds have."""
        shared = sorted(set.intersection(*(set(g.seeds[s]) for g in (self.group, self.control) for s in self.seeds)))
        if not shared or shared[-1] == 0:
            raise Untestable("there is no round after round 0 that every seed has")
        return shared

    @cached_property
    def last(self) -> int:
        """The last round of any group of the domain."""
        return max(max(r) for g in self.all if g.domain == self.group.domain for r in g.seeds.values())

    @cached_property
    def missing(self) -> tuple[int, ...]:
        """Rounds up to the last one of any group which a verdict does not rest on."""
        return tuple(sorted(set(range(self.rounds[0], self.last + 1)) - set(self.rounds)))

    @cached_property
    def note(self) -> str:
        """What a verdict on these rounds and seeds has to add."""
        gaps = [n for n in self.missing if n < self.rounds[-1]]
        said = [f"seed {s} left out: it ended at round {n}" for s, n in self.ended.items() if s not in self.seeds]
        if gaps:
            few = ", ".join(map(str, gaps[:FEW])) + (" …" if len(gaps) > FEW else "")
            said.insert(0, f"without round{'s' * (len(gaps) > 1)} {few}")
        if self.rounds[-1] < self.last:
            said.insert(0, f"up to round {self.rounds[-1]} of {self.last}: not every seed is further")
        return "; ".join(said)

    def values(self, role: str) -> tuple[Reading, list[int], np.ndarray, np.ndarray]:
        """(what is read, rounds, the group's values [seeds, rounds], the control's)."""
        able = READS.get(self.group.domain, {}).get(role, ())
        if not able:
            raise Untestable(f"domain {self.group.domain} has no metric for it")
        if len(self.seeds) < SEEDS:
            paired = f"{len(self.seeds)} seed{'s' * (len(self.seeds) != 1)} that both have"
            raise Untestable(f"{paired}; at least {SEEDS} are needed")
        lacks = ""
        for reading in able:
            # a sample metric is not there in round 0, which generates nothing
            rounds = [n for n in self.rounds if n > 0 or all(reading.metric in v for v in self._at(n))]
            holes = [n for n in rounds for v in self._at(n) if not math.isfinite(v.get(reading.metric, math.nan))]
            if not holes:
                sides = [
                    np.array([[g.seeds[s][n][reading.metric] for n in rounds] for s in self.seeds], dtype=float)
                    for g in (self.group, self.control)
                ]
                return reading, rounds, sides[0], sides[1]
            lacks = lacks or f"{reading.metric} is missing, or no number, in round {holes[0]}"
        raise Untestable(lacks)

    def _at(self, n: int) -> list[dict[str, float]]:
        return [g.seeds[s][n] for g in (self.group, self.control) for s in self.seeds]


def _scaled(reading: Reading, *sides: np.ndarray) -> tuple[str, list[np.ndarray]]:
    """(scale, the values on it): logarithms where the metric is compared by ratios and all values are positive."""
    if reading.log and all((side > 0).all() for side in sides):
        return "log ratio", [np.log(side) for side in sides]
    return "difference", list(sides)


def _level(pair: Pair, role: str) -> Found:
    """The last round against the control's."""
    reading, rounds, x, c = pair.values(role)
    scale, (x, c) = _scaled(reading, x, c)
    worse = reading.worse * (x - c)
    by_round = {n: worse[:, i] for i, n in enumerate(rounds) if n > 0}
    return Found(reading.metric, reading.worse, scale, (Condition(worse[:, -1]),), by_round, pair.note, pair.missing)


def _catastrophic(pair: Pair) -> Found:
    reading, rounds, x, c = pair.values(RISK)
    floor = useless(pair.group.domain, reading.metric, pair.group.known)
    if floor is None:
        raise Untestable(f"no useless baseline is stated for {reading.metric}")
    scale, (x, c, line) = _scaled(reading, x, c, np.array([floor]))
    above, worse = reading.worse * (x - line), reading.worse * (x - c)
    by_round = {n: np.minimum(above, worse)[:, i] for i, n in enumerate(rounds) if n > 0}
    conditions = (Condition(above[:, -1], 0.0), Condition(worse[:, -1]))
    return Found(reading.metric, reading.worse, scale, conditions, by_round, pair.note, pair.missing)


def _diverging(pair: Pair) -> Found:
    reading, rounds, x, c = pair.values(RISK)
    if quantity(reading.metric, pair.group.domain).ended(reading.worse):
        raise Untestable(f"{reading.metric} has bounds, and cannot diverge")
    positive = reading.log and (x > 0).all() and (c > 0).all()
    # shares of the control's level, so that a unit changes nothing; a logarithm would bend the line
    unit = c.mean(axis=1, keepdims=True) if positive else 1.0
    worse = reading.worse * (x - c) / unit
    return _trend(pair, reading, rounds, worse, len(rounds) // 2)


def _variance(pair: Pair) -> Found:
    reading, rounds, x, c = pair.values(SPREAD)
    _, (x, c) = _scaled(reading, x, c)
    return _trend(pair, reading, rounds, reading.worse * (x - c), 0)


def _trend(pair: Pair, reading: Reading, rounds: Sequence[int], worse: np.ndarray, start: int) -> Found:
    """worse [seeds, rounds] grows from the start-th round on, and without a bound in sight."""
    if len(rounds) < TREND:
        some = f"{len(rounds)} round{'s' * (len(rounds) != 1)} with {reading.metric}"
        raise Untestable(f"{some}; at least {TREND} are needed to tell a line from a curve")
    n = np.asarray(rounds, dtype=float)
    at = n[start:] - n[start:].mean()
    slopes = worse[:, start:] @ at / (at @ at) * (n[-1] - n[0])
    by_round = {r: worse[:, i] for i, r in enumerate(rounds) if r > 0}
    conditions = (Condition(slopes), Condition(np.array([unbounded(n, y) for y in worse]), 0.0))
    return Found(reading.metric, reading.worse, "change over the run", conditions, by_round, pair.note, pair.missing)


def unbounded(n: np.ndarray, y: np.ndarray) -> float:
    """How much nearer the last third of the rounds lies to the line than to the curve that saturates, both fitted to
    the rounds before: |y - curve|² - |y - line|² over twice their distance, a mean in the unit of y; above 0 the line
    predicts better. Of the curves that saturate (a + b Σ 1/i², or a + b c^n that has come half way to its bound within
    a quarter of the rounds, or an eighth) the one that fits the first rounds better."""
    last = max(2, len(n) // 3)
    rest = n - n[0]  # of metrics without a round 0 too
    seen, hidden = slice(None, -last), slice(-last, None)
    curves = [fit("saturating", rest[seen], y[seen])]
    curves += [fit_at("geometric", rest[seen], y[seen], 0.5 ** (part / rest[-1])) for part in (4, 8)]
    bounded = min(curves, key=lambda curve: curve.error)(rest[hidden])
    line = fit("linear", rest[seen], y[seen])(rest[hidden])
    apart = float(np.linalg.norm(line - bounded))
    if apart <= 1e-12 * float(np.abs(y).max()):
        return 0.0
    return float(((y[hidden] - bounded) ** 2 - (y[hidden] - line) ** 2).sum() / (2 * apart * math.sqrt(last)))


def _scaling(pair: Pair) -> Found:
    family = _family(pair.group, pair.all)
    if len(family) < 3:
        raise Untestable(f"needs arms of at least 3 sizes, there {'is' if len(family) == 1 else 'are'} {len(family)}")
    if pair.group is not family[max(family)]:
        raise Untestable(f"is said of {family[max(family)].name}, the largest of its sizes")
    slopes: list[float] = []
    by_size = []
    for size, group in sorted(family.items()):
        control = _family(pair.control, pair.all).get(size)
        if control is None:
            raise Untestable(f"the control has no arm of size={size}")
        by_size.append(Pair(group, control, pair.all))
    seeds = sorted(set.intersection(*(set(p.seeds) for p in by_size)))
    if len(seeds) < SEEDS:
        raise Untestable(f"{len(seeds)} seeds at every size; at least {SEEDS} are needed")
    read = [p.values(RISK) for p in by_size]
    reading, sizes = read[0][0], np.log(sorted(family))
    for seed in seeds:
        ratios = []
        for p, (own, _, x, c) in zip(by_size, read, strict=True):
            i = p.seeds.index(seed)
            if own != reading or not own.log or x[i, -1] <= 0 or c[i, -1] <= 0:
                raise Untestable(f"{own.metric} is no positive risk at every size")
            ratios.append(math.log(x[i, -1] / c[i, -1]))
        slopes.append(float(np.polyfit(sizes, ratios, 1)[0]))
    notes = [f"size {size}: {p.note}" for size, p in zip(sorted(family), by_size, strict=True) if p.note]
    missing = tuple(sorted({n for p in by_size for n in p.missing}))
    return Found(reading.metric, 1, "exponent", (Condition(np.array(slopes)),), {}, "; ".join(notes), missing)


def _family(group: Group, found: Sequence[Group]) -> dict[int, Group]:
    """{size: group} of the groups that differ from one in their size alone."""
    return {int(g.known["size"]): g for g in found if "size" in g.known and g.family == group.family}


DEFINITIONS: dict[str, Callable[[Pair], Found]] = {
    "catastrophic": _catastrophic,
    "any_rise": lambda pair: _level(pair, RISK),
    "diverging": _diverging,
    "variance": _variance,
    "scaling": _scaling,
    "entanglement": lambda pair: _level(pair, MODES),
    "tail": lambda pair: _level(pair, TAIL),
    "hallucination": lambda pair: _level(pair, OUTSIDE),
}
