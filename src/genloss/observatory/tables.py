"""Tables, as text, Markdown and CSV.

print(table(groups, "distinct_2"))                      arms over seeds by round, one metric (groups.grouped)
rounds_csv(groups)                                      every metric, one row an arm and round
aligned(["arm", "p"], [["replace", "0.01"]], {1})       any cells as text; columns of `right` are aligned there
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from genloss.core.errors import UserError, nearest
from genloss.observatory.groups import Band, Group, band
from genloss.observatory.results import TIMES, Rounds

COLUMNS = 10  # rounds that a table shows
NAMES = 3  # that stand for many
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a spreadsheet takes for the beginning of one


def listed(names: Sequence[str]) -> str:
    """All of a few; of more the first NAMES, and how many more there are."""
    if len(names) <= NAMES + 1:
        return ", ".join(names)
    return f"{', '.join(names[:NAMES])} and {len(names) - NAMES} more"


def spans(numbers: Iterable[int]) -> str:
    """Whole numbers in short: "0 to 39", "0, 1, 7 to 9"."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def columns(last: int) -> list[int]:
    """The rounds that a table has room for: all, or 0, 1, 2, 5, 10, 20, 50 ... and the last."""
    if last < COLUMNS:
        return list(range(last + 1))
    steps = [m * 10**e for e in range(6) for m in (1, 2, 5)]
    return [0, *(n for n in steps if n < last), last]


def table(groups: Sequence[Group], metric: str, markdown: bool = False) -> str:
    """Group by round: means over seeds and how far their 95 % intervals reach, and the change from the first round
    shown to the last. UserError if no arm has the metric."""
    known = {k for g in groups for m in g.members for values in m.rounds.values() for k in values}
    if known and metric not in known:
        raise UserError("metric", metric, f"unknown; {nearest(metric, known)}")
    shown = columns(max((g.last for g in groups), default=0))
    several = any(len(g.members) > 1 for g in groups)
    head = ["arm", *(["seeds"] if several else []), *(f"round {n}" for n in shown), "change"]
    body = [_group_row(group, metric, shown, several) for group in groups]
    return (piped if markdown else aligned)(head, body, range(1, len(head)))


def _group_row(group: Group, metric: str, shown: Sequence[int], several: bool) -> list[str]:
    bands = [group.band(metric, n) for n in shown]
    done = [m for m in group.members if not m.unfinished]
    seeds = str(len(group.members)) if len(done) == len(group.members) else f"{len(done)} of {len(group.members)}"
    name = group.name if done else f"{group.name} (unfinished)"
    return [
        name,
        *([seeds] if several else []),
        *("" if b is None else _said(b) for b in bands),
        _change(group, metric),
    ]


def _said(band: Band, sign: str = "") -> str:
    reach = band.high - band.mean
    return f"{band.mean:{sign}.3f}" + (f" ±{reach:.3f}" if reach == reach else "")


def _change(group: Group, metric: str) -> str:
    """From each member's first round to its last: of the finished ones, and of the others only if there is no finished
    one; then with the round that it goes to."""
    members = [m for m in group.members if not m.unfinished] or group.members
    pairs, to = [], set()
    for m in members:
        having = [n for n in sorted(m.rounds) if metric in m.rounds[n]]
        if len(having) > 1:
            pairs.append(m.rounds[having[-1]][metric] - m.rounds[having[0]][metric])
            to.add(having[-1])
    if not pairs:
        return ""
    until = f" to round {max(to)}" if members[0].unfinished and len(to) == 1 else ""
    return _said(band(pairs), "+") + until


def _row(name: str, rounds: Rounds, metric: str, shown: Sequence[int]) -> list[str]:
    values = [rounds.get(n, {}).get(metric) for n in shown]
    present = [v for v in values if v is not None]
    change = f"{present[-1] - present[0]:+.3f}" if len(present) > 1 else ""
    return [name, *("" if v is None else f"{v:.3f}" for v in values), change]


def numbers(rounds: Rounds, metrics: Sequence[str]) -> str:
    """One arm: metric by round, and the change from the first round shown to the last; without what it has not."""
    shown = columns(max(rounds, default=0))
    body = [_row(m, rounds, m, shown) for m in metrics if any(m in found for found in rounds.values())]
    head = ["", *(f"round {n}" for n in shown), "change"]
    return aligned(head, body, range(1, len(head)))


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], right: Collection[int]) -> str:
    """Cells as text under a rule; the columns of `right` are aligned there, the others on the left."""
    rows = [head, *body]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines = [line.rstrip() for line in lines]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


MARKUP = re.compile(r"[\\|`*\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # an underscore within a word is none


def marked_up(value: object) -> str:
    """A value as Markdown that shows it, on one line: no character of it is markup, or obeyed by a terminal."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return MARKUP.sub(r"\\\g<0>", "".join(c if c.isprintable() else "\ufffd" for c in text))


def piped(head: Sequence[str], body: Iterable[Sequence[object]], right: Collection[int] = ()) -> str:
    """The same in Markdown. The head is Markdown; the body's cells are text of anybody."""
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    rows = [head, rule, *([marked_up(value) for value in row] for row in body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def rounds_csv(groups: Sequence[Group]) -> str:
    """One row an arm and round: what tells the arms apart, a column a key, then one column a metric; without times,
    which differ between two runs of one thing."""
    members = [m for group in groups for m in group.members]
    keys = list(dict.fromkeys(key for m in members for key in m.values))
    rows = [
        {"arm": csv_cell(m.name), "round": n}
        | {key: csv_cell(m.values.get(key)) for key in keys}
        | {k: v for k, v in values.items() if not k.startswith(TIMES)}
        for m in members
        for n, values in m.rounds.items()
    ]
    first = ["arm", "round", *keys]
    names = [*first, *sorted({k for row in rows for k in row} - set(first))]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writerow({name: csv_cell(name) for name in names})
    writer.writerows(rows)
    return out.getvalue()


def csv_cell(value: Any) -> Any:
    """A value as a cell of a CSV: text that a spreadsheet would take for a formula begins with an apostrophe there
    (OWASP, CSV injection); numbers are numbers."""
    if value is None or isinstance(value, (int, float)):
        return value
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) else text
