"""Pictures as SVG without a library: lines over two axes, bars in parts, a timeline. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

COLORS = (
    *("#3b6fb6", "#d1495b", "#2a9d8f", "#e9a23b", "#7b5ea7", "#5c946e"),
    *("#c56a3d", "#4aa3c7", "#9a6b8f", "#8a8f98", "#b5b133", "#444b5a"),
)
GRAY = "#8a8f98"
WIDTH, LEFT, RIGHT, TOP, BOTTOM, GAP = 760, 64, 24, 40, 48, 20  # pixels


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a chart, or its points alone."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    is_dashed: bool = False
    has_dots: bool = False
    has_line: bool = True
    spread: tuple[float, float] | None = None
    """Of a single point, how far down and up it may lie."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """From ``low`` to ``high``, in powers of 10 or evenly."""

    title: str
    low: float
    high: float
    is_log: bool = False
    form: Callable[[float], str] = lambda value: f"{value:,g}"

    def share(self, value: float) -> float:
        """Where on the axis, from 0 to 1."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> Iterator[float]:
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(powers) < 4 else (1,)
            ticks = (factor * 10.0**power for power in powers for factor in factors)
        else:
            apart = _round_step((self.high - self.low) / 6)
            first = math.ceil(self.low / apart - 1e-9)
            last = math.floor(self.high / apart + 1e-9)
            ticks = (round(number * apart, 10) for number in range(first, last + 1))
        return (tick for tick in ticks if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9))


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of 10, no less."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= rough * (1 - 1e-9))


