"""What the first rounds of an arm say of its later ones, how sure that is, and what would hold a metric.

genloss forecast runs/sweep-1234abcd --rounds 6 --threshold 0.9        prints a table, writes forecast.json

curve      the shape (curves.py) that predicts held-out rounds best, fitted to all rounds up to K; like its interval cut
           off where the metric's range ends (quantities.py)
interval   split conformal (Vovk et al. 2005; Lei et al. 2018): the LEVEL quantile of the errors that the same
           forecast made of *other* arms which have the round that is forecast, each as a share of what its arm had
           moved. It covers at least LEVEL where arms are exchangeable, as seeds are; arms of other regimes are not.
           With n arms it reaches at most n/(n+1): with fewer than MINIMUM it is a prediction interval of least
           squares, which believes in its curve, and says "uncalibrated".
crossing   the first round at which the curve reaches a threshold
held by    the smallest share of real records, or the fewest fresh ones, whose forecast stays on the side of the
           threshold on which the metric began: from arms that differ in it alone, monotone and linear in between
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genloss.core.errors import UserError, nearest
from genloss.core.files import keep
from genloss.core.hashes import canonical
from genloss.observatory.controls import Group, compared
from genloss.observatory.curves import LEAST, SHAPES, Curve, best
from genloss.observatory.groups import Member, finished, grouped, unit
from genloss.observatory.quantities import Quantity, quantity
from genloss.observatory.report import target_of
from genloss.observatory.results import Arm, Rounds, measured
from genloss.observatory.tables import aligned

FILE, SCHEMA = "forecast.json", 1
LEVEL = 0.9  # of the intervals
MINIMUM = math.ceil(LEVEL / (1 - LEVEL) - 1e-9)  # arms below which no quantile of their errors reaches LEVEL
ROUNDS = min(LEAST.values()) + 1  # fewer cannot tell one shape from another
EARLIER = "name an earlier one, and its forecasts stand beside what was seen later"
FARTHEST = 10_000  # rounds after which a threshold counts as never crossed


@dataclass(frozen=True)
class Told:
    """One round of an arm, as forecast. arms: whose errors its interval is made of; 0: uncalibrated."""

    round: int
    value: float
    low: float
    high: float
    arms: int
    observed: float | None

    @property
    def covered(self) -> bool | None:
        return None if self.observed is None else self.low <= self.observed <= self.high


@dataclass(frozen=True)
class Fitted:
    """An arm's metric: {round: value}, and the curve through the rounds that are used."""

    name: str
    values: dict[int, float]
    used: tuple[int, ...]
    curve: Curve
    range: Quantity  # in which its values lie, and what is said of them

    @property
    def moved(self) -> float:
        """By how much the rounds that are used differ: what errors are shares of."""
        seen = [self.values[n] for n in self.used]
        return max(max(seen) - min(seen), 1e-12 * max(map(abs, seen)), 1e-300)

    @property
    def still(self) -> bool:
        """Whether nothing moved in what was seen, as where the same real data are fitted again: no error to learn
        from."""
        return self.moved <= 1e-9 * max(abs(self.values[n]) for n in self.used)

    def at(self, rounds: int | Sequence[int] | np.ndarray) -> np.ndarray:
        """What is forecast: the curve, cut off where the metric's range ends."""
        return np.clip(self.curve(rounds), self.range.low, self.range.high)

    def error(self, n: int) -> float:
        return abs(self.values[n] - float(self.at(n))) / self.moved

    def spread(self, n: int) -> float:
        """Half of the prediction interval of least squares at round n, with the shape and its c taken for granted; not
        finite where its numbers are too large to be computed with."""
        from scipy import stats

        at = np.asarray(self.used)
        free = len(at) - LEAST[self.curve.shape] + 1
        s = math.sqrt(self.curve.error * len(at) / free)
        with np.errstate(over="ignore", invalid="ignore"):
            g, new = (SHAPES[self.curve.shape](np.asarray(x), self.curve.c) for x in (at, [n]))
            scale = np.square(g - g.mean()).sum()
            leverage = 1 / len(at) + (np.square(new[0] - g.mean()) / scale if scale > 0 else 0.0)
            return float(stats.t.ppf((1 + LEVEL) / 2, free) * s * np.sqrt(1 + leverage))


