"""What was measured of several models, as a table. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmscale.files.printing import align_rows, render_bytes

if TYPE_CHECKING:
    from lmscale.compress.measure import Measured, SetScore

BITS = "bits_per_byte"
TITLES = {BITS: "bits/byte"}
Ratios = Sequence[tuple[float | None, float | None]]


def render_table(rows: Sequence[Measured], ratios: Ratios) -> str:
    """One model a line: size, speed as a ratio to the first of its engine, figures of each set."""
    figures = {name: _second_figure(score) for row in rows for name, score in row.sets.items()}
    titles = ["model", "parameters", "zeros", "size", "scoring", "generating"]
    for name, figure in figures.items():
        of = f" {name}" if len(figures) > 1 else ""
        titles += [f"loss{of}", f"{TITLES.get(figure, figure)}{of}"]
    cells = [titles]
    for row, (scoring, generating) in zip(rows, ratios, strict=True):
        line = [
            row.name,
            f"{row.parameters:,}",
            f"{row.zeros / max(row.parameters, 1):.1%}",
            f"{render_bytes(row.bytes)} {row.dtype}",
            _render_ratio(scoring),
            _render_ratio(generating),
        ]
        for name, figure in figures.items():
            line += _render_figures(row.sets.get(name), figure)
        cells.append(line)
    return align_rows(cells)


def _second_figure(score: SetScore) -> str:
    """The one that is shown beside the loss: bits per byte, of labels the objective's first, such
    as accuracy.
    """
    return next((name for name in score.figures if name not in ("loss", "perplexity")), BITS)


def _render_figures(score: SetScore | None, figure: str) -> list[str]:
    if score is None:
        return ["-", "-"]
    value = score.figures.get(figure, math.nan)
    return [f"{score.loss:.4f}", "-" if math.isnan(value) else f"{value:.4f}"]


def _render_ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}×"


def describe_engines(rows: Sequence[Measured]) -> str:
    """What the ratios are of."""
    lines = []
    for engine in dict.fromkeys(row.engine for row in rows):
        first = next(row for row in rows if row.engine == engine)
        speeds = {"scoring": first.speeds.scoring, "generating": first.speeds.generating}
        told = ", ".join(f"{name} {rate:,.0f}" for name, rate in speeds.items() if rate)
        lines.append(f"1.00× under {engine}: {first.name}, tokens a second: {told or 'none'}")
    return "\n".join(lines)
