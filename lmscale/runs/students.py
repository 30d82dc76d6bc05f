"""``RUN/students.jsonl``: the distillations that learn from a checkpoint of this run.

A student goes on with no other teacher than it began with, so that checkpoint stays
(checkpoint/retention.py) until a person takes the row out. The student's rank 0 writes the row.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from lmscale.errors import LmscaleError
from lmscale.files.jsonl import append_durable_row, sift_rows
from lmscale.files.run_files import STUDENTS_FILE
from lmscale.files.run_rows import STUDENT

logger = logging.getLogger(__name__)
NAME_IT = "Name that one, or give the new run a folder of its own (run.folder)."


def read_students(run_folder: Path) -> list[dict[str, Any]]:
    """The rows: ``step`` of the checkpoint, and ``student``, the absolute folder of a run."""
    return sift_rows(run_folder / STUDENTS_FILE, STUDENT).rows


def read_teacher_steps(run_folder: Path, student: Path) -> list[int]:
    """Of the checkpoints that the run in ``student`` has begun with, the last one at the end."""
    own = str(student.absolute())
    return [row["step"] for row in read_students(run_folder) if row["student"] == own]


def record_student(run_folder: Path, *, step: int, student: Path) -> None:
    """Say, once, that ``student`` learns from a checkpoint; where that cannot be, warn."""
    row = {"step": step, "student": str(student.absolute())}
    if any(row.items() <= other.items() for other in read_students(run_folder)):
        return
    try:
        append_durable_row(run_folder / STUDENTS_FILE, {**row, "time": time.time()})
    except (OSError, LmscaleError) as error:
        logger.warning(
            "%s cannot be told that its checkpoint of step %d is a teacher (%s): once that run "
            "removes it, this one cannot go on. Keep a copy of it",
            run_folder,
            step,
            error,
        )