def fitted(name: str, rounds: Rounds, metric: str, until: int | None, domain: str = "") -> Fitted | None:
    """An arm's curve through its rounds up to `until` (None: all); None if they are fewer than ROUNDS. Values outside
    of the metric's range show that it is another one of that name, of which nothing is known."""
    values = {n: v[metric] for n, v in sorted(rounds.items()) if math.isfinite(v.get(metric, math.nan))}
    used = tuple(n for n in values if until is None or n <= until)
    if len(used) < ROUNDS:
        return None
    known = quantity(metric, domain)
    known = known if all(map(known.holds, values.values())) else Quantity()
    return Fitted(name, values, used, best(used, [values[n] for n in used]), known)


def foretold(arm: Fitted, others: Sequence[Fitted], last: int) -> list[Told]:
    """Every round from the first that the arm's curve has not seen to the last one. others: arms whose curves have seen
    the same rounds."""
    found = []
    for n in range(arm.used[-1] + 1, last + 1):
        errors = [o.error(n) for o in others if o.used == arm.used and n in o.values and not o.still]
        calibrated = len(errors) >= MINIMUM
        reach = quantile(errors) * arm.moved if calibrated else arm.spread(n)
        value = float(arm.at(n))
        low, high = max(value - reach, arm.range.low), min(value + reach, arm.range.high)
        found.append(Told(n, value, low, high, len(errors) if calibrated else 0, arm.values.get(n)))
    return found


def quantile(errors: Sequence[float]) -> float:
    """The ⌈(n + 1) LEVEL⌉-th smallest of n errors: the next one is no larger with a chance of at least LEVEL."""
    return sorted(errors)[math.ceil((len(errors) + 1) * LEVEL - 1e-9) - 1]


def crossing(arm: Fitted, threshold: float) -> int | None:
    """The first round at which the arm's metric has crossed a threshold, in what was seen or else by the curve; None:
    not in FARTHEST rounds."""
    began = arm.values[arm.used[0]] - threshold
    for n in arm.used:
        if (arm.values[n] - threshold) * began <= 0:
            return n
    later = np.arange(arm.used[-1] + 1, FARTHEST + 1)
    with np.errstate(over="ignore", invalid="ignore"):
        beyond = np.nonzero((arm.at(later) - threshold) * began <= 0)[0]
    return int(later[beyond[0]]) if len(beyond) else None


# -- how much real data would hold it ----------------------------------------------------------------------------------

SHARE, FRESH = "share of real records", "fresh real records a round"


@dataclass(frozen=True)
class Held:
    """The least of something that is predicted to hold a metric until a round. bound: "" as said, "at most": the least
    that was tried holds it, "more than": the most that was tried does not."""

    of: str
    least: float
    bound: str
    tried: tuple[float, ...]
    predicted: tuple[float, ...]  # the metric at that round, monotone in what was tried


def held(
    found: Sequence[Group], arms: Sequence[Fitted], threshold: float, last: int, until: int | None = None
) -> list[Held]:
    """One for every three arms or more of one regime that differ in how much real data they get, and in nothing else
    but their seeds. until: the last round that is seen; None: all are."""
    by_name = {arm.name: arm for arm in arms}
    families: dict[tuple[str, str], list[tuple[float, Fitted]]] = {}
    for group in found:
        keys = {k: v for k, v in group.known.items() if not k.startswith("mixing.") or k == "mixing.name"}
        for name in group.arms:
            if name in by_name and (given := _given(group, until)):
                families.setdefault((given[0], canonical(keys)), []).append((given[1], by_name[name]))
    results = []
    for (of, _), members in families.items():
        tried = sorted({x for x, _ in members})
        if len(tried) >= 3:
            values = [[float(arm.at(last)) for x, arm in members if x == at] for at in tried]
            began = float(np.mean([arm.values[arm.used[0]] for _, arm in members]))
            results.append(least(of, tried, values, threshold, began))
    return results


