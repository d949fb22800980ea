"""The scoreboard as text, Markdown and one HTML page without scripts or outside files.

print(table(run_cases(...)))            # for a terminal; `markdown` and `html` have the texts too
"""

from __future__ import annotations

import html as escaping
from collections.abc import Sequence
from math import floor, isfinite, log10

from genloss.observatory.tables import aligned
from genloss.replicate.case import CLAIM, READING, WRONG
from genloss.replicate.scoreboard import FAR, Line

HEAD = ("case", "paper", "states", "we predict", "we measure", "z", "verdict", "seconds")
TITLE = "Scoreboard: published results of recursive training"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 96rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid #ddd; }
th { position: sticky; top: 0; background: #fff; }
tr.first td { border-top: 2px solid #888; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.good { color: #00694b; } td.bad { color: #b00020; font-weight: bold; } td.plain { color: #666; }
"""


def number(x: float) -> str:
    return f"{x:.4g}"


def with_error(x: float, error: float) -> str:
    """To two digits of the standard error."""
    if not (isfinite(error) and error > 0):
        return f"{number(x)} ± {number(error)}"
    places = max(0, 1 - floor(log10(error)))
    return f"{x:.{places}f} ± {error:.{places}f}"


def cells(line: Line, first: bool) -> tuple[str, ...]:
    kind = {CLAIM: "", WRONG: "Must fail: ", READING: "Another reading: "}[line.check.kind]
    return (
        line.case.name if first else "",
        f"{line.case.paper}: {line.case.where}" if first else "",
        kind + line.check.states,
        f"{number(line.expected)} = {line.check.formula}",
        with_error(line.measured, line.error),
        f"{line.z:+.1f}",
        line.verdict,
        f"{line.seconds:.0f}" if first else "",
    )


def rows(lines: Sequence[Line]) -> list[tuple[bool, Line, tuple[str, ...]]]:
    """Whether a row begins a case, its line, its cells."""
    begins = [i == 0 or line.case is not lines[i - 1].case for i, line in enumerate(lines)]
    return [(first, line, cells(line, first)) for first, line in zip(begins, lines, strict=True)]


def summary(lines: Sequence[Line]) -> str:
    def count(kind: str) -> str:
        of = [line for line in lines if line.check.kind == kind]
        return f"{sum(line.ok for line in of)} of {len(of)}"

    cases = len({line.case.name for line in lines})
    return (
        f"{cases} cases; reproduced: {count(CLAIM)} claims (|z| < {lines[0].bound:.2f}); "
        f"refuted: {count(WRONG)} wrong predictions (|z| > {FAR:g})"
    )


def table(lines: Sequence[Line]) -> str:
    """For a terminal: without the texts, which the written tables have."""
    head = ("case", "line", "predicted", "measured", "z", "verdict")
    body = []
    for first, line, cell in rows(lines):
        text = cell[2] if len(cell[2]) <= 70 else cell[2][:69] + "…"
        body.append((line.case.name if first else "", text, number(line.expected), cell[4], cell[5], cell[6]))
    return aligned(head, body, (2, 3, 4))


def explained(lines: Sequence[Line]) -> str:
    return (
        f"{summary(lines)}. Every line was run by the loop of `genloss run experiment=CASE`; a prediction is a formula "
        "or the engine of genloss.theory, never a fit; ± is one standard error over independent chains. A claim's "
        "bound is Bonferroni's over all claims: were all of them true, 1 % of such tables would have one that fails, "
        "by simulation (benchmarks/null_tables.py). Another reading need not hold: its verdict says whether the chains "
        "exclude it."
    )


def markdown(lines: Sequence[Line]) -> str:
    def escape(text: str) -> str:
        return (
            text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")
        )

    out = [f"# {TITLE}", "", "Written by `genloss replicate --write`; do not edit.", "", explained(lines), ""]
    out += ["| " + " | ".join(HEAD) + " |", "|---|---|---|---|---:|---:|---|---:|"]
    out += ["| " + " | ".join(map(escape, cell)) + " |" for _, _, cell in rows(lines)]
    return "\n".join(out) + "\n"


def html(lines: Sequence[Line]) -> str:
    body = []
    for first, line, cell in rows(lines):
        shade = "bad" if not line.ok else "plain" if line.check.kind == READING else "good"
        kinds = ("", "", "", "", "number", "number", shade, "number")
        columns = "".join(f'<td class="{kind}">{escaping.escape(c)}</td>' for kind, c in zip(kinds, cell, strict=True))
        body.append(f'<tr class="{"first" if first else ""}">{columns}</tr>')
    head = "".join(f"<th>{name}</th>" for name in HEAD)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{TITLE}</h1>\n<p>{escaping.escape(explained(lines))}</p>\n"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>" + "\n".join(body) + "</tbody></table></body></html>\n"
    )
