"""What every attempt of a run did with its time, as rank 0 tells it in ``attempts.jsonl``.

Rows are of four events, ``start``, ``progress``, ``rewind`` and ``end``; docs/formats.md lists what
is in them. The first progress row comes right after the start, and others after a second, two,
four, up to every 15 s, whatever the run does. An attempt that is killed has no end; its last
progress row bounds what is not known. goodput.py judges the rows.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmscale.errors import LeaseLostError, LmscaleError, NoSpaceError
from lmscale.files.jsonl import TAIL_BYTES, Row, renew_rows, sift_rows
from lmscale.files.run_files import ATTEMPTS_FILE, LEDGER_FILE
from lmscale.files.run_rows import ATTEMPT, STEP
from lmscale.ranks.attempt import job_and_restart
from lmscale.runs.goodput import (
    FINISHED,
    FIRST_SECONDS,
    PROGRESS_SECONDS,
    Account,
    Goodput,
    causes_of,
    is_good_end,
    pause_after,
)
from lmscale.watch import heartbeat
from lmscale.watch.process import own_process

logger = logging.getLogger(__name__)


def read_attempts(folder: str | Path, problems: list[str] | None = None) -> list[Row]:
    """The rows of a run's attempts; ``problems``, else the log, hears of lines that are none."""
    sifted = sift_rows(Path(folder) / ATTEMPTS_FILE, ATTEMPT)
    if problems is not None:
        problems += sifted.problems
    else:
        for problem in sifted.problems:
            logger.warning("%s/%s", folder, problem)
    return sifted.rows


def _count_done(folder: str | Path) -> int:
    """Steps that the ledger holds: it is cut to where the run goes on, once this was written."""
    rows = sift_rows(Path(folder) / LEDGER_FILE, STEP, max_bytes=TAIL_BYTES).rows
    return rows[-1]["step"] + 1 if rows else 0


def find_good_end(attempts: Sequence[Row]) -> str:
    """With what reason the last attempt ended the run well: all steps were done, or all that were
    worth it. "": it did not.
    """
    reason = str(attempts[-1].get("reason", "")) if attempts else ""
    return reason if is_good_end(reason) else ""


class AttemptLog:
    """Rank 0's record of one attempt, for the time of a ``with`` block.

    The caller ends it with a reason; a block left by an exception ends with the exception's name,
    unless the run is another copy's by then: that one's file gets no row from here.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        first_step: int,
        world_size: int,
        zero_stage: int,
        began_at: float | None = None,
        clock: Callable[[], float] = time.time,
        phase_seconds: Callable[[], Mapping[str, float]] = heartbeat.phase_seconds,
    ) -> None:
        """Write the start of an attempt that has ``first_step`` steps behind it.

        ``began_at`` is when its process began, on ``clock`` (default: now): setting up counts as
        time in which nothing was trained, in the first attempt as in every other.
        ``phase_seconds`` tells what its time has gone to so far.
        """
        path = Path(folder) / ATTEMPTS_FILE
        self._rows = renew_rows(path, is_sealed=True, no_space=NoSpaceError)
        self._clock, self._phase_seconds = clock, phase_seconds
        earlier = read_attempts(folder)
        self._opened_at = self._written_at = clock()
        job, restart = job_and_restart()
        self._start: Row = {
            "event": "start",
            "time": self._opened_at if began_at is None else began_at,
            # Not their number: a start's row may have been damaged.
            "attempt": 1 + max((row["attempt"] for row in earlier), default=0),
            "job": job,
            "restart": restart,
            "first_step": first_step,
            "found_step": _count_done(folder),
            "host": socket.gethostname(),
            "world_size": world_size,
            "zero_stage": zero_stage,
            "process": own_process(),
        }
        self._rows.append(self._start)
        self._account = Account()
        for row in (*earlier, self._start):
            self._account.add(row)
        self._step = first_step
        self._step_seconds, self._skipped_steps = 0.0, 0
        # What the process did before it came here is this attempt's as well.
        self._told = {key: v for key, v in self._causes().items() if key not in ("start", "load")}
        self.has_ended = False
        self._lock = threading.RLock()  # a signal's handler may end the attempt
        self._write("progress")  # what it took to come here
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="attempt's log", daemon=True)
        self._thread.start()

    def __enter__(self) -> AttemptLog:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if not isinstance(error, LeaseLostError):
                self.end(FINISHED if error is None else type(error).__name__)
        finally:
            self._closing.set()
            self._thread.join(PROGRESS_SECONDS)  # a file system that hangs may hold it up
            self._rows.close()

    def step(self, step: int, step_seconds: float, *, is_skipped: bool = False) -> None:
        """Count one finished step; a row is written now and then."""
        with self._lock:
            self._step = step
            self._step_seconds += step_seconds
            self._skipped_steps += is_skipped
            if self._is_due():
                self._write("progress")

    def rewound(self, to_step: int) -> None:
        """What was done after ``to_step`` is undone, and the steps begin anew there."""
        with self._lock:
            self._write("rewind", to_step=to_step)
            self._step = to_step

    def goodput(self) -> Goodput:
        """Where the run's time went so far."""
        with self._lock:
            return self._account.with_row(self._row("progress")).at()

    def end(self, reason: str) -> None:
        """Write why the attempt ended; later calls are ignored."""
        with self._lock:
            if not self.has_ended:
                self.has_ended = True
                self._write("end", reason=reason)

    def _run(self) -> None:
        """Rows come also while a step, a save or a hang takes minutes: they are signs of life."""
        while not self._closing.wait(FIRST_SECONDS):
            with self._lock:
                if self.has_ended or not self._is_due():
                    continue
                try:
                    self._write("progress")
                except LmscaleError as error:  # the next step's row meets it as well
                    logger.warning("%s", error)

    def _is_due(self) -> bool:
        pause = pause_after(self._written_at, opened_at=self._opened_at)
        return not 0 <= self._clock() - self._written_at < pause  # it may have been set back

    def _causes(self) -> dict[str, float]:
        return causes_of(self._phase_seconds())

    def _row(self, event: str, **more: Any) -> Row:
        seconds = {key: v - self._told.get(key, 0.0) for key, v in self._causes().items()}
        row: Row = {
            "event": event,
            "time": self._clock(),
            "attempt": self._start["attempt"],
            "step": self._step,
            "step_seconds": round(self._step_seconds, 6),
            "seconds": {key: round(v, 6) for key, v in seconds.items() if v > 0},
        }
        skipped = {"skipped_steps": self._skipped_steps} if self._skipped_steps else {}
        return {**row, **skipped, **more}

    def _write(self, event: str, **more: Any) -> None:
        row = self._row(event, **more)
        self._rows.append(row)
        self._account.add(row)
        for key, seconds in row["seconds"].items():
            self._told[key] = self._told.get(key, 0.0) + seconds
        self._step_seconds, self._skipped_steps = 0.0, 0
        self._written_at = row["time"]