def _given(group: Group, until: int | None) -> tuple[str, float] | None:
    """(what, how much) real data a round gets: of what is not fixed the last that is seen."""
    if group.known.get("mixing.real.kind") == "fresh" and isinstance(group.known.get("mixing.real.n"), (int, float)):
        return FRESH, float(group.known["mixing.real.n"])
    seen = [[v for n, v in sorted(rounds.items()) if until is None or n <= until] for rounds in group.seeds.values()]
    shares = [rounds[-1]["train_real_fraction"] for rounds in seen if rounds and "train_real_fraction" in rounds[-1]]
    return (SHARE, round(float(np.mean(shares)), 6)) if shares else None


def least(of: str, tried: Sequence[float], values: Sequence[Sequence[float]], threshold: float, began: float) -> Held:
    """values: of every arm at each of `tried`, which ascend. began: on which side of the threshold it is held."""
    from scipy.optimize import isotonic_regression

    away = np.array([np.mean(v) for v in values])
    better = np.sign(began - threshold) or 1.0
    # above 0: held; more real data never holds it worse
    margin = isotonic_regression(better * (away - threshold), weights=[len(v) for v in values]).x
    predicted = tuple(float(threshold + better * v) for v in margin)
    good = np.nonzero(margin >= 0)[0]
    if not len(good):
        return Held(of, float(tried[-1]), "more than", tuple(tried), predicted)
    i = int(good[0])
    if i == 0:
        return Held(of, float(tried[0]), "at most", tuple(tried), predicted)
    step = -margin[i - 1] / (margin[i] - margin[i - 1])
    return Held(of, float(tried[i - 1] + step * (tried[i] - tried[i - 1])), "", tuple(tried), predicted)


# -- `genloss forecast` ------------------------------------------------------------------------------------------------


def place_of(folders: Sequence[Path], out: Path | None) -> Path:
    """Where forecast.json is written: beside the report. That of a single run directory is in report/, which DVC
    compares; there it is written into the run directory itself."""
    target = target_of(folders, out)
    return folders[0].resolve() if out is None and len(folders) == 1 else target


def forecast(
    arms: Sequence[Arm], out: Path, metric: str | None = None, until: int | None = None, threshold: float | None = None
) -> str:
    """Forecast a metric of arms, write forecast.json to `out`, and return it as text.

    metric: None: the headline of the first arm's domain. until: the last round that curves may see; None: all that
    there are. UserError if no arm has enough rounds.
    """
    groups = grouped(arms, [{}] * len(arms))
    members = finished(groups, arms, out)
    runs = [(m.name, m.rounds) for m in members]
    metric = metric or measured(members[0].folder / "params.yaml", runs)[0]
    known = {name for _, rounds in runs for values in rounds.values() for name in values}
    if metric not in known:
        raise UserError("--metric", metric, f"unknown; {nearest(metric, known)}")
    tried = [fitted(m.name, m.rounds, metric, until, m.domain) for m in members]
    curves = [arm for arm in tried if arm]
    if not curves:
        most = max(sum(metric in values for values in rounds.values()) for _, rounds in runs)
        remedy = f"too few rounds: a curve needs {ROUNDS} with {metric}, and an arm has at most {most}"
        raise UserError("--rounds", until, remedy) if until is not None else UserError(str(out), None, remedy)
    # to where it can be held against what was seen; where nothing was, to twice as many rounds
    seen, used = max(max(arm.values) for arm in curves), max(arm.used[-1] for arm in curves)
    last = seen if seen > used else 2 * used
    told = {arm.name: foretold(arm, [o for o in curves if o is not arm], last) for arm in curves}
    crossed = {arm.name: crossing(arm, threshold) for arm in curves} if threshold is not None else {}
    needs = held(compared(groups), curves, threshold, last, until) if threshold is not None else []
    whole = {
        "schema": SCHEMA,
        "metric": metric,
        "unit": unit(metric, groups),
        "rounds": until,
        "level": LEVEL,
        "threshold": threshold,
        "arms": [_entry(arm, told[arm.name], crossed) for arm in curves],
        "held": [vars(one) for one in needs],
    }
    keep(out / FILE, json.dumps(_finite(whole), indent=1, allow_nan=False) + "\n")
    notes = [f"--rounds={until}: all are seen, the last is {seen}; {EARLIER}"] if until and until >= seen else []
    notes += [_without(m, metric) for m, arm in zip(members, tried, strict=True) if arm is None]
    notes += [f"{m.name}: {m.unfinished}" for group in groups for m in group.members if not m.rounds]
    named = ", ".join(filter(None, [metric, unit(metric, groups)]))
    return _text(named, curves, told, crossed, threshold, needs, notes, last)


