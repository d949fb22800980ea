"""report.html: everything that finished rounds say, in one file that needs no network.

keep(out / "report.html", page(groups, panels, sweeps))

What is drawn is SVG text in the page (svg.py); scripts add what a reader can do without: hover and zoom (uPlot, whose
source and licence lie in static/), a filter, tables of each figure's numbers. Text that a model wrote is in a block of
JSON, which no browser runs, and reaches the page as `textContent`; names, which users choose, are escaped. A policy in
the page's head forbids every script but the page's own and every address.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from genloss.core.places import project_root
from genloss.observatory import pictures, svg
from genloss.observatory.compare import LEVEL
from genloss.observatory.figures import THEORY, TITLES
from genloss.observatory.groups import Group, unit
from genloss.observatory.readings import (
    ACROSS,
    BINS,
    COPIED,
    LONGEST,
    Prompt,
    composition,
    costs,
    side_by_side,
    word_counts,
)
from genloss.observatory.results import COUNTS, is_metric, notes_of
from genloss.observatory.tables import columns, listed, spans
from genloss.observatory.verdict import NO, NONE, OPEN, UNTESTABLE, YES, Row
from genloss.observatory.verdict_words import effect_of, footnote, mark, more, shown, word

STATIC = Path(__file__).parent / "static"
MOST = 120  # metrics that are drawn; rounds.csv has them all
NAMED = 3  # sweeps and runs that a heading names
CELLS = 5  # rounds of texts side by side
FIT = 6  # arms whose pictures stand side by side without scrolling
# parts of the metrics (docs/metrics.md): title, what it asks and cannot see, how its names begin
VALIDITY = (
    (
        "Semantic validity",
        "Does the model still know real data, and does a text go on as it began? A low loss of generated text is not "
        "good by itself: copies and loops score low. Nothing here says whether a statement is true.",
        ("heldout_", "loss_under_", "loss_bin_", "agreement", "group_loss"),
    ),
    (
        "Syntactic validity",
        "Is it well-formed? Without a checker (metrics=[validity]) no parser judges grammar: a text can pass the "
        "others and be nonsense.",
        ("repetition", "loops", "valid"),
    ),
    (
        "Epistemic validity",
        "Where does it come from? It is held against real records of round 0's training set and earlier rounds alone: "
        "what is new counts as invented though it may be true, and what stands there counts as known though it may be "
        "false.",
        (
            "overlap_",
            "numbers_",
            "names_",
            "name_pairs_",
            "copies_",
            "near_copies",
            "memorisation",
            "run_",
            "longest_run_",
        ),
    ),
)
TOGETHER = ("loss_bin_", "group_loss/", "group_records/")  # of which one figure shows all, or rounds.csv
BIN = re.compile(r"loss_bin_\d+")
MARKS = {YES: "●", NO: "○", OPEN: "?", UNTESTABLE: "–"}


def page(
    groups: Sequence[Group],
    panels: Sequence[str],
    sweeps: Sequence[Path] = (),
    note: str = "",
    verdicts: Sequence[Row] = (),
    control: str | None = None,
) -> str:
    """The whole file.

    panels: the metrics that matter most, in their order. sweeps: those whose commands are shown. note: what else is to
    be said at the top, one warning a line. control: the one that was named for the verdicts.
    """
    controls = _controls(groups, verdicts)
    drawn = [group for group in groups if group.last >= 0]
    charts = Charts(drawn, panels)
    rows = _rows(drawn)
    prompts = side_by_side(drawn, rows)
    sections = [
        ("verdicts", "Verdicts", _verdict_section(verdicts)),
        ("arms", "What differs", _arms(groups, controls)),
        ("metrics", "Metrics over rounds", charts.html(controls)),
        ("composition", "Training sets by generation", _composition(drawn)),
        ("tails", "Tails", _tails(drawn)),
        ("groups", "Groups of the test data", _subgroups(drawn)),
        ("texts", "The same prompt side by side", _texts(prompts, rows, len(drawn))),
        ("pictures", "Pictures side by side", _pictures(drawn, rows)),
        ("cost", "Cost", _cost(drawn)),
        ("again", "How to reproduce", _again(groups, sweeps, control)),
    ]
    sections = [(name, title, body) for name, title, body in sections if body]
    rounds = max((g.last for g in groups), default=0)
    arms = sum(len(g.members) for g in groups)
    heading = _heading(groups, sweeps)
    about = f"{_counted(len(groups), 'group')} of arms, {_counted(arms, 'arm')}, rounds 0 to {rounds}."
    data = {"charts": charts.data(), "texts": _texts_data(drawn, prompts, rows)}
    script = (STATIC / "uPlot.iife.min.js").read_text() + "\n" + (STATIC / "page.js").read_text()
    style = (STATIC / "uPlot.min.css").read_text() + "\n" + (STATIC / "page.css").read_text()
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; img-src data:"
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    warnings = "".join(f'<p class="warning">{escape(line)}</p>' for line in note.splitlines() if line.strip())
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{inside}</section>' for name, title, inside in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(heading)}</title>
<style>
{style}
</style>
</head>
<body>
<a class="skip" href="#verdicts">to the verdicts</a>
<header><h1>{escape(heading)}</h1>
<p>{about} Bands and ± are 95 % intervals of the mean over seeds (Student's t); of one seed there is none.</p>
<nav aria-label="sections">{links}</nav></header>
<main>{warnings}{body}</main>
<dialog id="zoom" aria-labelledby="zoom-title"><form method="dialog"><h2 id="zoom-title"></h2>
<button>close</button></form><div id="plot"></div>
<p>Drag: zoom. Double click: all rounds. ← and →: the round before and after.</p></dialog>
<script type="application/json" id="data">{embedded(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def embedded(data: Any) -> str:
    """JSON for a script block: nothing in it ends the block or begins a comment; numbers that are none are null."""
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(v) for v in value]
    return value


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _place(folder: Path) -> str:
    """A folder as a user of the project names it."""
    root = project_root()
    return os.path.relpath(folder, root) if folder.resolve().is_relative_to(root) else folder.name


def _heading(groups: Sequence[Group], sweeps: Sequence[Path]) -> str:
    members = [m for g in groups for m in g.members]
    if len(members) == 1:
        return members[0].folder.name
    more = f" and {len(sweeps) - NAMED} more" if len(sweeps) > NAMED else ""
    return ", ".join(s.resolve().name for s in sweeps[:NAMED]) + more or "report"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 1) -> str:
    """A table that scrolls by itself. Cells are HTML; those from column `right` on are numbers."""
    top = "".join(f'<th scope="col"{_number(i, right)}>{cell}</th>' for i, cell in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{cell}</th>' if i == 0 else f"<td{_number(i, right)}>{cell}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(i: int, right: int) -> str:
    return ' class="n"' if i >= right else ""


# -- verdicts ----------------------------------------------------------------------------------------------------------


def _controls(groups: Sequence[Group], verdicts: Sequence[Row]) -> list[str]:
    """The names of the groups that others are held against, as the verdicts say, else of those on real data alone."""
    named = list(dict.fromkeys(row["control"] for row in verdicts if row["control"]))
    return named or [g.name for g in groups if g.values.get("mixing") == "real_only"]


def _verdict_section(rows: Sequence[Row]) -> str:
    if not rows:
        return "<p>No verdicts: they need a sweep with a control arm and several seeds.</p>"
    if all(row["verdict"] == UNTESTABLE for row in rows):
        return f"<p>{escape(shown(rows))}</p>"
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    definitions = list(dict.fromkeys(row["definition"] for row in rows))
    by = {(row["arm"], row["definition"]): row for row in rows}
    said: dict[str, list[str]] = {}  # arms of which the same is said stand in one line
    for arm in arms:
        said.setdefault(_verdict_line([by[arm, d] for d in definitions if (arm, d) in by]), []).append(arm)
    lines = "".join(f"<li><b>{escape(listed(told))}</b>: {line}</li>" for line, told in said.items())
    against = {row["arm"]: escape(row["control"] or "none") for row in rows}
    one = len(set(against.values())) == 1
    matrix = _table(
        ["arm", *([] if one else ["against"]), *map(escape, definitions)],
        [
            [escape(arm), *([] if one else [against[arm]]), *(_verdict_cell(by.get((arm, d))) for d in definitions)]
            for arm in arms
        ],
        99,
    )
    head = ["arm", "definition", "verdict", "metric", "effect", "95 % interval", "p", "p, Holm", "since round", "seeds"]
    detail = _table([*head, "why"], [_verdict_row(row) for row in rows], 4)
    control = f"<b>{against[arms[0]]}</b>" if one else "the control of each"
    keys = ", ".join(f"{mark} {said}" for said, mark in MARKS.items())
    return (
        f'<ul class="lines">{lines}</ul><p>Against {control}, paired over seeds, all together at level {LEVEL}. '
        f"{keys}. {footnote(rows)}</p>{matrix}"
        f"<details><summary>effects, intervals, p</summary>{detail}</details>"
    )


def _verdict_line(rows: Sequence[Row]) -> str:
    """What the row that sums an arm up says, in words."""
    total = next(row for row in rows if row["definition"] == NONE)
    tested = [row for row in rows if row is not total and row["verdict"] != UNTESTABLE]
    yes, open_ = ([row for row in tested if row["verdict"] == verdict] for verdict in (YES, OPEN))
    if total["verdict"] == UNTESTABLE:
        said = UNTESTABLE
    elif total["verdict"] == NO:
        onsets = [row["onset"] for row in yes if row["onset"] is not None]
        since = f", since round {min(onsets)}" if onsets else ""
        said = f"collapse by {len(yes)} of {len(tested)} definitions{since}"
    elif total["verdict"] == OPEN:
        said = f"{OPEN} by {len(open_)} of {len(tested)} definitions"
        said += f"; {more(total)} may tell" if more(total) else ""
    else:
        said = f"no collapse by any of {len(tested)} definitions"
    return said + mark(total)


def _verdict_cell(row: Row | None) -> str:
    if row is None:
        return ""
    verdict = str(row["verdict"])
    return f'<span class="v {verdict.replace(" ", "-")}">{MARKS[verdict]} {escape(word(row))}</span>'


def _verdict_row(row: Row) -> list[str]:
    def said(key: str) -> str:
        value = row[key]
        return svg.number(value) if isinstance(value, (int, float)) else escape(str(value or ""))

    return [
        escape(row["arm"]),
        escape(row["definition"]),
        _verdict_cell(row),
        said("metric"),
        *map(escape, effect_of(row)),
        said("p"),
        said("p_holm"),
        said("onset"),
        said("seeds"),
        (f"{more(row)} may tell. " if more(row) else "") + said("reason"),
    ]


# -- arms --------------------------------------------------------------------------------------------------------------


def _arms(groups: Sequence[Group], controls: Sequence[str]) -> str:
    keys = list(dict.fromkeys(key for group in groups for key in group.values))
    rows = []
    for i, group in enumerate(groups):
        name = f"{svg.swatch(i)} {escape(group.name)}{' (control)' if group.name in controls else ''}"
        seeds = spans(m.seed for m in group.members if m.seed is not None) or str(len(group.members))
        unfinished = [f"{m.name}: {m.unfinished}" for m in group.members if m.unfinished]
        state = f'<span class="warning">{escape("; ".join(unfinished))}</span>' if unfinished else "finished"
        last = "" if group.last < 0 else str(group.last)
        rows.append([name, *(escape(str(group.values.get(key, ""))) for key in keys), seeds, last, state])
    if len(groups) == 1 and not keys:
        return (
            ""
            if not any(m.unfinished for m in groups[0].members)
            else _table(["arm", "seeds", "last round", ""], rows, 9)
        )
    return _table(["arm", *map(escape, keys), "seeds", "last round", "state"], rows, 99)


# -- metrics -----------------------------------------------------------------------------------------------------------


class Charts:
    """One figure a metric, over rounds."""

    def __init__(self, groups: Sequence[Group], panels: Sequence[str]):
        self.groups = groups
        known = {k for g in groups for m in g.members for values in m.rounds.values() for k in values}
        self.known = known
        shown = [k for k in known if not k.startswith(("theory/", "seconds/", *TOGETHER))]
        own = [k for k in shown if is_metric(k) or k.startswith(COUNTS)]
        own.sort(
            key=lambda k: (k not in panels, panels.index(k) if k in panels else 0, k.startswith(COUNTS), _natural(k))
        )
        self.metrics, self.left = own[:MOST], own[MOST:]
        self.first = [m for m in self.metrics if m in panels]
        self.counts = [m for m in self.metrics if m.startswith(COUNTS) and m not in panels]
        self.rest = [m for m in self.metrics if m not in self.first and m not in self.counts]

    def series(self, metric: str) -> list[svg.Series]:
        found = []
        theory = f"theory/{metric}" in self.known
        for i, group in enumerate(self.groups):
            bands = [(n, b) for n in group.rounds if (b := group.band(metric, n)) is not None]
            if bands:
                mean, low, high = zip(*(b for _, b in bands), strict=True)
                found.append(svg.Series(group.name, i, [n for n, _ in bands], mean, low, high, dots=theory))
        return found

    def guides(self, metric: str) -> list[svg.Guide]:
        found = []
        for i, group in enumerate(self.groups):
            for at, kind in enumerate(THEORY):
                key = f"theory/{metric}{kind}"
                points = [(n, group.numbers(key, n)) for n in group.rounds]
                points = [(n, values) for n, values in points if values]
                if not points:
                    continue
                alone = len(group.members) == 1 and not kind  # else the seeds have a band of their own
                error = [] if not alone else [2 * (group.numbers(f"{metric}_se", n) or [0.0])[0] for n, _ in points]
                rounds, values = [n for n, _ in points], [v[0] for _, v in points]
                found.append(svg.Guide(f"theory{at}", i, rounds, values, error))
        if floor := self.floor(metric):
            found.append(svg.Guide("floor", None, list(floor), list(floor.values())))
        return found

    def floor(self, metric: str) -> dict[int, float]:
        """What real data give, a mean over arms, by round."""
        each: dict[int, list[float]] = {}
        for group in self.groups:
            for n in group.rounds:
                each.setdefault(n, []).extend(group.numbers(f"{metric}_floor", n))
        return {n: sum(values) / len(values) for n, values in sorted(each.items()) if values}

    def figure(self, metric: str) -> str:
        title = TITLES.get(metric, metric).replace("\n", " ")
        drawn = svg.lines(f"{title}, over rounds", self.series(metric), self.guides(metric))
        name = "" if title == metric else f" <code>{escape(metric)}</code>"
        of = f' <span class="unit">· {escape(said)}</span>' if (said := unit(metric, self.groups)) else ""
        return (
            f'<figure data-metric="{escape(metric)}"><figcaption>{escape(title)}{name}{of}</figcaption>{drawn}'
            f'<div class="tools"><button type="button" class="zoom">hover and zoom</button>'
            f"<details><summary>numbers</summary></details></div></figure>"
        )

    def html(self, controls: Sequence[str]) -> str:
        if not self.metrics:
            return "<p>No metrics.</p>"
        legend = "".join(
            f'<li><button type="button" class="only" data-style="s{i}" aria-pressed="false">'
            f"{svg.swatch(i)} {escape(g.name)}{' (control)' if g.name in controls else ''}"
            f"{' (unfinished)' if any(m.unfinished for m in g.members) else ''}</button></li>"
            for i, g in enumerate(self.groups)
        )
        if any(self.floor(m) for m in self.metrics):
            legend += f"<li>{_guide_swatch('floor')} real data (floor)</li>"
        for at, (kind, says) in enumerate(THEORY.items()):
            if any(
                k.startswith("theory/") and k.removeprefix("theory/") == f"{m}{kind}"
                for m in self.metrics
                for k in self.known
            ):
                legend += f"<li>{_guide_swatch(f'theory{at}')} {says[0]}</li>"
        html = f'<ul class="legend" aria-label="legend">{legend}</ul>'
        named = '<label>{} named <input id="{}" type="search" autocomplete="off"></label>'
        boxes = [named.format("metrics", "filter")]
        boxes += [named.format("arms", "arms-named")] if len(self.groups) > svg.FEW else []
        html += f'<p class="filter">{" ".join(boxes)}</p>'
        html += f'<div class="grid">{"".join(map(self.figure, self.first))}</div>'
        for title, asks, names in VALIDITY:
            if any(is_metric(k) and k.startswith(names) for k in self.known):
                html += f"<h3>{title}</h3><p>{escape(asks)}</p>"
                if above := [m for m in self.first if m.startswith(names)]:
                    html += f"<p>Above: {', '.join(f'<code>{escape(m)}</code>' for m in above)}.</p>"
                html += self._folded("Metrics", [m for m in self.rest if m.startswith(names)])
        others = [m for m in self.rest if not any(m.startswith(names) for *_, names in VALIDITY)]
        html += "<h3>Others</h3>" + self._folded("All other metrics", others) if others or self.counts else ""
        html += self._folded("Counts and speed", self.counts)
        if self.left:
            html += f"<p>{len(self.left)} more metrics are in rounds.csv.</p>"
        return html

    def _folded(self, title: str, some: Sequence[str]) -> str:
        if not some:
            return ""
        grid = f'<div class="grid">{"".join(map(self.figure, some))}</div>'
        return f'<details class="more"><summary>{title} ({len(some)})</summary>{grid}</details>'

    def data(self) -> dict[str, Any]:
        """What figures are drawn from, for hover, zoom and tables."""
        found = {}
        for metric in self.metrics:
            series = [
                {"name": s.name, "style": s.style, "dots": s.dots, "x": s.x, "y": s.y, **_ends(s.low, s.high)}
                for s in self.series(metric)
            ]
            guides = []
            for g in self.guides(metric):
                ends = [[y + sign * e for y, e in zip(g.y, g.error, strict=False)] for sign in (-1, 1)]
                about: dict[str, Any] = {"name": self._named(g), "kind": g.kind, "style": g.style}
                guides.append({**about, "x": g.x, "y": g.y, **_ends(*ends)})
            found[metric] = {"series": series, "guides": guides, "unit": unit(metric, self.groups)}
        return found

    def _named(self, guide: svg.Guide) -> str:
        """What a guide is called among the arms."""
        if guide.style is None:
            return "real data (floor)"
        says, _ = list(THEORY.values())[int(guide.kind.removeprefix("theory"))]
        return f"{self.groups[guide.style].name}: {says if guide.error else says.partition(' ±')[0]}"


def _ends(low: Sequence[float], high: Sequence[float]) -> dict[str, Sequence[float]]:
    """Those of a band, where it has any."""
    return {"low": low, "high": high} if any(map(math.isfinite, low)) else {}


def _natural(name: str) -> list[Any]:
    """coverage_d2 before coverage_d10."""
    head = name.rstrip("0123456789")
    return [head, int(name[len(head) :] or -1)]


def _guide_swatch(kind: str) -> str:
    return f'<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true"><path class="g {kind}" d="M1 6H33"/></svg>'


# -- what rounds were made of, and made --------------------------------------------------------------------------------


def _composition(groups: Sequence[Group]) -> str:
    """Arms with the same shares have one figure."""
    found: dict[tuple[tuple[int, tuple[tuple[int, float], ...]], ...], list[str]] = {}
    for group in groups:
        member = next(m for m in group.members if m.rounds)
        rounds = ((n, composition(member.folder, n)) for n in columns(group.last) if n in member.rounds)
        shares = tuple(
            (n, tuple((g, c / sum(parts.values())) for g, c in sorted(parts.items()))) for n, parts in rounds
        )
        found.setdefault(shares, []).append(group.name)
    generations = sorted({g for shares in found for _, parts in shares for g, _ in parts})
    if not generations:
        return ""
    named = {g: "real" if g == 0 else f"generation {g}" for g in generations}
    kinds = list(named.values())
    figures = "".join(
        f"<figure><figcaption>{escape(listed(names))}</figcaption>"
        + svg.bars(
            f"{listed(names)}: shares of the training set by generation",
            [(str(n), {named[g]: share for g, share in parts}) for n, parts in shares],
            kinds,
        )
        + "</figure>"
        for shares, names in found.items()
    )
    legend = "".join(
        '<li><svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">'
        f'<rect class="part {svg.part(i)}" x="1" y="1" width="32" height="10"/></svg> {kind}</li>'
        for i, kind in enumerate(kinds)
    )
    return (
        f"<p>Share of the records that each round trains on, by the generation that made them; of the first seed.</p>"
        f'<ul class="legend">{legend}</ul><div class="grid small">{figures}</div>'
    )


def _tails(groups: Sequence[Group]) -> str:
    deciles = [f"coverage_d{i}" for i in range(1, 11)]
    bins = sorted({k for g in groups for m in g.members for k in m.rounds.get(g.last, {}) if BIN.fullmatch(k)})
    figures = [
        (title, _profile(groups, title, names, below))
        for title, names, below in (
            (
                "share of real words that the last round still uses",
                deciles,
                "decile of real words: 1 the commonest, 10 the rarest",
            ),
            (
                "share of the last round's records by their loss under the round-0 model",
                bins,
                "bin of nats per token, from 0 on; the last one is open",
            ),
        )
    ]
    figures = [(title, chart) for title, chart in figures if chart]
    counts = word_counts(groups)
    if counts:
        names = [str(a) if a == b else f"{a}–{b}" if b else f"{a}+" for a, b in BINS]
        series = [
            svg.Series(groups[i].name, i, range(len(BINS)), [math.log10(1 + v) for v in values])
            for i, values in counts["arms"].items()
        ]
        real = [math.log10(1 + v) for v in counts["real"]]
        guide = svg.Guide("floor", None, range(len(BINS)), real if any(counts["real"]) else [math.nan] * len(BINS))
        chart = svg.lines("different words by how often they occur", series, [guide], names, "how often a word occurs")
        figures.append(("log10(1 + number of different words), last round", chart))
        said = ", ".join(f"{escape(name)} {count:,}" for name, count in counts["records"].items())
        note = f"<p>Records counted: {said}. Counts compare where the numbers of records do.</p>"
    else:
        note = ""
    if not figures:
        return ""
    legend = "".join(f"<li>{svg.swatch(i)} {escape(g.name)}</li>" for i, g in enumerate(groups))
    legend += f"<li>{_guide_swatch('floor')} real text</li>"
    inside = "".join(f"<figure><figcaption>{escape(t)}</figcaption>{c}</figure>" for t, c in figures)
    return f'<ul class="legend">{legend}</ul><div class="grid wide">{inside}</div>{note}'


def _profile(groups: Sequence[Group], title: str, names: Sequence[str], below: str) -> str:
    """Metrics that are one distribution, side by side, in each group's last round; '' where no group has them."""
    series = []
    for i, group in enumerate(groups):
        bands = [group.band(name, group.last) for name in names]
        if bands and all(b is not None for b in bands):
            mean, low, high = zip(*(b for b in bands if b is not None), strict=True)
            series.append(svg.Series(group.name, i, range(len(names)), mean, low, high))
    if not series:
        return ""
    floors = [[v for g in groups for v in g.numbers(f"{name}_floor", g.last)] for name in names]
    guide = svg.Guide("floor", None, range(len(names)), [sum(v) / len(v) if v else math.nan for v in floors])
    return svg.lines(title, series, [guide], [str(_natural(name)[1]) for name in names], below)


