"""Figures that another process than the run's own has measured: `lmscale evaluate` of tasks and of
what the model writes, `lmscale probe`.

They have a file of rows and TensorBoard events of their own: the run's ranks may be writing theirs,
and drop, when they go on from a checkpoint, what an attempt wrote beyond it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lmscale.files.atomic import writing
from lmscale.files.jsonl import Row, append_durable_row
from lmscale.files.run_files import TASKS_FILE
from lmscale.runs.trackers import EVENTS_FOLDER

EVENTS_NAME = "tasks"  # TensorBoard shows it as a run beside the training's own


def record_task_figures(
    folder: Path,
    step: int,
    figures: Mapping[str, float],
    *,
    weights: str,
    limit: int | None,
    settings: Mapping[str, int] | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Append a row that outlives the machine, and show the same in TensorBoard.

    ``figures``: by name, ``tasks/NAME/FIGURE``. ``weights``: which ones, trained or their average.
    ``settings``: others of the command, without which its figures cannot be compared. ``texts``, in
    Markdown, are shown in TensorBoard alone. Raises ``DataError`` where the folder cannot be
    written to.
    """
    from torch.utils.tensorboard import SummaryWriter

    now = time.time()
    row: Row = {"step": step, "time": round(now, 3), "weights": weights}
    row |= {} if limit is None else {"limit": limit}
    row |= {"settings": dict(settings)} if settings else {}
    finite = {name: v if math.isfinite(v) else None for name, v in figures.items()}
    append_durable_row(folder / TASKS_FILE, row | {"figures": finite})
    with writing("TensorBoard events", folder):
        with SummaryWriter(str(folder / EVENTS_FOLDER / EVENTS_NAME)) as events:
            for name, value in figures.items():
                events.add_scalar(name, value, step, walltime=now)
            for name, text in (texts or {}).items():
                events.add_text(name, text, step, walltime=now)


def keep_valid(rows: Iterable[Row], rewinds: Sequence[Row]) -> list[Row]:
    """The rows of weights that the run still has: a rewind undoes those of the steps after it."""
    return [
        row
        for row in rows
        if not any(
            row["step"] > rewind["to_step"] and row["time"] < rewind["time"] for rewind in rewinds
        )
    ]


def latest_task_figures(
    rows: Iterable[Row], *, of_parts: bool
) -> dict[str, tuple[int, float | None]]:
    """Figure → the step of its newest weights, and its value there, of the latest row of these.
    ``of_parts``: of the rows that a limit was set to; else of those of whole tasks.
    """
    latest: dict[str, tuple[int, float | None]] = {}
    for row in rows:
        if ("limit" in row) != of_parts:
            continue
        for name, value in row["figures"].items():
            if name not in latest or row["step"] >= latest[name][0]:
                latest[name] = (row["step"], value)
    return latest
