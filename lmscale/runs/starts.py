"""Every start of a run as one value, from the rows of its batch script and of its rank 0.

::

    slurm/events.jsonl   start … exclude … end     by the batch script; none without Slurm ┐
    attempts.jsonl       start … progress … end    by rank 0; none before the ranks met    ├─→ Start
    watch.jsonl          end                       by the watchdog, of a start that hung   ┘

Script and rank 0 both name the job and its restart, by which the rows of a start come together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lmscale.files.jsonl import Row
from lmscale.files.run_files import SLURM_FOLDER

EVENTS_FILE = "events.jsonl"
HANG_ENDED = "end"  # the watchdog's row of a hang for which it ended all ranks


class _Event(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    time: float
    submission: str
    job: str
    restart: int


class ScriptStart(_Event):
    """A batch script has begun."""

    event: Literal["start"]
    step: int
    """Of the newest checkpoint; -1 without one."""
    nodes: str


class Exclusion(_Event):
    """A batch script left a node out."""

    event: Literal["exclude"]
    nodes: str
    reason: str


class ScriptEnd(_Event):
    """A batch script says how its start ended, and what follows."""

    event: Literal["end"]
    step: int
    code: int
    reason: str
    action: str
    fault: str = ""


Event = ScriptStart | Exclusion | ScriptEnd
EVENT_ROW = TypeAdapter[Event](Annotated[Event, Field(discriminator="event")])


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a run, with or without Slurm, to its end or as far as it has come."""

    began_at: float
    job: str | None
    """None without Slurm."""
    restart: int = 0
    submission: str | None = None
    nodes: str
    first_step: int
    excluded: tuple[Exclusion, ...] = ()
    script_end: ScriptEnd | None = None
    attempt: tuple[Row, ...] = ()
    """Rank 0's rows in attempts.jsonl; none while no rank has come."""
    hang: str | None = None
    """What the watchdog said when it ended this start's ranks."""

    @property
    def is_training(self) -> bool:
        """Whether its ranks have come, and have not said that they end."""
        return bool(self.attempt) and self.attempt_end is None

    @property
    def attempt_end(self) -> str | None:
        """Why its ranks ended, in their own words or in the watchdog's."""
        if self.hang is not None:
            return f"hung: {self.hang}"
        return self.attempt[-1].get("reason") if self.attempt else None

    @property
    def ended_at(self) -> float | None:
        """When its batch script, or without Slurm its rank 0, wrote its end."""
        if self.job is not None:
            return self.script_end and self.script_end.time
        return self.attempt[-1]["time"] if "reason" in self.attempt[-1] else None


def read_events(folder: Path) -> list[Event]:
    """The rows of the run's batch scripts. Two copies of a job, on two nodes, may tear a line."""
    try:
        lines = (folder / SLURM_FOLDER / EVENTS_FILE).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    events: list[Event] = []
    for line in lines:
        with suppress(ValidationError):
            events.append(EVENT_ROW.validate_json(line))
    return events


def plan_starts(
    events: Iterable[Event], attempts: Iterable[Row], watch: Iterable[Row] = ()
) -> tuple[Start, ...]:
    """All starts of a run, the oldest first. ``watch`` are the watchdog's rows."""
    starts: dict[tuple[str | None, int], Start] = {}
    for event in events:
        key = (event.job, event.restart)
        if isinstance(event, ScriptStart):
            starts[key] = _start_of_script(event)
        elif key in starts and isinstance(event, ScriptEnd):
            # Of two ends the later one counts: Slurm would not requeue.
            starts[key] = replace(starts[key], script_end=event)
        elif key in starts and isinstance(event, Exclusion):
            starts[key] = replace(starts[key], excluded=(*starts[key].excluded, event))
    for rows in _split_attempts(attempts):
        job = rows[0]["job"]
        key = (job, rows[0]["attempt"] if job is None else rows[0]["restart"])
        start = starts.get(key) or _start_of_ranks(rows[0])
        starts[key] = replace(start, first_step=int(rows[0]["first_step"]), attempt=tuple(rows))
    hangs = [row for row in watch if row["event"] == HANG_ENDED]
    in_order = sorted(starts.values(), key=lambda start: start.began_at)
    return tuple(
        _with_hang(start, following, hangs)
        for start, following in zip_longest(in_order, in_order[1:])
    )


def _start_of_script(event: ScriptStart) -> Start:
    return Start(
        began_at=event.time,
        job=event.job,
        restart=event.restart,
        submission=event.submission,
        nodes=event.nodes,
        first_step=max(0, event.step),
    )


def _start_of_ranks(row: Row) -> Start:
    return Start(
        began_at=row["time"],
        job=row["job"],
        restart=row["restart"],
        nodes=str(row["host"]),
        first_step=int(row["first_step"]),
    )


def _split_attempts(rows: Iterable[Row]) -> list[list[Row]]:
    attempts: list[list[Row]] = []
    for row in rows:
        if row["event"] == "start":
            attempts.append([])
        if attempts:  # else the row of a start was taken out by hand
            attempts[-1].append(row)
    return attempts


def _with_hang(start: Start, following: Start | None, hangs: Iterable[Row]) -> Start:
    until = math.inf if following is None else following.began_at
    texts = [str(row["text"]) for row in hangs if start.began_at <= row["time"] < until]
    return replace(start, hang=texts[0]) if texts else start


def newest_of(starts: Sequence[Start], jobs: Sequence[str]) -> Start | None:
    """The newest start of these jobs, or of tasks of theirs.

    An older copy of a job, which the newer one has fenced off, may end after it.
    """
    mine = (s for s in reversed(starts) if s.job is not None and is_one_of(s.job, jobs))
    return next(mine, None)


def is_one_of(job: str, jobs: Iterable[str]) -> bool:
    """Whether ``job`` is among ``jobs``, or a task of an array that is."""
    return any(job == one or job.startswith(f"{one}_") for one in jobs)
