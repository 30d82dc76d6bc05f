"""The submissions of a folder: one row each, and a lock against two at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lmscale.errors import ClusterError, DataError
from lmscale.files.jsonl import append_durable_row
from lmscale.files.locks import locked_file
from lmscale.files.run_files import SUBMISSIONS_FILE

LOCK_SECONDS = 60.0  # a submission takes a second or two


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A row of ``submissions.jsonl``."""

    time: float
    submission: str
    job: str
    jobs: tuple[str, ...]
    """Numbers of all jobs of a chain; otherwise the one job's."""
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
    """Add a row that is on disk before this returns: Slurm has the job already."""
    path = folder / SUBMISSIONS_FILE
    try:
        append_durable_row(path, asdict(submission))
    except (OSError, DataError) as error:
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
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_file(folder / ".submitting", seconds))
        except BlockingIOError:
            raise ClusterError(
                f"{folder}: another `lmscale launch slurm` has been submitting for this folder for "
                f"{seconds:.0f} s. Wait until it ends."
            ) from None
        except OSError as error:
            raise ClusterError(
                f"{folder} cannot be written: {error.strerror or error}. The job keeps its state "
                "there; set run.folder to another place."
            ) from None
        yield
