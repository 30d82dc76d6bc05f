"""When a run will be done, from what its metrics and attempts say. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmscale.files.jsonl import Row

STRETCH_SECONDS = 900.0  # long enough to hold a save or an evaluation, short enough to be of now
STEP_SECONDS = "speed/step_seconds"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """How long the steps that are left will take."""

    steps_left: int
    stretch_steps: int
    """Steps whose time was taken."""
    stretch_seconds: float
    goodput: float
    """Of the whole run so far, 0 to 1."""
    seconds_left: float
    """To the end, at the speed of the last stretch, without interruptions."""
    seconds_left_with_goodput: float | None
    """If waiting, restarts and repeated steps take their share of before."""


def forecast(
    metrics: Sequence[Row],
    *,
    starts: Sequence[float],
    step: int,
    steps: int,
    goodput: float,
) -> Forecast | None:
    """A forecast from the lines of metrics.jsonl; None before the first line.

    ``starts`` are the beginnings of the attempts; the newest attempt that wrote a line counts.
    ``step`` of ``steps`` are done. Saves and evaluations between two lines count as well.
    """
    lines = [row for row in metrics if row.get(STEP_SECONDS)]
    stretches = ([row for row in lines if row["time"] >= start] for start in reversed(starts))
    rows = next(filter(None, stretches), None)
    if not rows or step >= steps:
        return None
    last = rows[-1]
    recent = [row for row in rows if row["time"] >= last["time"] - STRETCH_SECONDS]
    seconds, num_steps = last["time"] - recent[0]["time"], last["step"] - recent[0]["step"]
    if num_steps <= 0 or seconds <= 0:  # a single line holds the mean of its own steps
        seconds, num_steps = last[STEP_SECONDS], 1
    seconds_left = (steps - step) * seconds / num_steps
    return Forecast(
        steps_left=steps - step,
        stretch_steps=num_steps,
        stretch_seconds=seconds,
        goodput=goodput,
        seconds_left=seconds_left,
        seconds_left_with_goodput=seconds_left / goodput if goodput > 0 else None,
    )
