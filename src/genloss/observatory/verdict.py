"""Is it collapse, in which of its published senses, since which round, how sure? Tests of arms against a control.

    rows = verdicts(compared(grouped(...)))    one row an arm group and definition, and one that sums them up
    write(rows, folder); read(folder)          verdicts.json beside the report
    print(shown(rows))                         the table that a report begins with

Arms that differ in their seed alone are one group, and its seeds are paired with those of the control: the group that
is trained on real records alone, or one that the user names. The definitions are the eight that Schaeffer et al. (2025,
arXiv 2503.03150) find in the literature; the criteria are ours, one test each (docs/verdicts.md):

    catastrophic     risk in the last round above that of a stated useless baseline, and above the control's
    any_rise         risk in the last round above the control's
    diverging        its excess grows in the last half, and a line predicts held-out rounds better than what saturates
    variance         spread falls against the control's, and a line predicts held-out rounds better than what saturates
    scaling          the exponent of risk in the size of the data is worse than the control's (three sizes or more)
    entanglement     modes are confused more than under the control
    tail             less of the real distribution's tail is left than under the control
    hallucination    more lies outside of the real support than under the control

Every condition is a one-sided Student's t test of one number a seed, on a log scale where a metric is positive. A
definition with two conditions has the larger of their p. Holm's method corrects over groups and definitions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from genloss.core.errors import UserError, nearest
from genloss.core.files import keep, read_json
from genloss.core.hashes import canonical
from genloss.core.places import load_params
from genloss.core.plugin import flatten, plain
from genloss.observatory import groups
from genloss.observatory.compare import LEVEL, SEEDS, chance, flat, holm, interval
from genloss.observatory.curves import fit, fit_at
from genloss.observatory.results import Rounds
from genloss.observatory.tables import aligned, marked_up, piped

FILE, SCHEMA = "verdicts.json", 1
YES, NO, OPEN, UNTESTABLE = "yes", "no", "cannot tell", "not testable"
RELEVANT = 0.05  # a rise that is surely smaller is none: 5 % of a positive metric, 0.05 of any other
POWER = 0.8  # with which the seeds that are asked for would decide
MOST = 1000  # seeds that are asked for
TREND = 5  # rounds below which nobody can tell a line from a curve: three to fit, two to predict


# -- what a definition reads -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A metric, and which way is worse (1: up, -1: down). bounded: it cannot diverge."""

    metric: str
    worse: int
    log: bool = False  # compared by ratios, as long as every value is positive
    bounded: bool = False


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
        RISK: (Reading("accuracy", -1, bounded=True),),
        OUTSIDE: (Reading("label_accuracy", -1, bounded=True),),  # wrong answers among those generated
    },
    "instruct": {
        RISK: (Reading("followed", -1, bounded=True),),
        TAIL: (Reading("breadth", -1),),
        OUTSIDE: (Reading("label_accuracy", -1, bounded=True),),
    },
    "gaussian": {
        RISK: (Reading("w2", 1, log=True),),
        SPREAD: (Reading("log_diversity", -1), Reading("diversity", -1, log=True)),
    },
    "categorical": {
        RISK: (Reading("heldout_loss", 1, log=True), Reading("drift", 1, log=True, bounded=True)),
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
    "regression": {RISK: (Reading("risk", 1, log=True),)},
    "classification": {
        RISK: (Reading("accuracy", -1, bounded=True),),
        MODES: (Reading("error_rate", 1, bounded=True),),  # the next round's labels that are wrong
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
        ("classification", "accuracy"): 0.5,  # a coin
    }.get((domain, metric))


# -- arms, as groups of seeds ------------------------------------------------------------------------------------------

VIEWS = ("runtime", "keep", "tracking", "dvc")  # keys of a config, and what is below them, that change no number


@dataclass(frozen=True)
class Group:
    """A group of genloss.observatory.groups, as the tests see it.

    known: its config by dotted keys, without what follows from the seed. family: the same for groups that differ in
    their size alone."""

    name: str
    known: Mapping[str, Any]
    seeds: Mapping[int, Rounds]
    arms: tuple[str, ...] = ()
    family: str = ""

    @property
    def domain(self) -> str:
        return str(self.known.get("domain.name"))

    @property
    def real(self) -> bool:
        """Whether it is trained on real records alone."""
        later = [values for rounds in self.seeds.values() for n, values in rounds.items() if n > 0]
        shares = [values["train_real_fraction"] for values in later if "train_real_fraction" in values]
        return all(s == 1 for s in shares) if shares else self.known.get("mixing.name") == "real_only"


def compared(found: Sequence[groups.Group]) -> list[Group]:
    """The groups that have a finished round and a config, with what of it does not follow from the seed: seeds of a
    group have one config then, which tells `_distance` and `family` how far two groups differ."""
    read = [
        (i, g, m, _config(m.folder))
        for i, g in enumerate(found)
        for m in g.members
        if m.rounds and (m.folder / "params.yaml").is_file()
    ]
    configs = [known for _, _, _, known in read]
    keys = {key for known in configs for key in known}
    by_seed = {key for key in keys if all(_follows(known.get(key), known.get("seed")) for known in configs)}
    by_size = {key for key in keys if all(known.get(key) == known.get("size") for known in configs)}
    made: dict[int, Group] = {}  # by the place of the group
    for at, group, member, known in read:
        seed, rest = int(known["seed"]), {key: value for key, value in known.items() if key not in by_seed}
        before = made.get(at, Group(group.name, rest, {}, (), _without(rest, by_size)))
        seeds = {**before.seeds, seed: member.rounds}
        made[at] = replace(before, seeds=seeds, arms=(*before.arms, member.name))
    return list(made.values())


def _without(known: Mapping[str, Any], keys: Collection[str]) -> str:
    return canonical({key: value for key, value in known.items() if key not in keys})


def _config(folder: Path) -> dict[str, Any]:
    known = dict(flatten(plain(load_params(folder / "params.yaml"))))
    return {key: value for key, value in known.items() if key.partition(".")[0] not in VIEWS}


def _follows(value: Any, seed: Any) -> bool:
    """Whether a value is the seed, or a path of an arm with that seed."""
    return value == seed if not isinstance(value, str) else f"-s{seed}-" in value


def control_of(group: Group, found: Sequence[Group], chosen: str | None = None) -> Group | None:
    """The group that a group is compared with: `chosen`, by its name or that of an arm of it; else of those that are
    trained on real records alone the one whose config differs least. None: it is one itself, or there is none.
    UserError if no group is called so."""
    if chosen is not None:
        named = [g for g in found if chosen == g.name or chosen in g.arms]
        if not named:
            raise UserError("--control", chosen, f"unknown; {nearest(chosen, [g.name for g in found])}")
        return None if named[0] is group else named[0]
    if group.real:
        return None
    real = [g for g in found if g.real and g.domain == group.domain]
    return min(real, key=lambda g: _distance(g.known, group.known), default=None)


def _distance(a: Mapping[str, Any], b: Mapping[str, Any]) -> int:
    """In how many keys two configs differ; the regime, in which they must, does not count."""
    return sum(a.get(key) != b.get(key) for key in a.keys() | b.keys() if not key.startswith("mixing."))


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
    by_round: Mapping[int, np.ndarray] = field(default_factory=dict)
    note: str = ""

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

    def rounds(self) -> tuple[list[int], str]:
        """(rounds that all have, what a verdict on them should add)."""
        every = [set(g.seeds[s]) for g in (self.group, self.control) for s in self.seeds]
        left = [f"seed {s} left out: it ended at round {n}" for s, n in self.ended.items() if s not in self.seeds]
        shared, last = sorted(set.intersection(*every)), max(max(e) for e in every)
        if not shared or shared[-1] == 0:
            raise Untestable("there is no round after round 0 that every seed has")
        gaps = [n for n in range(shared[0], shared[-1]) if n not in shared]
        note = f"up to round {shared[-1]} of {last}: not every seed is further" if shared[-1] < last else ""
        return shared, "; ".join(filter(None, [note, f"without round {gaps[0]}" if gaps else "", *left]))

    def values(self, role: str) -> tuple[Reading, list[int], np.ndarray, np.ndarray, str]:
        """(what is read, rounds, the group's values [seeds, rounds], the control's, a note)."""
        able = READS.get(self.group.domain, {}).get(role, ())
        if not able:
            raise Untestable(f"domain {self.group.domain} has no metric for it")
        if len(self.seeds) < SEEDS:
            paired = f"{len(self.seeds)} seed{'s' * (len(self.seeds) != 1)} that both have"
            raise Untestable(f"{paired}; at least {SEEDS} are needed")
        shared, note = self.rounds()
        missing = ""
        for reading in able:
            # a sample metric is not there in round 0, which generates nothing
            rounds = [n for n in shared if n > 0 or all(reading.metric in v for v in self._at(n))]
            holes = [n for n in rounds for v in self._at(n) if not math.isfinite(v.get(reading.metric, math.nan))]
            if not holes:
                sides = [
                    np.array([[g.seeds[s][n][reading.metric] for n in rounds] for s in self.seeds], dtype=float)
                    for g in (self.group, self.control)
                ]
                return reading, rounds, sides[0], sides[1], note
            missing = missing or f"{reading.metric} is missing, or no number, in round {holes[0]}"
        raise Untestable(missing)

    def _at(self, n: int) -> list[dict[str, float]]:
        return [g.seeds[s][n] for g in (self.group, self.control) for s in self.seeds]


def _scaled(reading: Reading, *sides: np.ndarray) -> tuple[str, list[np.ndarray]]:
    """(scale, the values on it): logarithms where the metric is compared by ratios and all values are positive."""
    if reading.log and all((side > 0).all() for side in sides):
        return "log ratio", [np.log(side) for side in sides]
    return "difference", list(sides)


def _level(pair: Pair, role: str) -> Found:
    """The last round against the control's."""
    reading, rounds, x, c, note = pair.values(role)
    scale, (x, c) = _scaled(reading, x, c)
    worse = reading.worse * (x - c)
    by_round = {n: worse[:, i] for i, n in enumerate(rounds) if n > 0}
    return Found(reading.metric, reading.worse, scale, (Condition(worse[:, -1]),), by_round, note)


def _catastrophic(pair: Pair) -> Found:
    reading, rounds, x, c, note = pair.values(RISK)
    floor = useless(pair.group.domain, reading.metric, pair.group.known)
    if floor is None:
        raise Untestable(f"no useless baseline is stated for {reading.metric}")
    scale, (x, c, line) = _scaled(reading, x, c, np.array([floor]))
    above, worse = reading.worse * (x - line), reading.worse * (x - c)
    by_round = {n: np.minimum(above, worse)[:, i] for i, n in enumerate(rounds) if n > 0}
    conditions = (Condition(above[:, -1], 0.0), Condition(worse[:, -1]))
    return Found(reading.metric, reading.worse, scale, conditions, by_round, note)


def _diverging(pair: Pair) -> Found:
    reading, rounds, x, c, note = pair.values(RISK)
    if reading.bounded:
        raise Untestable(f"{reading.metric} has bounds, and cannot diverge")
    positive = reading.log and (x > 0).all() and (c > 0).all()
    # shares of the control's level, so that a unit changes nothing; a logarithm would bend the line
    unit = c.mean(axis=1, keepdims=True) if positive else 1.0
    worse = reading.worse * (x - c) / unit
    return _trend(reading, rounds, worse, len(rounds) // 2, note)


def _variance(pair: Pair) -> Found:
    reading, rounds, x, c, note = pair.values(SPREAD)
    _, (x, c) = _scaled(reading, x, c)
    return _trend(reading, rounds, reading.worse * (x - c), 0, note)


def _trend(reading: Reading, rounds: Sequence[int], worse: np.ndarray, start: int, note: str) -> Found:
    """worse [seeds, rounds] grows from the start-th round on, and without a bound in sight."""
    if len(rounds) < TREND:
        some = f"{len(rounds)} round{'s' * (len(rounds) != 1)} with {reading.metric}"
        raise Untestable(f"{some}; at least {TREND} are needed to tell a line from a curve")
    n = np.asarray(rounds, dtype=float)
    at = n[start:] - n[start:].mean()
    slopes = worse[:, start:] @ at / (at @ at) * (n[-1] - n[0])
    by_round = {r: worse[:, i] for i, r in enumerate(rounds) if r > 0}
    conditions = (Condition(slopes), Condition(np.array([unbounded(n, y) for y in worse]), 0.0))
    return Found(reading.metric, reading.worse, "change over the run", conditions, by_round, note)


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
        for p, (own, _, x, c, _) in zip(by_size, read, strict=True):
            i = p.seeds.index(seed)
            if own != reading or not own.log or x[i, -1] <= 0 or c[i, -1] <= 0:
                raise Untestable(f"{own.metric} is no positive risk at every size")
            ratios.append(math.log(x[i, -1] / c[i, -1]))
        slopes.append(float(np.polyfit(sizes, ratios, 1)[0]))
    notes = dict.fromkeys(f"size {size}: {note}" for size, (*_, note) in zip(sorted(family), read, strict=True) if note)
    return Found(reading.metric, 1, "exponent", (Condition(np.array(slopes)),), note="; ".join(notes))


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
NONE = "none"  # that it is none of the others


# -- verdicts ----------------------------------------------------------------------------------------------------------

Row = dict[str, Any]
TESTED = ("metric", "scale", "effect", "interval", "p", "p_holm", "onset")  # null of what was not tested
KEYS = {"arm", "arms", "control", "definition", "verdict", "seeds", "more_seeds", "reason", *TESTED}


def verdicts(found: Sequence[Group], chosen: str | None = None) -> list[Row]:
    """A row for every group that is no control and every definition, and one ("none") that sums a group up.

    chosen: the control, by its name; None: the arms on real records alone. Keys: arm, arms (its seeds), control,
    definition, verdict, metric, scale, effect, interval (95 %), p (one-sided), p_holm, onset (a round), seeds,
    more_seeds, reason; null where there is nothing to say.
    """
    pairs = [(group, control_of(group, found, chosen)) for group in found]
    compared = [(group, control) for group, control in pairs if control or not (group.real or chosen)]
    tested: list[tuple[Row, Found | None]] = []
    for group, control in compared:
        for name, test in DEFINITIONS.items():
            row = _row(group, control, name)
            try:
                if control is None:
                    raise Untestable("there is no control: add arms with mixing=real_only, or name one (--control)")
                result = test(Pair(group, control, found))
                tested.append((row, result))
            except Untestable as reason:
                few = control is not None and len(Pair(group, control, found).seeds) < SEEDS
                lacking = SEEDS - len(Pair(group, control, found).seeds) if few and control else None
                tested.append((row | {"verdict": UNTESTABLE, "reason": str(reason), "more_seeds": lacking}, None))
    corrected = iter(holm([result.p for _, result in tested if result]))
    count = sum(result is not None for _, result in tested)
    rows = [_decided(row, result, next(corrected), count) if result else row for row, result in tested]
    return [row for group, control in compared for row in _with_sum(group, control, rows)]


def _row(group: Group, control: Group | None, definition: str) -> Row:
    seeds = len(group.seeds.keys() & control.seeds.keys()) if control else len(group.seeds)
    return {
        "arm": group.name,
        "arms": list(group.arms),
        "control": control.name if control else None,
        "definition": definition,
        "verdict": OPEN,
        **dict.fromkeys(TESTED),
        "seeds": seeds,
        "more_seeds": None,
        "reason": "",
    }


def _decided(row: Row, found: Found, corrected: float, tests: int) -> Row:
    mean, low, high = (found.worse * v for v in found.conditions[0].interval)
    row = row | {
        "metric": found.metric,
        "scale": found.scale,
        "effect": mean,
        "interval": sorted([low, high]),
        "p": found.p,
        "p_holm": corrected,
        "seeds": len(found.conditions[0].values),
        "reason": found.note,
    }
    if corrected < LEVEL:
        return row | {"verdict": YES, "onset": onset(found.by_round)}
    if any(condition.absent for condition in found.conditions):
        return row | {"verdict": NO}
    open_ = [c for c in found.conditions if c.p >= LEVEL / tests] or list(found.conditions)
    lacking = min(max(c.needed(LEVEL / tests) for c in open_) - row["seeds"], MOST)
    return row | {"verdict": OPEN, "more_seeds": max(1, lacking)}


def onset(by_round: Mapping[int, np.ndarray]) -> int | None:
    """The first round of an unbroken run up to the last one in each of which a one-sided t test rejects. From the last
    round backwards this is a fixed sequence of tests, which needs no correction over rounds."""
    first = None
    for n in sorted(by_round, reverse=True):
        if Condition(by_round[n]).p >= LEVEL:
            break
        first = n
    return first


def _with_sum(group: Group, control: Group | None, rows: Iterable[Row]) -> list[Row]:
    own = [row for row in rows if row["arms"] == list(group.arms)]
    words = {row["verdict"] for row in own}
    said = NO if YES in words else OPEN if OPEN in words else YES if NO in words else UNTESTABLE
    lacking = [row["more_seeds"] for row in own if row["more_seeds"]]
    left = [row["definition"] for row in own if row["verdict"] == UNTESTABLE]
    reason = own[0]["reason"] if said == UNTESTABLE else f"not testable: {', '.join(left)}" if left else ""
    total = {"verdict": said, "reason": reason, "more_seeds": max(lacking) if lacking and said != NO else None}
    return [*own, _row(group, control, NONE) | total]


# -- files and tables --------------------------------------------------------------------------------------------------


def write(rows: Sequence[Row], folder: Path, chosen: str | None = None) -> None:
    """verdicts.json. chosen: the control that was named; else null, and each row has its own."""
    whole = {"schema": SCHEMA, "alpha": LEVEL, "control": chosen, "verdicts": list(rows)}
    keep(folder / FILE, json.dumps(whole, indent=1, allow_nan=False) + "\n")


def read(folder: Path) -> list[Row]:
    """The rows of a folder's verdicts.json; none where there is no such file. UserError of a file that is damaged, or
    of another version."""
    path, remedy = folder / FILE, f"`genloss report {folder}` writes it again"
    if not path.is_file():
        return []

    def rows(whole: dict[str, Any]) -> list[Row]:
        if whole["schema"] != SCHEMA:
            raise UserError(str(path), None, f"is of another version; {remedy}")
        if any(row.keys() != KEYS for row in whole["verdicts"]):
            raise ValueError
        return list(whole["verdicts"])

    return read_json(path, rows, remedy)


def shown(rows: Sequence[Row], markdown: bool = False) -> str:
    """A table of groups by definitions, what was found of each that holds, and why what cannot be tested cannot. One
    line if that is everything."""
    if all(row["verdict"] == UNTESTABLE for row in rows):
        return f"verdicts: {UNTESTABLE}: {rows[0]['reason']}" if rows else "verdicts: every arm is the control"
    make = piped if markdown else aligned
    names = [*DEFINITIONS, NONE]
    by_arm: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["definition"]] = row
    body = [[arm, own[NONE]["control"] or "", *(word(own[name]) for name in names)] for arm, own in by_arm.items()]
    text = make(["arm", "against", *names], body, ())
    held = [row for row in rows if row["verdict"] == YES and row["definition"] != NONE]
    if held:
        head = ["holds", "arm", "metric", "effect", "95 % interval", "p (Holm)", "since round", "seeds"]
        cells = [_cells(row) for row in held]
        text += "\n\n" + make(head, cells, range(3, len(head)))
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["reason"] and row["definition"] != NONE:
            reasons.setdefault((row["definition"], row["reason"]), []).append(row["arm"])
    lines = []
    for (name, reason), told in reasons.items():
        some = "" if len(told) == len(by_arm) else f" ({', '.join(told)})"
        line = f"{name}: {reason}{some}"
        lines.append(f"- {marked_up(line) if markdown else line}")
    return "\n\n".join([text, *(["\n".join(lines)] if lines else [])])


def more(row: Row) -> str:
    """How many more seeds would tell, as text; '' where none are asked for."""
    seeds = row["more_seeds"]
    return f"{f'over {MOST}' if seeds >= MOST else seeds} more seed{'s' * (seeds != 1)}" if seeds else ""


def word(row: Row) -> str:
    """The verdict, with its onset or the seeds that would make one."""
    if row["verdict"] == OPEN and row["more_seeds"]:
        return f"{OPEN}: {more(row)}"
    since = row["onset"]
    return f"{row['verdict']}, since {since}" if since is not None else str(row["verdict"])


def effect_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """(effect, its interval) as text: a ratio of what was compared by ratios; empty where nothing was tested."""
    if row["interval"] is None:
        return "", ""
    low, high = row["interval"]
    if row["scale"] == "log ratio":
        return f"×{math.exp(row['effect']):.3g}", f"{math.exp(low):.3g} to {math.exp(high):.3g}"
    return f"{row['effect']:+.3g}", f"{low:+.3g} to {high:+.3g}"


def _cells(row: Row) -> list[str]:
    effect, reach = effect_of(row)
    since = "" if row["onset"] is None else str(row["onset"])
    p = f"{row['p_holm']:.2g}"
    return [row["definition"], row["arm"], row["metric"], effect, reach, p, since, str(row["seeds"])]
