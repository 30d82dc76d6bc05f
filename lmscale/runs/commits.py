"""``RUN/commits.jsonl``: which checkpoints a run has, wherever they are.

Rank 0 appends a row right after each commit and right before each removal
(``checkpoint/commit_log.py``); the audit, the launcher, the batch script and ``lmscale runs`` read
the file. Which checkpoint a run resumes from is decided by the checkpoints themselves: every start
compares the file with them, and adds the rows that a kill or a full disk has kept out of it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmscale.files.jsonl import append_durable_row, tail_rows
from lmscale.files.run_files import COMMITS_FILE
from lmscale.files.strangers import MAX_COUNT, is_count

_Count = Annotated[int, Field(ge=0, lt=MAX_COUNT)]


class Commit(BaseModel):
    """A row: a checkpoint that was committed."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    step: _Count  # steps done
    n: _Count  # samples used
    folder: str = Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")  # below the run's, or a path or URL
    sha256: str  # hash of the manifest, which differs between two saves of one step
    bytes: _Count  # of all files but the manifest
    reason: str  # as in the manifest
    time: float  # Unix time of the commit
    attempt: int | None = None

    @property
    def name(self) -> str:
        return self.folder.rpartition("/")[2]

    @property
    def key(self) -> tuple[str, str]:
        """What tells two checkpoints of one step apart."""
        return self.folder, self.sha256

    @property
    def is_elsewhere(self) -> bool:
        return "://" in self.folder or os.path.isabs(self.folder)


def read_commits(run_folder: str | Path) -> tuple[Commit, ...]:
    """The checkpoints not removed, by their steps; a line that is no row is passed over."""
    commits: dict[int, Commit] = {}
    for row in tail_rows(Path(run_folder) / COMMITS_FILE, max_bytes=sys.maxsize):
        if row.get("event") == "commit":
            with suppress(ValidationError):
                commit = Commit.model_validate(row)
                commits[commit.step] = commit
        elif row.get("event") == "remove" and is_count(row.get("step")):
            commits.pop(row["step"], None)
    return tuple(commits[step] for step in sorted(commits))


def append_commit(run_folder: Path, commit: Commit) -> None:
    """Add the row of a commit, durable once this returns."""
    append_durable_row(run_folder / COMMITS_FILE, {"event": "commit", **commit.model_dump()})


def append_removals(run_folder: Path, steps: Iterable[int]) -> None:
    """Add the rows of checkpoints that are about to be removed."""
    for step in steps:
        row = {"event": "remove", "step": step, "time": time.time()}
        append_durable_row(run_folder / COMMITS_FILE, row)
