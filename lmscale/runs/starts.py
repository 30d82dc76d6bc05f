"""Every start of a run as one value, from the rows of its batch script and of its rank 0.

::

    slurm/events.jsonl   start … exclude … end     by the batch script; none without Slurm ┐
    attempts.jsonl       start … progress … end    by rank 0; none before the ranks met    ├─→ Start
    watch.jsonl          end                       by the watchdog, of a start that hung   ┘

Script and rank 0 both name the job and its restart, by which the rows of a start come together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from lmscale.files.jsonl import Row, sift_rows
from lmscale.files.run_files import SLURM_FOLDER
from lmscale.files.strangers import MAX_COUNT, Count, Instant

EVENTS_FILE = "events.jsonl"
HANG_ENDED = "end"  # the watchdog's row of a hang for which it ended all ranks
_REQUIRED = {"start": {"step", "nodes"}, "exclude": {"nodes", "reason"}}
_REQUIRED |= {"end": {"step", "code", "reason", "action"}}


class Event(BaseModel):
    """A row of a batch script: it has begun, it left ``nodes`` out, or how it ended and goes on."""

    model_config = ConfigDict(strict=True, frozen=True)
    event: Literal["start", "exclude", "end"]
    time: Instant
    submission: str
    job: str
    restart: Count
    step: Annotated[int, Field(ge=-1, lt=MAX_COUNT)] = -1  # of the newest checkpoint; -1: none
    nodes: str = ""
    code: int = 0
    reason: str = ""
    action: str = ""
    fault: str = ""

    @model_validator(mode="after")
    def _require_its_fields(self) -> Event:
        if not self.model_fields_set >= _REQUIRED[self.event]:
            raise ValueError(f"a row of kind {self.event} has less than its fields")
        return self


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a run, with or without Slurm, to its end or as far as it has come."""

    began_at: float
    job: str | None  # None without Slurm
    restart: int = 0
    submission: str | None = None
    nodes: str
    first_step: int
    excluded: tuple[Event, ...] = ()
    script_end: Event | None = None
    attempt: tuple[Row, ...] = ()  # rank 0's rows in attempts.jsonl; none while no rank has come
    hang: str | None = None  # what the watchdog said when it ended this start's ranks

    @property
    def found_step(self) -> int | None:
        """How far the run had come when it began, as the ledger told before it was cut."""
        return self.attempt[0].get("found_step") if self.attempt else None

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


@dataclass(frozen=True, kw_only=True)
class RunSigns:
    """What a run's folder says of how it goes, without anybody being asked."""

    submissions: Sequence[Row] = ()  # to Slurm, oldest first
    starts: Sequence[Start] = ()  # oldest first, those included in which no rank came to train
    cancels: frozenset[str] = frozenset()  # jobs that were asked to end for good
    is_finished: bool = False  # with nothing submitted since
    early_stop: str = ""  # why its newest start ended well before ``train.steps``
    last_sign: float | None = None  # when the run last wrote anything, as Unix time
    is_gone: bool | None = None  # rank 0 of an open attempt; None: it cannot be seen from here
    hang: str | None = None  # what the watchdog says of the newest start, if it stands still now
    imported_from: str | None = None  # of weights that no run here has trained
    made_of: str | None = None  # of weights that were made of another run's


_EVENT = TypeAdapter(Event)


def read_events(folder: Path, problems: list[str] | None = None) -> list[Event]:
    """The rows of the run's batch scripts; ``problems`` hears of lines that are none: two copies of
    a job, on two nodes, may tear one.
    """
    sifted = sift_rows(folder / SLURM_FOLDER / EVENTS_FILE, _EVENT)
    if problems is not None:
        problems += [f"{SLURM_FOLDER}/{problem}" for problem in sifted.problems]
    return sifted.values


def plan_starts(
    events: Iterable[Event], attempts: Iterable[Row], watch: Iterable[Row] = ()
) -> tuple[Start, ...]:
    """All starts of a run, the oldest first. ``watch`` are the watchdog's rows."""
    starts: dict[tuple[str | None, int], Start] = {}
    for event in events:
        key = (event.job, event.restart)
        if event.event == "start":
            starts[key] = Start(
                began_at=event.time,
                job=event.job,
                restart=event.restart,
                submission=event.submission,
                nodes=event.nodes,
                first_step=max(0, event.step),
            )
        elif key in starts and event.event == "end":
            # Of two ends the later one counts: Slurm would not requeue.
            starts[key] = replace(starts[key], script_end=event)
        elif key in starts:
            starts[key] = replace(starts[key], excluded=(*starts[key].excluded, event))
    for first, *others in _split_attempts(attempts):
        job, restart, step = first["job"], first["restart"], int(first["first_step"])
        key = (job, first["attempt"] if job is None else restart)
        start = starts.get(key) or Start(
            began_at=first["time"], job=job, restart=restart, nodes=first["host"], first_step=step
        )
        starts[key] = replace(start, first_step=step, attempt=(first, *others))
    in_order = sorted(starts.values(), key=lambda start: start.began_at)
    begins = [start.began_at for start in in_order]
    hangs = [row for row in watch if row["event"] == HANG_ENDED]
    for row in reversed(hangs):  # of several in one start the first one counts
        number = bisect_right(begins, row["time"]) - 1
        if number >= 0:
            in_order[number] = replace(in_order[number], hang=str(row["text"]))
    return tuple(in_order)


def _split_attempts(rows: Iterable[Row]) -> list[list[Row]]:
    attempts: list[list[Row]] = []
    for row in rows:
        if row["event"] == "start":
            attempts.append([])
        if attempts:  # else the row of a start was taken out by hand
            attempts[-1].append(row)
    return attempts


def newest_of(starts: Sequence[Start], jobs: Sequence[str]) -> Start | None:
    """The newest start of these jobs or their tasks; an older, fenced copy may end after it."""
    mine = (s for s in reversed(starts) if s.job is not None and is_one_of(s.job, jobs))
    return next(mine, None)


def is_one_of(job: str, jobs: Iterable[str]) -> bool:
    """Whether ``job`` is among ``jobs``, or a task of an array that is."""
    return any(job == listed or job.startswith(f"{listed}_") for listed in jobs)
