"""Is it collapse, in which of its published senses, since which round, how sure? Tests of arms against a control.

    rows = verdicts(compared(grouped(...)))    one row an arm group and definition, and one that sums them up
    write(rows, folder); read(folder)          verdicts.json beside the report

Arms that differ in their seed alone are one group, and its seeds are paired with those of the control (controls.py).
What is tested are the definitions (definitions.py); Holm's method corrects over groups and definitions. In words:
verdict_words.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genloss.core.errors import UserError
from genloss.core.files import keep, read_json
from genloss.observatory.compare import LEVEL, SEEDS, holm
from genloss.observatory.controls import Group, control_of
from genloss.observatory.definitions import DEFINITIONS, MOST, Condition, Found, Pair, Untestable

FILE, SCHEMA = "verdicts.json", 2
YES, NO, OPEN, UNTESTABLE = "yes", "no", "cannot tell", "not testable"
NONE = "none"  # that it is none of the others

Row = dict[str, Any]
# null of what was not tested
TESTED = ("metric", "scale", "effect", "interval", "p", "p_holm", "onset", "missing_rounds")
KEYS = {"arm", "arms", "control", "definition", "verdict", "seeds", "more_seeds", "reason", *TESTED}


def verdicts(found: Sequence[Group], chosen: str | None = None) -> list[Row]:
    """A row for every group that is no control and every definition, and one ("none") that sums a group up.

    chosen: as `control_of` takes it. Keys: arm, arms (its seeds), control, definition, verdict, metric, scale, effect,
    interval (95 %), p (one-sided), p_holm, onset (a round), missing_rounds (that others have, and that the verdict does
    not rest on), seeds, more_seeds, reason; null where there is nothing to say.
    """
    pairs = [(group, control_of(group, found, chosen)) for group in found]
    compared = [(group, control) for group, control in pairs if control is not group]
    tested: list[tuple[Row, Found | None]] = []
    for group, control in compared:
        for name, test in DEFINITIONS.items():
            row = _row(group, control, name)
            try:
                if control is None:
                    none = f"there is no control of its domain, {group.domain}: add arms with mixing=real_only"
                    raise Untestable(f"{none}, or name one (--control)")
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
        "missing_rounds": list(found.missing),
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
    total: Row = {"verdict": said, "reason": reason}
    total["more_seeds"] = max(lacking) if lacking and said != NO else None
    if said != UNTESTABLE:
        total["missing_rounds"] = sorted({n for row in own for n in row["missing_rounds"] or ()})
    return [*own, _row(group, control, NONE) | total]


# -- the file ----------------------------------------------------------------------------------------------------------


def write(rows: Sequence[Row], folder: Path, chosen: str | None = None) -> None:
    """verdicts.json. chosen: the control that was named, else null; each row has its own in any case."""
    whole = {"schema": SCHEMA, "alpha": LEVEL, "control": chosen, "verdicts": list(rows)}
    keep(folder / FILE, json.dumps(whole, indent=1, allow_nan=False) + "\n")


class Verdicts(NamedTuple):
    """What a verdicts.json says."""

    chosen: str | None  # the control that was named
    rows: list[Row]


def read(folder: Path) -> Verdicts:
    """A folder's verdicts.json; no rows where there is no such file. UserError of a file that is damaged, or of another
    version."""
    path, remedy = folder / FILE, f"`genloss report {folder}` writes it again"
    if not path.is_file():
        return Verdicts(None, [])

    def made(whole: dict[str, Any]) -> Verdicts:
        if whole["schema"] != SCHEMA:
            raise UserError(str(path), None, f"is of another version; {remedy}")
        if any(row.keys() != KEYS for row in whole["verdicts"]):
            raise ValueError
        return Verdicts(None if whole["control"] is None else str(whole["control"]), list(whole["verdicts"]))

    return read_json(path, made, remedy)