def _subgroups(groups: Sequence[Group]) -> str:
    """Of each arm the loss of groups of the test data (metrics=[subgroups]), a line each."""
    start = "group_loss/"
    names = sorted({k for g in groups for m in g.members for v in m.rounds.values() for k in v if k.startswith(start)})
    if not names:
        return ""
    figures = ""
    for group in groups:
        bands = {name: [(n, b) for n in group.rounds if (b := group.band(name, n)) is not None] for name in names}
        series = [
            svg.Series(name.removeprefix(start), i, [n for n, _ in found], [b.mean for _, b in found])
            for i, (name, found) in enumerate(bands.items())
            if found
        ]
        chart = svg.lines(f"{group.name}: loss of groups of the test data, over rounds", series)
        figures += f"<figure><figcaption>{escape(group.name)}</figcaption>{chart}</figure>"
    legend = "".join(f"<li>{svg.swatch(i)} {escape(name.removeprefix(start))}</li>" for i, name in enumerate(names))
    return (
        "<p>Nats per token of real test records, by group; a mean over seeds.</p>"
        f'<ul class="legend">{legend}</ul><div class="grid">{figures}</div>'
    )


def _rows(groups: Sequence[Group]) -> list[int]:
    """The rounds whose texts are shown."""
    rounds = [n for n in columns(max((g.last for g in groups), default=0)) if n]
    if len(rounds) <= CELLS:
        return rounds
    return sorted({rounds[round(i * (len(rounds) - 1) / (CELLS - 1))] for i in range(CELLS)})


