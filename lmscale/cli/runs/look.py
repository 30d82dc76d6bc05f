"""Looking at runs: what their folders say and what Slurm says, read for the commands to show."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.cancel import read_cancelled
from launcher.history import Stretch, plan_history
from launcher.slurm import sacct, squeue
from launcher.status import (
    TRAIN,
    FolderSigns,
    RunState,
    SlurmAnswer,
    jobs_of,
    judge_run,
    newest_submission,
)
from lmscale.errors import ClusterError, LmscaleError
from lmscale.files.jsonl import read_tail, tail_rows
from lmscale.files.run_files import SLURM_FOLDER, WATCH_FILE
from lmscale.runs.run_folder import read_status
from lmscale.runs.starts import HANG_ENDED, is_one_of
from lmscale.runs.sweep_folder import job_outputs

if TYPE_CHECKING:
    from lmscale.runs.run_folder import RunStatus

_ERROR = "error:"
_BEGIN = re.compile(r" lmscale: starting \d+ rank")  # the batch script's word before the ranks'
_MAX_ERRORS, _MAX_FILES = 5, 16
_STANDSTILLS = ("hang", HANG_ENDED, "moving")


@dataclass(frozen=True, kw_only=True)
class RunLook:
    """A run at one look."""

    status: RunStatus
    state: RunState


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Runs at one look."""

    runs: Mapping[Path, RunLook | LmscaleError]
    """A folder that cannot be read has its error: it must not hide the others."""
    answer: SlurmAnswer | None
    note: str
    """Why Slurm was not asked, or did not answer; "" when there is nothing to say."""


def look_at(folders: Sequence[Path], *, with_past: bool = False) -> Looks:
    """Read the folders, and ask Slurm about all their jobs at once.

    ``with_past`` asks the accounting also of runs whose state is known without it.
    """
    found = {folder: _read(folder) for folder in folders}
    statuses = [status for status in found.values() if not isinstance(status, LmscaleError)]
    answer, note = _ask_slurm(statuses, with_past=with_past)
    now = time.time()
    runs = {
        folder: status
        if isinstance(status, LmscaleError)
        else RunLook(status=status, state=judge_run(signs_of(status), answer, now))
        for folder, status in found.items()
    }
    return Looks(runs=runs, answer=answer, note=note)


def _read(folder: Path) -> RunStatus | LmscaleError:
    try:
        return read_status(folder)
    except LmscaleError as error:
        return error


def signs_of(status: RunStatus) -> FolderSigns:
    since = status.starts[-1].began_at if status.starts else 0.0
    return FolderSigns(
        submissions=status.submissions,
        starts=status.starts,
        cancels=read_cancelled(status.folder / SLURM_FOLDER),
        is_finished=_is_finished(status),
        last_sign=status.last_sign,
        hang=_read_hang(status.folder, since=since),
    )


def _is_finished(status: RunStatus) -> bool:
    """Whether it has finished, and was not submitted again since."""
    if not status.is_finished:
        return False
    newest = newest_submission(status.submissions)
    return newest is None or newest["time"] <= status.attempts[-1]["time"]


def _read_hang(folder: Path, *, since: float) -> str | None:
    """What the watchdog said of a hang, if the ranks have not moved nor ended since."""
    rows = [row for row in tail_rows(folder / WATCH_FILE) if row["event"] in _STANDSTILLS]
    hangs = rows and rows[-1]["event"] == "hang" and rows[-1]["time"] >= since
    return str(rows[-1]["text"]) if hangs else None


def _ask_slurm(statuses: Sequence[RunStatus], *, with_past: bool) -> tuple[SlurmAnswer | None, str]:
    jobs = {status.folder: _jobs_to_ask(status, with_past) for status in statuses}
    asked = [job for of_run in jobs.values() for job in of_run]
    if not asked:
        return None, ""
    if shutil.which("squeue") is None:
        return None, "Slurm was not asked, for there is no squeue on this machine."
    try:
        queue = squeue(asked)
    except ClusterError as error:
        return None, f"Slurm was not asked: {error}"
    active = [job.job for job in queue if job.is_active]
    gone = [job for job in asked if with_past or not any(is_one_of(a, [job]) for a in active)]
    try:
        return SlurmAnswer(queue=queue, accounts=sacct(gone)), ""
    except ClusterError as error:
        return SlurmAnswer(queue=queue), f"The accounting was not asked: {error}"


def _jobs_to_ask(status: RunStatus, with_past: bool) -> tuple[str, ...]:
    if with_past:
        return tuple(dict.fromkeys(job for row in status.submissions for job in jobs_of(row)))
    newest = newest_submission(status.submissions)
    return () if newest is None or _is_finished(status) else jobs_of(newest)


def history_of(look: RunLook, answer: SlurmAnswer | None) -> tuple[Stretch, ...]:
    status = look.status
    may_go_on = look.state.is_active and look.state.name not in ("queued", "held")
    return plan_history(
        status.starts,
        accounts=(answer.accounts or ()) if answer is not None else (),
        submissions=status.submissions,
        active_step=status.step if may_go_on else None,
    )


def other_jobs(look: RunLook, answer: SlurmAnswer | None) -> list[dict[str, str]]:
    """The run's jobs that are not its training and not over: an evaluation, a look at the nodes."""
    if answer is None:
        return []
    return [
        {
            "kind": str(row["kind"]),
            "job": job.job,
            "state": job.state,
            "reason": job.reason,
            "nodes": job.nodes,
        }
        for row in look.status.submissions
        for job in answer.queue
        if row["kind"] != TRAIN and job.is_active and is_one_of(job.job, jobs_of(row))
    ]


def errors_of(look: RunLook) -> list[str]:
    """What the last attempt of a run that failed said was wrong; nothing of any other run."""
    if look.state.name != "failed":
        return []
    folder = look.status.folder
    output = job_outputs(folder)[0] / f"job-{look.state.job}.out"
    lines = _tail_lines(output)
    # The output of a job goes on over its requeues.
    begins = [number for number, line in enumerate(lines) if _BEGIN.search(line)]
    found = [line for line in lines[begins[-1] if begins else 0 :] if line.startswith(_ERROR)]
    if not found:
        began_at = max((start.began_at for start in look.status.starts), default=0.0)
        files = [f for f in (folder / "logs").glob("rank-*.out") if f.stat().st_mtime >= began_at]
        files = sorted(files)[:_MAX_FILES]
        found = [line for file in files for line in _tail_lines(file) if line.startswith(_ERROR)]
    return list(dict.fromkeys(found))[:_MAX_ERRORS]


def _tail_lines(path: Path) -> list[str]:
    try:
        return read_tail(path).decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def state_json(state: RunState) -> dict[str, Any]:
    return {
        "state": state.name,
        "detail": state.detail,
        "source": state.source,
        "job": state.job,
        "nodes": state.nodes,
        "reason": state.reason,
        "starts_at": state.starts_at,
        "left_seconds": state.left_seconds,
    }
