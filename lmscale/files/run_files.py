"""Names in a run's folder that both the launcher and the run itself go by."""

from __future__ import annotations

import sys
from pathlib import Path

from lmscale.errors import ClusterError
from lmscale.files.jsonl import Row, tail_rows

CONFIG_FILE = "config.yaml"
SLURM_FOLDER = "slurm"
DATA_SLURM_FOLDER = ".slurm"  # of a corpus or of shards, in whose folder names have a meaning
SUBMISSIONS_FILE = "submissions.jsonl"  # in either of these
CANCEL_FILE = "cancel"  # beside it: the jobs that were asked to end for good
SWEEP_FILE = "sweep.json"  # in the root of a sweep
STOP_FILE = "stop"  # asks a run to save and to end
SAVE_FILE = "save"  # asks a run to save and to go on
FAULTS_FILE = "faults.jsonl"  # what was made to fail on purpose
COMMITS_FILE = "commits.jsonl"  # which checkpoints there are
RESUMES_FILE = "resumes.jsonl"  # what every start took up, and what it passed over
REWINDS_FILE = "rewinds.jsonl"  # what the guard undid
CORRUPTIONS_FILE = "corruptions.jsonl"  # where ranks were found to differ
WATCH_FILE = "watch.jsonl"  # what the watchdog saw
ALIVE_SECONDS = 120.0  # a step longer than this shows as silence, unless the heartbeat runs
_EVERY_SUBMISSION = {"time", "submission", "job", "jobs", "kind"}


def read_submissions(state_folder: Path) -> list[Row]:
    """The rows of a state folder, oldest first; a line torn by a full disk is passed over."""
    path = state_folder / SUBMISSIONS_FILE
    try:
        rows = tail_rows(path, max_bytes=sys.maxsize)
    except NotADirectoryError:
        return []
    except OSError as error:
        raise ClusterError(f"{path} cannot be read: {error}.") from None
    return [
        {**row, "jobs": [str(job) for job in row["jobs"] or [row["job"]]]}
        for row in rows
        if row.keys() >= _EVERY_SUBMISSION
    ]


def read_cancelled(state_folder: Path) -> frozenset[str]:
    """The jobs that were cancelled, whether or not they have ended."""
    try:
        return frozenset((state_folder / CANCEL_FILE).read_text(encoding="utf-8").split())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