def _texts(prompts: Sequence[Prompt], rounds: Sequence[int], arms: int) -> str:
    """Where the page's script puts the texts: model output is in the block of data alone."""
    if not prompts or not rounds:
        return ""
    keys = "".join(
        f"<li><mark class='{kind}'>{kind}</mark> {says}</li>"
        for kind, says in (
            ("loop", "a stretch that comes three times or more in a row"),
            ("copy", f"{COPIED} words or more that stand so in a real training record"),
            ("lost", "a word of the real training set that the arm's last round does not use any more"),
        )
    )
    few = f" Of {arms} arms the first {ACROSS} are shown." if arms > ACROSS else ""
    paired = any(prompt.text for prompt in prompts)
    said = (
        ""
        if paired
        else " These recipes have no prompts: records of one parent, or at one place of their files, stand together."
    )
    return (
        f"<p>Of the first seed of every arm; texts are cut after {LONGEST} characters.{few}{said}</p>"
        f'<ul class="legend">{keys}</ul><div id="prompts"></div>'
        "<noscript><p>Texts need a browser that runs scripts; <code>genloss samples</code> prints them.</p></noscript>"
    )


def _texts_data(groups: Sequence[Group], prompts: Sequence[Prompt], rounds: Sequence[int]) -> dict[str, Any]:
    return {
        "arms": [group.name for group in groups[:ACROSS]],
        "rounds": rounds,
        "prompts": [
            {
                "text": prompt.text,
                "cells": [[i, n, cell.pieces, cell.said] for (i, n), cell in sorted(prompt.cells.items())],
            }
            for prompt in prompts
        ],
    }


