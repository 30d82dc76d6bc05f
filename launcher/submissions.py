"""What was submitted for a folder: one row a submission, and a lock against two at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lmscale.errors import ClusterError
from lmscale.files.locks import lock
from lmscale.files.run_files import SUBMISSIONS_FILE

LOCK_SECONDS = 60.0  # a submission takes a second or two


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A row of ``submissions.jsonl``."""

    time: float
    submission: str
    job: str
    jobs: tuple[str, ...]
    """All of a chain; otherwise the one."""
    kind: str
    cluster: str
    nodes: tuple[int, int]
    tasks: int | None
    limit_seconds: float | None
    """A job's time limit."""
    signal_seconds: float
    """How long before its limit a job is asked to stop."""
    folder: str
    """The frozen copy."""
    command: tuple[str, ...]
    user: str
    host: str


def append_submission(folder: Path, submission: Submission) -> None:
    """Add a row, on disk before this returns: Slurm has the job already."""
    line = json.dumps(asdict(submission), ensure_ascii=False) + "\n"
    path = folder / SUBMISSIONS_FILE
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ClusterError(
            f"Job {submission.job} was submitted, but {path} cannot be written ({error}), so "
            f"`lmscale runs` will not know of it. Cancel it (scancel {submission.job}) and make "
            "room, or leave it."
        ) from None


@contextmanager
def submitting(folder: Path, *, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the right to submit for this folder; the file lock ends with the process.

    Where the file system has no locks, the look at Slurm's queue must do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / ".submitting", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ClusterError(
            f"{folder} cannot be written: {error.strerror or error}. The job keeps its state "
            "there; set run.folder to another place."
        ) from None
    try:
        try:
            lock(file, seconds)
        except BlockingIOError:
            raise ClusterError(
                f"{folder}: another `lmscale launch slurm` has been submitting for this folder for "
                f"{seconds:.0f} s. Wait until it ends."
            ) from None
        yield
    finally:
        os.close(file)
