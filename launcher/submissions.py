"""What was submitted for a folder: one row a submission, and a lock against two at once."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmscale.errors import ClusterError

SUBMISSIONS_FILE = "submissions.jsonl"
LOCK_SECONDS = 60.0  # a submission takes a second or two
_POLL_SECONDS = 0.1


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
    folder: str
    """The frozen copy."""
    command: tuple[str, ...]
    user: str
    host: str


def read_submissions(folder: Path) -> list[dict[str, Any]]:
    """The rows of a state folder, oldest first; a line torn by a full disk is passed over."""
    try:
        lines = (folder / SUBMISSIONS_FILE).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ClusterError(f"{folder / SUBMISSIONS_FILE} cannot be read: {error}.") from None
    rows = []
    for line in lines.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, Mapping) and {"job", "jobs", "kind"} <= row.keys():
            rows.append(dict(row))
    return rows


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
        _lock(file, folder, seconds)
        yield
    finally:
        os.close(file)


def _lock(file: int, folder: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{folder}: another `lmscale launch slurm` has been submitting for this folder "
                    f"for {seconds:.0f} s. Wait until it ends."
                ) from None
            time.sleep(_POLL_SECONDS)
        except OSError:  # a file system without locks, such as Lustre mounted without flock
            return