def _pictures(groups: Sequence[Group], rounds: Sequence[int]) -> str:
    """A grid of pictures of each arm and round."""
    some = groups[:ACROSS]
    zooms = [pictures.zoom(group.members[0].folder) for group in some]
    cells = []
    for n in [0, *rounds]:
        row = [_picture(group, n, zoom) for group, zoom in zip(some, zooms, strict=True)]
        if any(row):
            cells.append([f"round {n}" if n else "real", *row])
    if not any(row[0] != "real" for row in cells):
        return ""
    columns = next((found for group in some if (found := pictures.kinds(group.members[0].folder))), [])
    named = ", ".join(escape(name) for _, name in columns)
    what = f"A column is a class ({named}), with the first records of it" if columns else "The first records"
    few = f" Of {len(groups)} arms the first {ACROSS} are shown." if len(groups) > ACROSS else ""
    note = (
        f"{what} that the first seed of every arm made, before curation. Of arms with one seed that ask for the same "
        f"classes, what stands in one place of a row began from the same noise.{few}"
    )
    table = _table(["", *(escape(group.name) for group in some)], cells, 1 + len(some))
    return f"<p>{note}</p>" + (f'<div class="many">{table}</div>' if len(some) > FIT else table)


def _picture(group: Group, n: int, zoom: int) -> str:
    member = group.members[0]
    image = pictures.grid(member.folder, n)
    if image is None:
        return ""
    data = base64.b64encode(image).decode()
    width = int.from_bytes(image[16:20], "big") * zoom  # of the IHDR chunk
    what = f"pictures of round {n} of {group.name}" if n else f"real pictures of {group.name}"
    return f'<img class="pictures" width="{width}" alt="{escape(what)}" src="data:image/png;base64,{data}">'


