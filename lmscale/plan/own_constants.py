"""What a run has measured of itself: the constants of its own plan, from its bookkeeping."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmscale.files.jsonl import Row, sift_rows
from lmscale.files.run_files import METRICS_FILE
from lmscale.files.run_rows import FIGURES
from lmscale.runs.attempts import read_attempts
from lmscale.runs.goodput import STEP_SECONDS, Account, is_good_end

# Ends that somebody asked for, as train/votes.py names them: no failures.
ASKED_ENDS = ("SIGTERM", "SIGUSR1", "SIGINT", "stop file")


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Means of what has happened; None of what has not happened yet."""

    step_seconds: float | None = None
    """The median's."""
    save_seconds: float | None = None
    commit_seconds: float | None = None
    evaluation_seconds: float | None = None
    """Of one evaluation in the loop."""
    start_seconds: float | None = None
    load_seconds: float | None = None
    down_seconds: float | None = None
    """Between two attempts, whatever it was spent on."""
    mtbf_seconds: float | None = None
    """Of the whole job, from its unasked ends."""
    failures: int = 0


def read_constants(folder: Path, *, evaluate_every_steps: int = 0) -> Constants:
    """From ``attempts.jsonl`` and ``metrics.jsonl`` of a run; all None where there are none."""
    attempts = read_attempts(folder)
    metrics = sift_rows(folder / METRICS_FILE, FIGURES).rows
    if not attempts:
        return Constants()
    account = Account()
    for row in attempts:
        account.add(row)
    found = account.at()
    failures = count_failures(attempts)
    steps = max((row.get("step", 0) for row in attempts), default=0)
    scored = steps // evaluate_every_steps if evaluate_every_steps else 0
    return Constants(
        step_seconds=_middle(metrics, STEP_SECONDS),
        save_seconds=_middle(metrics, "checkpoint/stopped_seconds"),
        commit_seconds=_middle(metrics, "checkpoint/commit_seconds"),
        evaluation_seconds=found.evaluation_seconds / scored if scored else None,
        start_seconds=_share(found.start_seconds, found.attempts),
        load_seconds=_share(found.load_seconds, found.restarts),
        down_seconds=_share(found.down_seconds, found.restarts),
        mtbf_seconds=_share(found.running_seconds, failures),
        failures=failures,
    )


def count_failures(attempts: Sequence[Row]) -> int:
    """Attempts that ended unasked, or of which a later attempt finds no end."""
    failures, is_open = 0, False
    for row in attempts:
        if row["event"] == "start":
            failures += is_open
            is_open = True
        elif row["event"] == "end":
            reason = row.get("reason", "")
            failures += not (is_good_end(reason) or reason in ASKED_ENDS)
            is_open = False
    return failures


def _share(total: float, count: int) -> float | None:
    return total / count if count else None


def _middle(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return statistics.median(values) if values else None
