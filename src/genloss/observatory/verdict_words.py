"""Verdicts in words: the table that a report begins with, and the parts of it that a page has too.

print(shown(rows))          groups by definitions, what was found of each that holds, why others cannot be tested
word(row); effect_of(row)   "yes, since 3"; ("×1.18", "1.15 to 1.22")
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from genloss.observatory.definitions import DEFINITIONS, MOST
from genloss.observatory.tables import aligned, listed, marked_up, piped
from genloss.observatory.verdict import NONE, OPEN, UNTESTABLE, YES, Row

MARK, MARKED = "†", "on fewer rounds than other arms of its domain have"


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
        some = "" if len(told) == len(by_arm) else f" ({listed(told)})"
        line = f"{name}: {reason}{some}"
        lines.append(f"- {marked_up(line) if markdown else line}")
    return "\n\n".join(filter(None, [text, footnote(rows), "\n".join(lines)]))


def more(row: Row) -> str:
    """How many more seeds would tell, as text; '' where none are asked for."""
    seeds = row["more_seeds"]
    return f"{f'over {MOST}' if seeds >= MOST else seeds} more seed{'s' * (seeds != 1)}" if seeds else ""


def verdict_of(row: Row) -> str:
    """The verdict, marked if it rests on fewer rounds than other arms have."""
    return f"{row['verdict']}{mark(row)}"


def mark(row: Row) -> str:
    return MARK if row["missing_rounds"] else ""


def word(row: Row) -> str:
    """The same with its onset, or the seeds that would make one."""
    if row["verdict"] == OPEN and row["more_seeds"]:
        return f"{verdict_of(row)}: {more(row)}"
    since = row["onset"]
    return f"{verdict_of(row)}, since {since}" if since is not None else verdict_of(row)


def footnote(rows: Iterable[Row]) -> str:
    """What the mark of some verdicts means; '' if none has it."""
    return f"{MARK} {MARKED}" if any(map(mark, rows)) else ""


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
    return [row["definition"] + mark(row), row["arm"], row["metric"], effect, reach, p, since, str(row["seeds"])]
