"""Ending runs for good: what to do with each of their jobs (pure), and doing it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.slurm import QueuedJob, scancel, squeue
from launcher.status import TRAIN, Row, jobs_of, judge_run
from lmscale.errors import ClusterError, ConfigError, LmscaleError
from lmscale.files.atomic import writing
from lmscale.files.run_files import (
    CANCEL_FILE,
    DATA_SLURM_FOLDER,
    SLURM_FOLDER,
    STOP_FILE,
    read_cancelled,
)
from lmscale.runs.run_folder import read_status, read_submissions
from lmscale.runs.starts import is_one_of

# In these states a job has a batch script that can be asked, and perhaps something to save.
_ASKABLE = ("RUNNING", "SUSPENDED", "STOPPED")


@dataclass(frozen=True, kw_only=True)
class JobCancel:
    job: str
    kind: str  # of the submission: train, evaluate, …
    state: str  # Slurm's
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


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """What was done about one run, as --json prints it."""

    folder: str
    jobs: tuple[JobCancel, ...] = ()
    stop_file: bool = False
    text: tuple[str, ...]  # what was done, and what happens next


def cancel_runs(runs: Sequence[Path], *, at_once: bool) -> tuple[list[Cancelled], list[str]]:
    """Cancel all of them, with one question to Slurm; one that cannot be holds no other up."""
    submissions, problems = {}, []
    for run in runs:
        damaged: list[str] = []
        submissions[run] = read_submissions(run, damaged)
        advice = "Jobs that it alone names were not ended: `scancel` ends them."
        problems += [f"{run}: {problem} {advice}" for problem in damaged]
    every = [row for rows in submissions.values() for row in rows]
    jobs = [job for row in every for job in (*jobs_of(row), *makers_of(row))]
    jobs = list(dict.fromkeys(jobs))
    queue = squeue(jobs) if jobs and shutil.which("squeue") is not None else None
    cancelled = []
    for run in runs:
        try:
            if queue is not None:
                cancelled.append(_cancel_jobs(run, submissions[run], queue, at_once=at_once))
            else:
                cancelled.append(_cancel_by_files(run, submissions[run], at_once=at_once))
        except LmscaleError as error:
            problems += error.problems
    return cancelled, problems


def _cancel_jobs(
    run: Path, submissions: Sequence[Row], queue: Sequence[QueuedJob], *, at_once: bool
) -> Cancelled:
    state_folder = _state_folder(run)
    plans = plan_cancel(submissions, queue, cancels=read_cancelled(state_folder), at_once=at_once)
    if not plans:
        return _cancel_by_files(run, (), at_once=at_once)
    # Noted first, so that none of them comes back.
    note_cancelled(state_folder, [plan.job for plan in plans])
    scancel([plan.job for plan in plans if not plan.can_save])
    # A batch script passes it on to the ranks.
    scancel([plan.job for plan in plans if plan.can_save], ["--batch", "--signal=USR1"])
    text = [plan.line for plan in plans]
    if any(plan.can_save for plan in plans):
        text.append(
            f"it saves at the end of its step and ends. `lmscale runs status {run}` shows how it "
            f"goes; `lmscale runs cancel {run} --now` does not wait for that."
        )
    text += describe_makers(submissions, queue)
    return Cancelled(folder=str(run), jobs=plans, text=tuple(text))


def makers_of(row: Row) -> dict[str, str]:
    """Job → its stage, of the jobs that make the data of the submission ``row``."""
    return {str(stage["job"]): str(stage["kind"]) for stage in row.get("pipeline") or ()}


def describe_makers(submissions: Sequence[Row], queue: Sequence[QueuedJob]) -> list[str]:
    """A line on jobs that still make the run's data: they stay, for other runs may read it."""
    makers = {job: kind for row in submissions for job, kind in makers_of(row).items()}
    live = [job for job in makers if any(q.is_active and is_one_of(q.job, [job]) for q in queue)]
    if not live:
        return []
    named = ", ".join(f"{makers[job]} (job {job})" for job in live)
    return [
        f"its data is still made, which other runs may read: {named}. "
        f"`scancel {' '.join(live)}` ends that too."
    ]


def _state_folder(run: Path) -> Path:
    data = run / DATA_SLURM_FOLDER
    return data if data.is_dir() else run / SLURM_FOLDER


def _cancel_by_files(run: Path, submissions: Sequence[Row], *, at_once: bool) -> Cancelled:
    """By its stop file: a run without Slurm, or whose Slurm cannot be asked from here."""
    if (run / DATA_SLURM_FOLDER).is_dir():
        if not submissions:
            return Cancelled(folder=str(run), text=("nothing runs or waits.",))
        raise _cannot_ask(run, jobs_of(submissions[-1]))
    state = judge_run(read_status(run), None, time.time())
    jobs = () if state.job is None or not submissions else jobs_of(submissions[-1])
    if not state.is_active or (state.job is not None and not jobs):
        return Cancelled(folder=str(run), text=(f"nothing runs or waits: {state.line}.",))
    if state.name in ("queued", "held") or (jobs and at_once):
        raise _cannot_ask(run, jobs)
    if at_once:
        raise ConfigError(
            f"{run}: --now ends Slurm jobs only. Without it the run saves and ends; Ctrl-C twice "
            "in the terminal that started it ends it without saving."
        )
    if jobs:
        note_cancelled(_state_folder(run), jobs)
    had_file = (run / STOP_FILE).exists()
    if not had_file:
        with writing("the stop file", run, ClusterError):
            (run / STOP_FILE).touch()
    again = "it was asked before" if had_file else "asked by the file `stop`"
    text = [f"{state.line}; {again} to save at the end of its step and to end."]
    if jobs:
        text.append(
            f"Slurm cannot be asked from here: job {state.job} is noted as cancelled and will not "
            f"be requeued. If it shows up again, run `scancel {' '.join(jobs)}` on the cluster."
        )
    elif state.name == "silent":
        text.append("if it was killed there is nothing to stop, and its next start goes on.")
    return Cancelled(folder=str(run), stop_file=True, text=tuple(text))


def _cannot_ask(run: Path, jobs: Sequence[str]) -> ClusterError:
    return ClusterError(
        f"{run}: its jobs ({', '.join(jobs)}) can only be cancelled where Slurm's commands are, "
        "and this machine has no squeue. Run this on a login node of the cluster."
    )


def plan_cancel(
    submissions: Sequence[Row],
    queue: Sequence[QueuedJob],
    *,
    cancels: Collection[str] = (),
    at_once: bool = False,
) -> tuple[JobCancel, ...]:
    """What to do with every live job of a run: first with those that wait, as in a chain."""
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
