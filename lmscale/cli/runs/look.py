"""Looking at runs: what their folders say and what Slurm says, read for the commands to show."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cancel import read_cancelled
from launcher.slurm import sacct, squeue
from launcher.status import (
    FolderSigns,
    RunState,
    SlurmAnswer,
    jobs_of,
    judge_run,
    newest_submission,
)
from lmscale.errors import ClusterError, LmscaleError
from lmscale.files.jsonl import tail_rows
from lmscale.files.run_files import SLURM_FOLDER, WATCH_FILE
from lmscale.runs.run_folder import read_status
from lmscale.runs.starts import HANG_ENDED, is_one_of

if TYPE_CHECKING:
    from lmscale.runs.run_folder import RunStatus

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
    statuses = {folder: _read(folder) for folder in folders}
    readable = [status for status in statuses.values() if not isinstance(status, LmscaleError)]
    answer, note = _ask_slurm(readable, with_past=with_past)
    now = time.time()
    runs = {
        folder: status
        if isinstance(status, LmscaleError)
        else RunLook(status=status, state=judge_run(signs_of(status), answer, now))
        for folder, status in statuses.items()
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
    newest = newest_submission(status.submissions)
    is_last = newest is None or not status.attempts or newest["time"] <= status.attempts[-1]["time"]
    return status.is_finished and is_last


def _read_hang(folder: Path, *, since: float) -> str | None:
    """What the watchdog said of a hang, if the ranks have not moved nor ended since."""
    rows = [row for row in tail_rows(folder / WATCH_FILE) if row["event"] in _STANDSTILLS]
    hangs = rows and rows[-1]["event"] == "hang" and rows[-1]["time"] >= since
    return str(rows[-1]["text"]) if hangs else None


def _ask_slurm(statuses: Sequence[RunStatus], *, with_past: bool) -> tuple[SlurmAnswer | None, str]:
    asked = [job for status in statuses for job in _jobs_to_ask(status, with_past)]
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
