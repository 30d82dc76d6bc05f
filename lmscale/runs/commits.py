"""``RUN/commits.jsonl``: which checkpoints a run has, wherever they are.

Rank 0 appends a row right after each commit and right before each removal
(``checkpoint/commit_log.py``); the audit, the launcher, the batch script and ``lmscale runs`` read
the file. Which checkpoint a run resumes from is decided by the checkpoints themselves: every start
compares the file with them, and adds the rows that a kill or a full disk has kept out of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from lmscale.files.jsonl import append_durable_row, sift_rows
from lmscale.files.run_files import COMMITS_FILE
from lmscale.files.strangers import Count, Instant


class Commit(BaseModel):
    """A row: a checkpoint that was committed."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    event: Literal["commit"] = "commit"
    step: Count  # steps done
    n: Count  # samples used
    folder: str = Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")  # below the run's, or a path or URL
    sha256: str  # hash of the manifest, which differs between two saves of one step
    bytes: Count  # of all files but the manifest
    reason: str  # as in the manifest
    time: Instant  # Unix time of the commit
    attempt: Count | None = None

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


class _Removal(BaseModel):
    event: Literal["remove"]
    step: Count


_ROW = TypeAdapter[Commit | _Removal](Annotated[Commit | _Removal, Field(discriminator="event")])


def read_commits(run_folder: str | Path, problems: list[str] | None = None) -> tuple[Commit, ...]:
    """The checkpoints not removed, by their steps; ``problems`` hears of lines that are no rows."""
    commits: dict[int, Commit] = {}
    sifted = sift_rows(Path(run_folder) / COMMITS_FILE, _ROW)
    if problems is not None:
        problems += sifted.problems
    for row in sifted.values:
        if isinstance(row, Commit):
            commits[row.step] = row
        else:
            commits.pop(row.step, None)
    return tuple(commits[step] for step in sorted(commits))


def append_commit(run_folder: Path, commit: Commit) -> None:
    """Add the row of a commit, durable once this returns."""
    append_durable_row(run_folder / COMMITS_FILE, commit.model_dump())


def append_removals(run_folder: Path, steps: Iterable[int]) -> None:
    """Add the rows of checkpoints that are about to be removed."""
    for step in steps:
        row = {"event": "remove", "step": step, "time": time.time()}
        append_durable_row(run_folder / COMMITS_FILE, row)