def _finite(value: Any) -> Any:
    """With null for numbers that are too large: JSON has no name for them."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _entry(arm: Fitted, told: Sequence[Told], crossed: dict[str, int | None]) -> dict[str, Any]:
    curve = {key: getattr(arm.curve, key) for key in ("shape", "a", "b", "c")}
    rounds = [vars(one) | {"calibrated": one.arms > 0} for one in told]
    return {"arm": arm.name, **curve, "used": list(arm.used), "rounds": rounds, "crossing": crossed.get(arm.name)}


def _text(
    named: str,
    curves: Sequence[Fitted],
    told: dict[str, list[Told]],
    crossed: dict[str, int | None],
    threshold: float | None,
    needs: Sequence[Held],
    notes: Sequence[str],
    last: int,
) -> str:
    head = ["arm", "shape", "seen up to", f"round {last}", f"{LEVEL:.0%} interval", "observed", "interval from"]
    head += [] if threshold is None else [f"crosses {threshold:g}"]
    body = []
    for arm in curves:
        end = told[arm.name][-1]
        row = [arm.name, arm.curve.shape, str(arm.used[-1]), f"{end.value:.4g}", f"{end.low:.4g} to {end.high:.4g}"]
        row += ["" if end.observed is None else f"{end.observed:.4g}"]
        row += [f"{end.arms} other arms" if end.arms else "uncalibrated"]
        if threshold is not None:
            at = crossed[arm.name]
            row.append("never" if at is None else f"round {at}")
        body.append(row)
    lines = [f"{named}\n\n{aligned(head, body, range(2, 6))}"]
    # not of conformal ones: over arms that calibrate each other the share is LEVEL by arithmetic, and shows nothing
    seen = [one.covered for rounds in told.values() for one in rounds if not one.arms and one.covered is not None]
    if seen:
        lines.append(f"uncalibrated intervals: {sum(seen)} of {len(seen)} later rounds lie in theirs")
    if cut := sorted({end for arm in curves for end in _cut(arm, told[arm.name])}):
        lines.append(f"cut off at {_list(cut)}: {named.partition(',')[0]} has no other values")
    for one in needs:
        value = f"{one.bound} {one.least:.3g}".strip()
        lines.append(f"held at {threshold:g} until round {last} by: {value}, {one.of} (tried: {_list(one.tried)})")
    if threshold is not None and not needs:
        lines.append("what would hold it: not told; that needs three arms or more that differ in their real data alone")
    return "\n\n".join([*lines, "\n".join(notes)] if notes else lines)


def _cut(arm: Fitted, told: Sequence[Told]) -> set[float]:
    """The ends of the metric's range at which something that is told of an arm was cut off."""
    return {end for one in told for end in (arm.range.low, arm.range.high) if end in (one.value, one.low, one.high)}


def _without(member: Member, metric: str) -> str:
    """Why an arm has no curve."""
    if not any(metric in values for values in member.rounds.values()):
        return f"{member.name}: has no {metric}; name another metric with --metric"
    return f"{member.name}: too few rounds for a curve ({ROUNDS})"


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
