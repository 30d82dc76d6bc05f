"""Names in a run's folder that both the launcher and the run itself go by."""

from __future__ import annotations

import re
from pathlib import Path

from lmscale.errors import ClusterError
from lmscale.files.jsonl import Row, sift_rows
from lmscale.files.reading import read_plain
from lmscale.files.run_rows import SUBMISSION

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"  # the folder of its checkpoints, unless checkpoint.folder names another
STEP_FOLDER = re.compile(r"step-(\d{9,})")  # of a checkpoint, wherever it is: `step_name`
ORIGIN_FILE = "origin.json"  # which checkpoint of another run it began with
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
PROFILES = "profiles"  # what `--profile` has seen of some steps: runs/profiles.py
EXPORTS = "exports"  # the folder in which its exports are, or are made for a place elsewhere
EXPORTS_FILE = "exports.jsonl"  # which of its checkpoints were exported while it trained
STUDENTS_FILE = "students.jsonl"  # which distillations learn from which of its checkpoints
REWINDS_FILE = "rewinds.jsonl"  # what the guard undid
CORRUPTIONS_FILE = "corruptions.jsonl"  # where ranks were found to differ
WATCH_FILE = "watch.jsonl"  # what the watchdog saw
ALIVE_SECONDS = 120.0  # a step longer than this shows as silence, unless the heartbeat runs
ATTEMPTS_FILE = "attempts.jsonl"  # what every attempt did with its time
LEDGER_FILE = "ledger.jsonl"  # which samples every step used
IMPORT_FILE = "import.json"  # of a folder that was imported: what its weights were
MADE_FILE = "made.json"  # of a folder of weights that were made of another run's
HELD_OUT_FILE = "held_out.jsonl"  # which shards its held-out sets are
METRICS_FILE = "metrics.jsonl"  # the figures that a run shows
TASKS_FILE = "tasks.jsonl"  # those of tasks that others than its ranks have measured


def step_name(step: int) -> str:
    """What a folder or a file of one step is called."""
    return f"step-{step:09d}"


def read_submissions(state_folder: Path, problems: list[str] | None = None) -> list[Row]:
    """The rows of a state folder, oldest first; ``problems`` hears of what is left out.

    Without ``problems``, a file that cannot be read is a ``ClusterError``.
    """
    sifted = sift_rows(state_folder / SUBMISSIONS_FILE, SUBMISSION)
    if problems is not None:
        problems += [f"{state_folder.name}/{problem}" for problem in sifted.problems]
    elif sifted.failure is not None:
        raise ClusterError(f"{state_folder / SUBMISSIONS_FILE} cannot be read: {sifted.failure}.")
    return [
        {**row, "jobs": [str(job) for job in row["jobs"] or [row["job"]]]} for row in sifted.rows
    ]


def read_cancelled(state_folder: Path) -> frozenset[str]:
    """The jobs that were cancelled, whether or not they have ended."""
    try:
        return frozenset(read_plain(state_folder / CANCEL_FILE).decode(errors="replace").split())
    except OSError:
        return frozenset()
