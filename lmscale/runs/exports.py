"""``RUN/exports.jsonl``: which checkpoints were exported while the run trained, and how it ended.

Rank 0 writes a row when an export has ended, well or not, and for those that were left out. What is
due is worked out anew from the commits: a start does what the one before has not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lmscale.config.export import ExportConfig
from lmscale.config.run import RunConfig
from lmscale.files.jsonl import append_durable_row, sift_rows
from lmscale.files.run_files import EXPORTS_FILE
from lmscale.files.run_rows import EXPORT
from lmscale.runs.commits import Commit, read_commits

State = Literal["done", "failed", "left out"]
DUE = "export"
"""Why retention keeps a checkpoint that is still to be exported."""
_LAST = "last"  # the reason of a run's last save


def export_path(config: RunConfig, step: int) -> Path:
    """Where the export of a step is written."""
    ending = ".gguf" if config.export.format == "gguf" else ""
    return Path(config.export.folder or config.folder / "exports") / f"step-{step:09d}{ending}"


def read_exports(run_folder: Path) -> list[dict[str, Any]]:
    """The rows: ``step``, ``sha256`` of the checkpoint's manifest, ``state``."""
    return sift_rows(run_folder / EXPORTS_FILE, EXPORT).rows


def record_export(run_folder: Path, commit: Commit, state: State) -> None:
    row = {"step": commit.step, "sha256": commit.sha256, "state": state, "time": time.time()}
    append_durable_row(run_folder / EXPORTS_FILE, row)


def find_due(config: ExportConfig, run_folder: Path) -> list[Commit]:
    """The checkpoints that are to be exported and were not, by their steps."""
    if not config.every_steps:
        return []
    ended = {(row["step"], row["sha256"]) for row in read_exports(run_folder)}
    return [
        commit
        for commit in read_commits(run_folder)
        if (commit.step % config.every_steps == 0 or commit.reason == _LAST)
        and (commit.step, commit.sha256) not in ended
    ]


def spare_due(config: ExportConfig, run_folder: Path) -> Mapping[str, Sequence[int]]:
    """For retention: the checkpoints that an export reads, or is still to read."""
    return {DUE: [commit.step for commit in find_due(config, run_folder)]}
