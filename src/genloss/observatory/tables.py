"""Tables, as text, Markdown and CSV.

print(table(read(arms_of(sweep)), "distinct_2"))        arm by round, one metric
rounds_csv(read(arms_of(sweep)))                        every metric, one row an arm and round
aligned(["arm", "p"], [["replace", "0.01"]], {1})       any cells as text; columns of `right` are aligned there
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence

from genloss.core.errors import UserError, nearest
from genloss.observatory.results import Read, Rounds

COLUMNS = 10  # rounds that a table shows


def columns(last: int) -> list[int]:
    """The rounds that a table has room for: all, or 0, 1, 2, 5, 10, 20, 50 ... and the last."""
    if last < COLUMNS:
        return list(range(last + 1))
    steps = [m * 10**e for e in range(6) for m in (1, 2, 5)]
    return [0, *(n for n in steps if n < last), last]


def table(runs: Sequence[Read], metric: str, markdown: bool = False) -> str:
    """Arm by round, and the change from the first round shown to the last. UserError if no arm has the metric."""
    known = {k for _, rounds in runs for values in rounds.values() for k in values}
    if known and metric not in known:
        raise UserError("metric", metric, f"unknown; {nearest(metric, known)}")
    shown = columns(max((n for _, rounds in runs for n in rounds), default=0))
    head = ["arm", *(f"round {n}" for n in shown), "change"]
    body = [_row(name, rounds, metric, shown) for name, rounds in runs]
    return (piped if markdown else aligned)(head, body, range(1, len(head)))


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


def piped(head: Sequence[str], body: Sequence[Sequence[str]], right: Collection[int]) -> str:
    """The same in Markdown."""
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in [head, rule, *body]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def rounds_csv(runs: Sequence[Read]) -> str:
    """One row an arm and round, one column a metric; without times, which differ between two runs of one thing."""
    rows = [
        {"arm": name, "round": n, **{k: v for k, v in values.items() if "second" not in k}}
        for name, rounds in runs
        for n, values in rounds.items()
    ]
    names = ["arm", "round", *sorted({k for row in rows for k in row} - {"arm", "round"})]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
