"""What words look at, as SVG without a library: squares as dark as the weight. Pure.

One word's view has a row for each head or layer and a column for each word that may be looked at;
the view of all words has a row for each of them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from lmscale.files.redact import printable

MADE_BY = "<!-- lmscale show attention -->"
_CELL, _GAP, _TITLE, _LETTER = 34, 10, 28, 7  # pixels; a letter's width at 12 pixels of height
_HEIGHT = _CELL * 2 // 3
_MOST_LETTERS = 24
_MOST_NUMBERS = 24  # columns up to which a square has its number


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of weights with its words."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    shares: np.ndarray
    """f32 [rows, columns], from 0 to 1."""
    marked: int | None = None
    """The column of the word that looks."""
    last_apart: bool = False
    """The last row is the mean of the others."""


def render_svg(grids: Sequence[Grid]) -> str:
    """The grids, one below the other, as a file that a browser shows."""
    sizes = [_size(grid) for grid in grids]
    width, height = max(w for w, _ in sizes), sum(h for _, h in sizes)
    parts, top = [], 0
    for grid, (_, own_height) in zip(grids, sizes, strict=True):
        parts += [f'<g transform="translate(0 {top})">', *_draw(grid), "</g>"]
        top += own_height
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
    )
    background = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, MADE_BY, background, *parts, "</svg>\n"])


def render_html(grids: Sequence[Grid], *, title: str) -> str:
    """The same on a page, each grid by itself."""
    pictures = "\n".join(render_svg([grid]) for grid in grids)
    return (
        f'<!DOCTYPE html>\n{MADE_BY}\n<html><head><meta charset="utf-8">'
        f"<title>{_text(title)}</title></head>\n"
        f'<body style="font-family: sans-serif"><h1 style="font-size: 18px">{_text(title)}</h1>\n'
        f"{pictures}</body></html>\n"
    )


def _size(grid: Grid) -> tuple[int, int]:
    columns = _left(grid) + _CELL * len(grid.columns) + _GAP
    title = _GAP * 2 + _LETTER * wide(grid.title)
    # The last column's name leans to the right.
    lean = int(0.71 * _LETTER * max(map(wide, map(_cut, grid.columns))))
    return max(columns + lean, title), _top(grid) + _HEIGHT * len(grid.rows) + 3 * _GAP


def _left(grid: Grid) -> int:
    return 2 * _GAP + _LETTER * max(wide(_cut(row)) for row in grid.rows)


def _top(grid: Grid) -> int:
    return _TITLE + _GAP + int(0.71 * _LETTER * max(wide(_cut(word)) for word in grid.columns))


def _draw(grid: Grid) -> Iterator[str]:
    left, top = _left(grid), _top(grid)
    yield f'<text x="{_GAP}" y="18" font-weight="bold">{_text(grid.title)}</text>'
    for place, word in enumerate(grid.columns):
        x = left + _CELL * place + _CELL // 2
        bold = ' font-weight="bold"' if place == grid.marked else ""
        yield (
            f'<text x="{x}" y="{top - 5}" transform="rotate(-45 {x} {top - 5})"{bold}>'
            f"{_text(_cut(word))}</text>"
        )
    for number, (name, shares) in enumerate(zip(grid.rows, grid.shares, strict=True)):
        is_apart = grid.last_apart and number == len(grid.rows) - 1
        y = top + _HEIGHT * number + (_GAP if is_apart else 0)
        yield f'<text x="{_GAP}" y="{y + _HEIGHT - 7}">{_text(_cut(name))}</text>'
        for place, share in enumerate(shares):
            yield from _square(left + _CELL * place, y, float(share), grid)


def _square(x: int, y: int, share: float, grid: Grid) -> Iterator[str]:
    yield (
        f'<rect x="{x + 1}" y="{y + 1}" width="{_CELL - 2}" height="{_HEIGHT - 2}" fill="#1f4e9c" '
        f'fill-opacity="{share:.3f}" stroke="#ccd"/>'
    )
    if len(grid.columns) <= _MOST_NUMBERS:
        tone = "white" if share > 0.55 else "black"
        yield (
            f'<text x="{x + _CELL // 2}" y="{y + _HEIGHT - 7}" text-anchor="middle" font-size="10" '
            f'fill="{tone}">{100 * share:.0f}</text>'
        )


def _cut(word: str) -> str:
    return word if len(word) <= _MOST_LETTERS else f"{word[: _MOST_LETTERS - 1]}…"


def wide(text: str) -> int:
    """In letters; an ideograph is as wide as two."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def _text(text: str) -> str:
    """As XML may hold it: no control characters, and no half of a character."""
    plain = printable(text).encode("utf-8", errors="backslashreplace").decode()
    return escape("".join(each for each in plain if each not in "\ufffe\uffff"))


def is_ours(path: Path) -> bool:
    """Whether a picture at this place is one that lmscale made."""
    with path.open("rb") as file:
        return MADE_BY.encode() in file.read(4096)