# -- cost and commands -------------------------------------------------------------------------------------------------


def _cost(groups: Sequence[Group]) -> str:
    found = [[costs(m) for m in group.members] for group in groups]
    stages = list(dict.fromkeys(stage for each in found for one in each for stage in one))
    if not stages:
        return ""
    rows = []
    for group, each in zip(groups, found, strict=True):
        sums = [sum(one.get(stage, 0.0) for one in each) for stage in stages]
        rows.append([escape(group.name), *(_seconds(v) for v in sums), _seconds(sum(sums)), str(len(each))])
    totals = [sum(one.get(stage, 0.0) for each in found for one in each) for stage in stages]
    if len(groups) > 1:
        arms = sum(map(len, found))
        rows.append(["all", *(_seconds(v) for v in totals), _seconds(sum(totals)), str(arms)])
    note = "Time that each stage took when it was computed, all rounds and seeds together. "
    note += "A stage that several arms share was computed once and counts in each."
    return f"<p>{note}</p>" + _table(["arm", *map(escape, stages), "together", "arms"], rows)


def _seconds(value: float) -> str:
    if value < 100:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"


def _again(groups: Sequence[Group], sweeps: Sequence[Path], control: str | None) -> str:
    rows = []
    for sweep in sweeps:
        if (sweep / "sweep.json").is_file() and (command := notes_of(sweep).command):
            rows.append([f"sweep {escape(sweep.resolve().name)}", _code(shlex.join(["genloss", "run", *command]))])
    members = [m for g in groups for m in g.members]
    named = sweeps or [m.folder for m in members]
    place = shlex.join([*(_place(Path(f)) for f in named), *(["--control", control] if control else [])])
    rows.append(["this page, rounds.csv, rounds.png and .svg", _code(f"genloss report {place}")])
    rows.append(["the figure of one metric as PNG and SVG", _code(f"genloss report {place} --metric NAME")])
    arms = [[escape(m.name), _code(f"cd {shlex.quote(_place(m.folder))} && dvc repro")] for m in members]
    lists = _table(["arm", "command"], arms, 9)
    return (
        _table(["what", "command, in the project's folder"], rows, 9)
        + "<p>The figures of a metric NAME are its columns NAME and NAME_floor in rounds.csv.</p>"
        + f"<details><summary>each arm alone ({len(arms)})</summary>{lists}</details>"
    )


def _code(command: str) -> str:
    return f"<code>{escape(command)}</code>"
