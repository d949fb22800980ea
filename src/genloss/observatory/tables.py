"""Tables: arm by round as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from genloss.core.errors import UserError, nearest
from genloss.observatory.results import Arm, rounds_of

COLUMNS = 10  # rounds that a table shows


def columns(last: int) -> list[int]:
    """The rounds that a table has room for: all, or 0, 1, 2, 5, 10, 20, 50 ... and the last."""
    if last < COLUMNS:
        return list(range(last + 1))
    steps = [m * 10**e for e in range(6) for m in (1, 2, 5)]
    return [0, *(n for n in steps if n < last), last]


def table(arms: Sequence[Arm], metric: str, markdown: bool = False) -> str:
    """arm × round, and the change of the last round against round 0."""
    data = [(name, rounds_of(folder)) for name, folder in arms]
    known = {k for _, rounds in data for values in rounds.values() for k in values}
    if known and metric not in known:
        raise UserError("metric", metric, f"unknown; {nearest(metric, known)}")
    last = max((n for _, rounds in data for n in rounds), default=0)
    shown = columns(last)
    head = ["arm", *(f"round {n}" for n in shown), "change"]
    rows = []
    for name, rounds in data:
        values = [rounds.get(n, {}).get(metric) for n in shown]
        present = [v for v in values if v is not None]
        change = f"{present[-1] - present[0]:+.3f}" if len(present) > 1 else ""
        rows.append([name, *("" if v is None else f"{v:.3f}" for v in values), change])
    if markdown:
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        lines = [head, ["---"] + ["---:"] * (len(head) - 1), *escaped]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    plain_lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *rows]
    ]
    return "\n".join([plain_lines[0], "-" * len(plain_lines[0]), *plain_lines[1:]])


def rounds_csv(arms: Sequence[Arm]) -> str:
    """One row an arm and round, one column a metric; without what differs between two runs of the same thing (time)."""
    rows = [
        {"arm": name, "round": n, **{k: v for k, v in values.items() if "second" not in k}}
        for name, folder in arms
        for n, values in rounds_of(folder).items()
    ]
    columns = ["arm", "round", *sorted({k for row in rows for k in row} - {"arm", "round"})]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