def render_chart(title: str, lines: Sequence[Line], x: Axis, y: Axis, *, height: int = 380) -> str:
    """Curves over a grid; their names stand below the title."""
    bottom, right = height - BOTTOM, WIDTH - RIGHT
    names = [line for line in lines if line.name]
    top = TOP + 18 * math.ceil(len(names) / 4) + 16

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return (
            round(LEFT + (right - LEFT) * x.share(point[0]), 1),
            round(bottom - (bottom - top) * y.share(point[1]), 1),
        )

    parts = [_text(LEFT, 22, title, bold=True)]
    for number, line in enumerate(names):
        place = (LEFT + (right - LEFT) * (number % 4) / 4, 44 + 18 * (number // 4))
        parts.append(f'<rect x="{place[0]}" y="{place[1] - 9}" width="12" height="9" ')
        parts[-1] += f'fill="{line.color}"/>'
        parts.append(_text(place[0] + 18, place[1], line.name))
    grid = f'stroke="{GRAY}" stroke-opacity="0.25"'
    for tick in y.ticks():
        _, place = at((x.low, tick))
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{place}" y2="{place}" {grid}/>')
        parts.append(_text(LEFT - 8, place + 4, y.form(tick), anchor="end"))
    for tick in x.ticks():
        place, _ = at((tick, y.low))
        parts.append(f'<line x1="{place}" x2="{place}" y1="{top}" y2="{bottom}" {grid}/>')
        parts.append(_text(place, bottom + 18, x.form(tick), anchor="middle"))
    parts.append(_text((LEFT + right) / 2, height - 8, x.title, anchor="middle"))
    parts.append(_text(LEFT, top - 6, y.title, size=11))
    for line in lines:
        parts += _draw_line(line, at)
    return _svg(parts, height)


def _draw_line(
    line: Line, at: Callable[[tuple[float, float]], tuple[float, float]]
) -> Iterator[str]:
    places = [at(point) for point in line.points]
    if line.has_line and len(places) > 1:
        dashes = ' stroke-dasharray="5 4"' if line.is_dashed else ""
        path = " ".join(f"{a},{b}" for a, b in places)
        yield (
            f'<polyline points="{path}" fill="none" stroke="{line.color}" stroke-width="2"'
            f"{dashes}/>"
        )
    if line.spread is not None:
        where = line.points[0][0]
        (place, low), (_, high) = (at((where, end)) for end in line.spread)
        yield (
            f'<line x1="{place}" x2="{place}" y1="{low}" y2="{high}" stroke="{line.color}" '
            'stroke-width="3" stroke-opacity="0.5"/>'
        )
    if line.has_dots:
        for a, b in places:
            yield f'<circle cx="{a}" cy="{b}" r="4" fill="{line.color}"/>'


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a bar."""

    name: str
    amount: float
    color: str
    said: str  # the amount in words, with its unit


def render_bar(title: str, parts: Sequence[Part], *, limit: float, said_limit: str) -> str:
    """One bar in parts, as long as their sum, with a mark at ``limit`` and a list below."""
    total = sum(part.amount for part in parts)
    right, long = WIDTH - RIGHT, max(total, limit)
    rows = math.ceil(len(parts) / 2)
    height = 120 + 20 * rows

    def at(amount: float) -> float:
        return round(GAP + (right - GAP) * amount / long, 1)

    drawn = [_text(GAP, 22, title, bold=True)]
    begin = 0.0
    for number, part in enumerate(parts):
        end = begin + part.amount
        drawn.append(
            f'<rect x="{at(begin)}" y="48" width="{max(0.3, at(end) - at(begin)):.1f}" height="36" '
            f'fill="{part.color}"><title>{escape(part.name)}: {escape(part.said)}</title></rect>'
        )
        column, row = number // rows, number % rows
        place = (GAP + (right - GAP) / 2 * column, 112 + 20 * row)
        drawn.append(
            f'<rect x="{place[0]}" y="{place[1] - 10}" width="12" height="12" fill="{part.color}"/>'
        )
        drawn.append(_text(place[0] + 20, place[1], f"{part.name}: {part.said}"))
        begin = end
    if limit > 0:
        mark = at(limit)
        drawn.append(
            f'<line x1="{mark}" x2="{mark}" y1="42" y2="90" stroke="#222" stroke-width="2"/>'
        )
        drawn.append(_text(mark, 38, said_limit, anchor="end" if mark > 300 else "start", size=11))
    return _svg(drawn, height)


@dataclass(frozen=True, kw_only=True)
class Span:
    """Something that takes place on a row of a timeline, from ``begin`` to ``end`` seconds."""

    row: str
    name: str
    begin: float
    end: float
    color: str


def render_timeline(title: str, spans: Sequence[Span], *, form: Callable[[float], str]) -> str:
    """Rows in the order in which the spans name them, over the time of the last end."""
    rows = [*dict.fromkeys(span.row for span in spans)]
    left, right = 120, WIDTH - RIGHT
    last = max(span.end for span in spans) or 1.0
    height = 90 + 40 * len(rows)
    axis = Axis(title="", low=0.0, high=last)

    def at(seconds: float) -> float:
        return round(left + (right - left) * seconds / last, 1)

    drawn = [_text(GAP, 22, title, bold=True)]
    for tick in axis.ticks():
        drawn.append(
            f'<line x1="{at(tick)}" x2="{at(tick)}" y1="40" y2="{height - 40}" stroke="{GRAY}" '
            'stroke-opacity="0.25"/>'
        )
        drawn.append(_text(at(tick), height - 22, form(tick), anchor="middle"))
    for number, row in enumerate(rows):
        drawn.append(_text(GAP, 66 + 40 * number, row))
    for span in spans:
        y, begin, end = 46 + 40 * rows.index(span.row), at(span.begin), at(span.end)
        what = f"{span.name}: {form(span.end - span.begin)}"
        drawn.append(
            f'<rect x="{begin}" y="{y}" width="{max(0.5, end - begin):.1f}" height="30" '
            f'fill="{span.color}"><title>{escape(what)}</title></rect>'
        )
        if end - begin > 7 * len(span.name):
            drawn.append(_text(begin + 5, y + 19, span.name, color="white", size=11))
    return _svg(drawn, height)


def _svg(parts: Sequence[str], height: int) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">'
    )
    background = f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([head, background, *parts, "</svg>\n"])


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    color: str = "#333",
    size: int = 12,
    bold: bool = False,
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    place = f'x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}"'
    return f'<text {place} fill="{color}" font-size="{size}"{weight}>{escape(words)}</text>'
