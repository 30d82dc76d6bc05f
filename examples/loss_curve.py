"""Draw a run's loss as a picture: what it trained on, the held-out text, and where it started anew.

    python examples/loss_curve.py runs/demo        # writes runs/demo/loss.svg

It reads metrics.jsonl and attempts.jsonl of the run folder, which docs/formats.md describes, and
needs nothing but Python. It also shows how to get at a run's figures by a few lines of one's own.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 40, 44  # margins, in pixels
TRAIN, HELDOUT, START = "#3b6fb6", "#d1495b", "#8a8f98"

Points = list[tuple[float, float]]  # (step, nats per token)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a run's loss as an SVG.")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--out", type=Path, help="default: RUN/loss.svg")
    arguments = parser.parse_args()
    try:
        metrics = read_rows(arguments.run / "metrics.jsonl")
        attempts = read_rows(arguments.run / "attempts.jsonl")
    except (OSError, ValueError) as error:
        parser.error(f"{arguments.run} cannot be read as a run's folder: {error}")
    starts = [row for row in attempts if row["event"] == "start"]
    train = figures(metrics, "train/loss")
    if not train:
        raise SystemExit(f"{arguments.run}/metrics.jsonl holds no train/loss yet.")
    out = arguments.out or arguments.run / "loss.svg"
    out.write_text(
        render_curve(
            title=f"{arguments.run.name}: loss, nats per token",
            train=train,
            heldout=figures(metrics, "evaluation/heldout/loss"),
            starts=[(row["first_step"], describe_start(row)) for row in starts[1:]],
        ),
        encoding="utf-8",
    )
    print(out)


def read_rows(path: Path) -> list[dict]:
    """The whole lines of a file that a run may be writing just now."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def figures(rows: Sequence[dict], name: str) -> Points:
    """(step, figure) of the rows that hold it; a null was not finite and is left out."""
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def describe_start(row: dict) -> str:
    ranks = "1 rank" if row["world_size"] == 1 else f"{row['world_size']} ranks"
    return f"resumed: {ranks}, ZeRO {row['zero_stage']}"


def render_curve(
    *, title: str, train: Points, heldout: Points, starts: Sequence[tuple[float, str]]
) -> str:
    """The SVG's text. ``starts`` are (step, label) of the starts after the first."""
    last = max(step for step, _ in [*train, *heldout])
    losses = [loss for _, loss in [*train, *heldout]]
    low, high = math.floor(min(losses)), max(math.ceil(max(losses)), math.floor(min(losses)) + 1)

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / last, 1)

    def y(loss: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low), 1)

    def text(at_x: float, at_y: float, words: str, *, anchor: str = "middle", color: str) -> str:
        place = f'x="{at_x}" y="{at_y}" text-anchor="{anchor}" fill="{color}"'
        return f"<text {place}>{escape(words)}</text>"

    def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
        return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {style}/>'

    grid = f'stroke="{START}" stroke-opacity="0.25"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(LEFT, 22, title, anchor="start", color="#222"),
        text(WIDTH - RIGHT - 110, 22, "trained on", color=TRAIN),
        text(WIDTH - RIGHT, 22, "held out", anchor="end", color=HELDOUT),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "step", color="#444"),
    ]
    for loss in ticks(low, high):
        parts.append(line(LEFT, y(loss), WIDTH - RIGHT, y(loss), grid))
        parts.append(text(LEFT - 8, y(loss) + 4, f"{loss:g}", anchor="end", color="#444"))
    for step in ticks(0, last):
        parts.append(text(x(step), HEIGHT - BOTTOM + 18, f"{step:,g}", color="#444"))
    for step, label in starts:
        dashes = f'stroke="{START}" stroke-dasharray="4 4"'
        parts.append(line(x(step), TOP, x(step), HEIGHT - BOTTOM, dashes))
        parts.append(text(x(step) + 6, TOP + 14, label, anchor="start", color=START))
    path = " ".join(f"{x(step)},{y(loss)}" for step, loss in train)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{TRAIN}" stroke-width="2"/>')
    for step, loss in heldout:
        parts.append(f'<circle cx="{x(step)}" cy="{y(loss)}" r="4" fill="{HELDOUT}"/>')
        parts.append(text(x(step), y(loss) - 10, f"{loss:.2f}", color=HELDOUT))
    return "\n".join([*parts, "</svg>\n"])


def ticks(low: float, high: float) -> list[float]:
    """At most seven numbers from ``low`` to ``high``, 1, 2 or 5 times a power of 10 apart."""
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    apart = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * (1 - 1e-9))
    first = math.ceil(low / apart)
    return [round(n * apart, 10) for n in range(first, math.floor(high / apart + 1e-9) + 1)]


if __name__ == "__main__":
    main()
