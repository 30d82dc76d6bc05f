"""The plan's own error: what a run measured of its steps, beside what was planned for them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmscale.errors import ConfigError
from lmscale.files.jsonl import Row, sift_rows
from lmscale.files.run_files import METRICS_FILE
from lmscale.files.run_rows import FIGURES
from lmscale.plan.speed import Step
from lmscale.runs.goodput import PHASE, STEP_SECONDS

# What the plan calls the step's end is what follows the last backward pass, until the next one.
OF_STEP = ("step", "agree", "data")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A figure of a run."""

    name: str
    unit: str
    planned: float
    measured: float

    @property
    def error(self) -> float:
        """How much more was planned than measured, as a share."""
        return self.planned / self.measured - 1 if self.measured else float("inf")


def compare_speed(folder: Path, step: Step, *, is_gpu: bool) -> tuple[Compared, ...]:
    """Step time, its phases and tokens a second of a run beside the plan's. Raises ``ConfigError``
    for a run that has measured no step.
    """
    rows = [row for row in sift_rows(folder / METRICS_FILE, FIGURES).rows if row.get(STEP_SECONDS)]
    if not rows:
        raise ConfigError(
            f"{folder}: {METRICS_FILE} has no {STEP_SECONDS}, so there is nothing to hold the plan "
            "against. Let the run do train.log_every_steps steps at least."
        )
    own = rows[1:] or rows  # the first line holds compilation and allocation
    measured = _middle(own, STEP_SECONDS)
    found = [
        Compared(name="step", unit="s", planned=step.seconds, measured=measured),
        Compared(
            name="tokens a second",
            unit="",
            planned=step.tokens_per_second,
            measured=_middle(own, "speed/positions_per_second"),
        ),
    ]
    if not is_gpu:  # whose host is through with a phase before the device is
        found[1:1] = _compare_phases(own, step)
    return tuple(found)


def _compare_phases(rows: Sequence[Row], step: Step) -> Iterator[Compared]:
    names = {"forward": ("forward",), "backward": ("backward",), "step": OF_STEP}
    for phase in step.phases:
        keys = [f"{PHASE}{name}_seconds" for name in names[phase.name]]
        there = [row for row in rows if all(row.get(key) is not None for key in keys)]
        if there:
            measured = sum(_middle(there, key) for key in keys)
            yield Compared(
                name=f"  {phase.name}", unit="s", planned=phase.seconds, measured=measured
            )


def _middle(rows: Sequence[Row], key: str) -> float:
    return statistics.median(row[key] for row in rows if row.get(key) is not None)
