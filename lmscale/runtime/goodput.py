"""Goodput: the part of a run's wall time, restarts included, that became training that counts.

``attempts.jsonl`` in the run folder has rows of three events::

    start     time attempt first_step host world_size zero_stage
    progress  time attempt step step_seconds
    end       time attempt step step_seconds reason

``first_step`` steps were done before; ``step_seconds`` were spent in the steps since the last row.
An attempt that is killed has no end; its last progress row bounds what is not known.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lmscale.errors import LeaseLostError
from lmscale.runtime.jsonl import Row, read_rows, renew_rows

ATTEMPTS_FILE = "attempts.jsonl"
PROGRESS_SECONDS = 15.0  # a kill loses at most this much; a month of rows is 17 MB
FINISHED = "finished"


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Where a run's time went, in seconds."""

    productive_seconds: float
    """In steps whose result was kept."""
    redone_seconds: float
    """In steps that a later attempt did again, because it resumed from before them."""
    wall_seconds: float
    """Since the first attempt began, whether or not the run was running."""
    attempts: int

    @property
    def fraction(self) -> float:
        return self.productive_seconds / self.wall_seconds if self.wall_seconds > 0 else 0.0

    @property
    def restarts(self) -> int:
        return max(0, self.attempts - 1)


def goodput(rows: Sequence[Row], now: float | None = None) -> Goodput:
    """Judge the rows of ``attempts.jsonl``; ``now`` defaults to the time of the last row."""
    starts = [row for row in rows if row["event"] == "start"]
    if not starts:
        return Goodput(productive_seconds=0.0, redone_seconds=0.0, wall_seconds=0.0, attempts=0)
    kept_until = _kept_until([row["first_step"] for row in starts])
    productive = spent = 0.0
    attempt, step = -1, 0
    for row in rows:
        if row["event"] == "start":
            attempt, step = attempt + 1, row["first_step"]
            continue
        spent += row["step_seconds"]
        steps = row["step"] - step
        if attempt >= 0 and steps > 0:
            kept = min(max(kept_until[attempt] - step, 0), steps)
            productive += row["step_seconds"] * kept / steps
        step = row["step"]
    end = rows[-1]["time"] if now is None else now
    return Goodput(
        productive_seconds=productive,
        redone_seconds=max(0.0, spent - productive),
        wall_seconds=max(0.0, end - starts[0]["time"]),
        attempts=len(starts),
    )


def _kept_until(first_steps: Sequence[int]) -> list[float]:
    """Per attempt, the last step of it that no later attempt did again."""
    limits = [math.inf]
    for first_step in reversed(first_steps[1:]):
        limits.append(min(limits[-1], first_step))
    return limits[::-1]


class AttemptLog:
    """Rank 0's record of one attempt. Opened by ``open_attempt``."""

    def __init__(
        self, path: Path, start: Row, began_at: float | None, clock: Callable[[], float]
    ) -> None:
        self._rows = renew_rows(path)
        self._clock = clock
        earlier = read_rows(path)
        now = clock()
        began_at = now if began_at is None else began_at
        self._start = {"event": "start", "time": began_at, "attempt": _count(earlier) + 1, **start}
        self._rows.append(self._start)
        rows = [*earlier, self._start]
        self._earlier_productive = goodput(rows).productive_seconds
        self._began = next(row["time"] for row in rows if row["event"] == "start")
        self._step = self._start["first_step"]
        self._own_seconds = self._unwritten_seconds = 0.0
        self._last_written = now
        self.has_ended = False

    @property
    def number(self) -> int:
        """1 for the run's first attempt."""
        return self._start["attempt"]

    def step(self, step: int, step_seconds: float) -> None:
        """Count one finished step; a row is written now and then."""
        self._step = step
        self._own_seconds += step_seconds
        self._unwritten_seconds += step_seconds
        if self._clock() - self._last_written >= PROGRESS_SECONDS:
            self._write("progress")

    def goodput(self) -> float:
        """The run's goodput so far, in [0, 1]."""
        wall = self._clock() - self._began
        return (self._earlier_productive + self._own_seconds) / wall if wall > 0 else 0.0

    def end(self, reason: str) -> None:
        """Write why the attempt ended; later calls are ignored."""
        if not self.has_ended:
            self.has_ended = True
            self._write("end", reason=reason)

    def close(self) -> None:
        self._rows.close()

    def _write(self, event: str, **more: str) -> None:
        row = {"event": event, "time": self._clock(), "attempt": self.number, "step": self._step}
        self._rows.append({**row, "step_seconds": round(self._unwritten_seconds, 6), **more})
        self._unwritten_seconds = 0.0
        self._last_written = row["time"]


def _count(rows: Sequence[Row]) -> int:
    return sum(row["event"] == "start" for row in rows)


@contextmanager
def open_attempt(
    folder: str | Path,
    *,
    first_step: int,
    world_size: int,
    zero_stage: int,
    began_at: float | None = None,
    clock: Callable[[], float] = time.time,
) -> Iterator[AttemptLog]:
    """Write the start of an attempt that has ``first_step`` steps behind it; on rank 0 only.

    ``began_at`` is when its process began, on ``clock`` (default: now): setting up counts as time
    in which nothing was trained, in the first attempt as in every other.
    The caller ends it with a reason; a block left by an exception ends with the exception's name,
    unless the run is another copy's by then: that one's file gets no row from here.
    """
    start: Row = {
        "first_step": first_step,
        "host": socket.gethostname(),
        "world_size": world_size,
        "zero_stage": zero_stage,
    }
    attempt = AttemptLog(Path(folder) / ATTEMPTS_FILE, start, began_at, clock)
    try:
        yield attempt
    except LeaseLostError:
        raise
    except BaseException as error:
        attempt.end(type(error).__name__)
        raise
    else:
        attempt.end(FINISHED)
    finally:
        attempt.close()
