"""Ending a run's jobs for good: what to do with each (pure), and doing it."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.slurm import QueuedJob, scancel
from launcher.status import TRAIN, Row, jobs_of
from lmscale.errors import ClusterError
from lmscale.files.run_files import CANCEL_FILE, read_cancelled
from lmscale.runs.starts import is_one_of

# In these states a job has a batch script that can be asked, and perhaps something to save.
_ASKABLE = ("RUNNING", "SUSPENDED", "STOPPED")


@dataclass(frozen=True, kw_only=True)
class JobCancel:
    """What is done about one job."""

    job: str
    kind: str
    """Of the submission: train, evaluate, …"""
    state: str
    """Slurm's."""
    nodes: str
    done: Literal["asked to save and end", "cancelled"]
    was_asked_before: bool

    @property
    def can_save(self) -> bool:
        return self.done != "cancelled"

    @property
    def line(self) -> str:
        what = f"job {self.job}" if self.kind == TRAIN else f"job {self.job} ({self.kind})"
        if self.can_save:
            again = " again" if self.was_asked_before else ""
            return f"{what} on {self.nodes}: asked{again} to save and to end for good"
        where = f"on {self.nodes}" if self.nodes else f"{self.state.lower()} in the queue"
        return f"{what}, {where}: cancelled"


def plan_cancel(
    submissions: Sequence[Row],
    queue: Sequence[QueuedJob],
    *,
    cancels: Collection[str] = (),
    at_once: bool = False,
) -> tuple[JobCancel, ...]:
    """What to do with every job of a run that is not over, those that wait first.

    A chain's next job would otherwise start as soon as the one before it ends.
    """
    plans = [
        JobCancel(
            job=job.job,
            kind=row["kind"],
            state=job.state,
            nodes=job.nodes,
            done="asked to save and end"
            if row["kind"] == TRAIN and job.state in _ASKABLE and not at_once
            else "cancelled",
            was_asked_before=job.job in cancels or job.raw_job in cancels,
        )
        for row in submissions
        for job in queue
        if job.is_active and is_one_of(job.job, jobs_of(row))
    ]
    return tuple(sorted(plans, key=lambda plan: plan.can_save))


def cancel_jobs(state_folder: Path, plans: Sequence[JobCancel]) -> None:
    """Carry the plans of one run out. Its jobs are noted first, so that none of them comes back."""
    note_cancelled(state_folder, [plan.job for plan in plans])
    scancel([plan.job for plan in plans if not plan.can_save])
    # Its batch script passes it on to the ranks.
    scancel([plan.job for plan in plans if plan.can_save], ["--batch", "--signal=USR1"])


def note_cancelled(state_folder: Path, jobs: Sequence[str]) -> None:
    """Write down that these jobs must not be requeued, for their batch scripts to read."""
    noted = read_cancelled(state_folder)
    lines = "".join(f"{job}\n" for job in jobs if job not in noted)
    if not lines:
        return
    try:
        # A run of a sweep that waits in the queue has no folder yet.
        state_folder.mkdir(parents=True, exist_ok=True)
        with open(state_folder / CANCEL_FILE, "a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ClusterError(
            f"{state_folder / CANCEL_FILE} cannot be written: {error}. Without it a job would be "
            "requeued: cancel it as the user who owns the folder, or with --now."
        ) from None
