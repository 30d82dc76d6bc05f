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

    @property
    def seconds_left(self) -> float:
        """Seconds to the end at the speed of the last stretch, without interruptions."""
        return self.steps_left * self.stretch_seconds / self.stretch_steps

    @property
    def seconds_left_with_goodput(self) -> float | None:
        """Seconds to the end if waiting, restarts and repeated steps take their share of before."""
        return self.seconds_left / self.goodput if self.goodput > 0 else None


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
    rows = _newest_stretch([row for row in metrics if row.get(STEP_SECONDS)], starts)
    if not rows or step >= steps:
        return None
    last = rows[-1]
    recent = [row for row in rows if row["time"] >= last["time"] - STRETCH_SECONDS]
    seconds, num_steps = last["time"] - recent[0]["time"], last["step"] - recent[0]["step"]
    if num_steps <= 0 or seconds <= 0:  # a single line holds the mean of its own steps
        seconds, num_steps = last[STEP_SECONDS], 1
    return Forecast(
        steps_left=steps - step,
        stretch_steps=num_steps,
        stretch_seconds=seconds,
        goodput=goodput,
    )


def _newest_stretch(rows: Sequence[Row], starts: Sequence[float]) -> list[Row]:
    for start in reversed(starts):
        if since := [row for row in rows if row["time"] >= start]:
            return since
    return []
