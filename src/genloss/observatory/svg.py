"""Charts as SVG text for a page: no library, no fixed colours.

lines("distinct_2", [Series("replace", 0, [0, 1, 2], [0.9, 0.8, 0.6])], floor=0.92)      lines over rounds, with bands
bars([("round 1", {"real": 512, "1": 512})], ["real", "1"])                            stacked shares

matplotlib takes 0.1 s and 30 kB for such a chart, of which a page has a hundred. Colours, dashes and fonts are CSS
classes of the page (static/page.css): a style is a colour `c0` ... `c7`, and a dash and a mark of its own, so that a
line is known without its colour. Every text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

WIDTH, HEIGHT = 360.0, 216.0  # of a chart, in units of its view box
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 8.0, 34.0
STYLES = 8  # colours; DASHES and MARKS repeat at other counts, so that 24 lines differ
DASHES = ("", "6 3", "2 3", "9 3 2 3", "12 4")
MARKS = ("o", "square", "triangle", "diamond", "cross", "down")
FEW = 5  # lines; the bands of more are fainter
BEYOND = 1.5  # how far a band may widen the axis, in multiples of the range of the lines
PARTS = 8  # colours of stacked bars


def part(i: int) -> str:
    """The class of the i-th kind in stacked bars; the first, real records, has a colour that no other has."""
    return f"p{i if i < PARTS else 1 + (i - 1) % (PARTS - 1)}"


@dataclass(frozen=True)
class Series:
    """A line: y at x, with a band from low to high where both are numbers."""

    name: str
    style: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dots: bool = False  # marks without a line: what is measured where theory draws the line


@dataclass(frozen=True)
class Guide:
    """A thin line of what is expected: a floor (`kind` floor) or a theory's kind (theory0 ...), of a series' colour."""

    kind: str
    style: int | None
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = field(default_factory=tuple)


def number(value: float) -> str:
    """A number for people: at most four digits."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size and (size >= 1e6 or size < 1e-3):
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, at most `most`."""
    span = high - low
    if not span > 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step, 20 * step) if span / s <= most)
    first = math.ceil(low / step - 1e-9)
    found = []
    while first * step <= high + 1e-9 * span:
        found.append(0.0 if first == 0 else first * step)
        first += 1
    return found


def mark(style: int, x: float, y: float, size: float = 3.0) -> str:
    """The path of a mark at x, y."""
    s = size
    shapes = {
        "o": f"M{x - s:.1f} {y:.1f}a{s} {s} 0 1 0 {2 * s} 0a{s} {s} 0 1 0 {-2 * s} 0",
        "square": f"M{x - s * 0.9:.1f} {y - s * 0.9:.1f}h{s * 1.8:.1f}v{s * 1.8:.1f}h{-s * 1.8:.1f}z",
        "triangle": f"M{x:.1f} {y - s * 1.2:.1f}l{s * 1.1:.1f} {s * 2:.1f}h{-s * 2.2:.1f}z",
        "diamond": f"M{x:.1f} {y - s * 1.3:.1f}l{s * 1.2:.1f} {s * 1.3:.1f}l{-s * 1.2:.1f} {s * 1.3:.1f}"
        f"l{-s * 1.2:.1f} {-s * 1.3:.1f}z",
        "cross": f"M{x - s:.1f} {y - 1:.1f}h{s - 1:.1f}v{1 - s:.1f}h2v{s - 1:.1f}h{s - 1:.1f}v2h{1 - s:.1f}v{s - 1:.1f}"
        f"h-2v{1 - s:.1f}h{1 - s:.1f}z",
        "down": f"M{x:.1f} {y + s * 1.2:.1f}l{-s * 1.1:.1f} {-s * 2:.1f}h{s * 2.2:.1f}z",
    }
    return shapes[MARKS[style % len(MARKS)]]


def classes(style: int) -> str:
    """Of everything that a style draws: its colour, and a name of its own that a legend finds."""
    return f"c{style % STYLES} s{style}"


def dash(style: int) -> str:
    """The attribute that draws a line of this style, '' of an unbroken one."""
    pattern = DASHES[style % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def swatch(style: int) -> str:
    """A short piece of a line, for a legend."""
    return (
        f'<svg class="swatch {classes(style)}" viewBox="0 0 34 12" aria-hidden="true">'
        f'<path class="l" d="M1 6H33"{dash(style)}/><path class="m" d="{mark(style, 17, 6)}"/></svg>'
    )


def lines(
    title: str, series: Sequence[Series], guides: Sequence[Guide] = (), names: Sequence[str] = (), below: str = "round"
) -> str:
    """Lines over x. names: of the values 0, 1, 2 ... of x; without them x are whole numbers, rounds. below: what x is.

    A band that is wider than the lines by far is cut off at the edge: of few seeds a t interval is wide.
    """
    xs = [x for s in series for x in s.x]
    ys = [
        y for side in ([s.y for s in series], [g.y for g in guides]) for line in side for y in line if math.isfinite(y)
    ]
    if not xs or not ys:
        return ""
    low, high = min(ys), max(ys)
    room = BEYOND * (high - low)
    ends = [v for s in series for v in (*s.low, *s.high) if math.isfinite(v)]
    low, high = max(low - room, min([low, *ends])), min(high + room, max([high, *ends]))
    pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad
    xs += [x for g in guides if len(g.x) > 1 for x in g.x]
    first, last = (0, len(names) - 1) if names else (min(xs), max(xs))

    def at_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - first) / (last - first) if last > first else 0.5)

    def at_y(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - min(max(y, low), high)) / (high - low)

    def path(points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in points)

    parts = [_frame(low, high, at_y)]
    parts += [_label(at_x(i), name, i, len(names)) for i, name in enumerate(names)] or [
        _label(at_x(x), f"{x:.0f}", 0, 1) for x in ticks(first, last, 8) if float(x).is_integer()
    ]
    parts.append(f'<text class="t" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">')
    parts[-1] += f"{escape(below)}</text>"
    crowd = " crowd" if len(series) > FEW else ""
    for s in series:
        inside = [
            (x, a, b) for x, a, b in zip(s.x, s.low, s.high, strict=False) if math.isfinite(a) and math.isfinite(b)
        ]
        if len(inside) > 1:
            around = [(x, b) for x, _, b in inside] + [(x, a) for x, a, _ in reversed(inside)]
            parts.append(f'<path class="b {classes(s.style)}{crowd}" d="{path(around)}z"/>')
    for g in guides:
        points = [(x, y) for x, y in zip(g.x, g.y, strict=True) if math.isfinite(y)]
        if g.error and len(points) > 1:
            rows = list(zip(g.x, g.y, g.error, strict=True))
            around = [(x, y + e) for x, y, e in rows] + [(x, y - e) for x, y, e in reversed(rows)]
            parts.append(f'<path class="b {classes(g.style or 0)}" d="{path(around)}z"/>')
        if len(points) == 1:  # across
            points = [(first, points[0][1]), (last, points[0][1])]
        colour = "" if g.style is None else f" {classes(g.style)}"  # of all arms at once: none
        if points:
            parts.append(f'<path class="g {escape(g.kind)}{colour}" d="{path(points)}"/>')
    for s in series:
        points = [(x, y) for x, y in zip(s.x, s.y, strict=True) if math.isfinite(y)]
        if not points:
            continue
        line = "" if s.dots else f'<path class="l" d="{path(points)}"{dash(s.style)}/>'
        size = 3.0 if len(points) <= 20 else 1.6
        marks = "".join(mark(s.style, at_x(x), at_y(y), size) for x, y in points)
        parts.append(
            f'<g class="{classes(s.style)}"><title>{escape(s.name)}</title>{line}<path class="m" d="{marks}"/></g>'
        )
    return _svg(title, "".join(parts))


def bars(
    title: str, columns: Sequence[tuple[str, Mapping[Any, float]]], kinds: Sequence[Any], below: str = "round"
) -> str:
    """Stacked bars of shares: one a column, whose parts are of `kinds`, the first one lowest."""
    if not columns:
        return ""

    def at_y(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - y)

    step = (WIDTH - LEFT - RIGHT) / len(columns)
    parts = [_frame(0.0, 1.0, at_y)]
    for i, (name, found) in enumerate(columns):
        total, under = sum(found.values()), 0.0
        for kind in kinds:
            share = found.get(kind, 0.0) / total if total else 0.0
            if share:
                x, y = LEFT + step * (i + 0.12), at_y(under + share)
                style = part(kinds.index(kind))
                parts.append(
                    f'<rect class="part {style}" x="{x:.1f}" y="{y:.1f}" width="{step * 0.76:.1f}" '
                    f'height="{at_y(under) - y:.1f}"><title>{escape(f"{name}: {kind} {share:.1%}")}</title></rect>'
                )
            under += share
        parts.append(_label(LEFT + step * (i + 0.5), name, i, len(columns)))
    parts.append(f'<text class="t" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">')
    parts[-1] += f"{escape(below)}</text>"
    return _svg(title, "".join(parts))


def _frame(low: float, high: float, at_y: Any) -> str:
    """Lines across at round numbers, and the numbers."""
    found = []
    for y in ticks(low, high):
        found.append(f'<path class="across" d="M{LEFT} {at_y(y):.1f}H{WIDTH - RIGHT}"/>')
        found.append(f'<text class="t" x="{LEFT - 5}" y="{at_y(y) + 3.5:.1f}" text-anchor="end">{number(y)}</text>')
    return "".join(found)


def _label(x: float, name: str, i: int, count: int) -> str:
    """A name below the axis; of many every second, third ... one."""
    every = math.ceil(count / 12)
    if i % every:
        return ""
    return f'<text class="t" x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{escape(str(name))}</text>'


def _svg(title: str, inside: str) -> str:
    box = f"0 0 {WIDTH:.0f} {HEIGHT:.0f}"
    return f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(title)}">{inside}</svg>'
