"""``RUN/exports.jsonl``: which checkpoints were exported while the run trained, and how it ended.

Rank 0 writes a row when an export has ended, well or not, and for those that were left out. What is
due is worked out anew from the commits: a start does what the one before has not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lmscale.config.export import ExportConfig
from lmscale.config.run import RunConfig
from lmscale.files.jsonl import append_durable_row, sift_rows
from lmscale.files.locations import join_location
from lmscale.files.run_files import EXPORTS, EXPORTS_FILE, step_name
from lmscale.files.run_rows import EXPORT
from lmscale.runs.commits import Commit, read_commits

State = Literal["done", "failed", "left out"]
DUE = "export"
"""Why retention keeps a checkpoint that is still to be exported."""
_LAST = "last"  # the reason of a run's last save


def export_place(config: RunConfig, step: int) -> str:
    """Where the export of a step goes: a path, or a URL. Runs that share ``export.folder`` have a
    folder each in it.
    """
    name = step_name(step) + (".gguf" if config.export.format == "gguf" else "")
    if config.export.folder:
        return join_location(config.export.folder, f"{config.run.name}/{name}")
    return str(config.folder / EXPORTS / name)


def plan_old_exports(run_folder: Path, out: str, *, keep: int) -> Iterator[tuple[str, str]]:
    """The places and checkpoints of the exports beside ``out`` that are too many once it is there:
    those that were done before the last ``keep`` - 1. A run that was rewound comes by steps again.
    """
    folder, _, name = out.rpartition("/")
    done: dict[int, str] = {}
    for row in read_exports(run_folder):
        if row["state"] == "done":
            done.pop(row["step"], None)  # the newest is the last
            done[row["step"]] = row["sha256"]
    others = {step_name(step) + Path(name).suffix: sha256 for step, sha256 in done.items()}
    others.pop(name, None)
    for other, sha256 in list(others.items())[: max(0, len(others) - keep + 1)]:
        yield f"{folder}/{other}", sha256


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
    """For retention: the checkpoint that an export reads, and the one that is read next.

    The first that is due is the one that is read, if any is: those before it were left out when it
    was begun. Those in between will be, so an export that takes long keeps no more than two.
    """
    due = [commit.step for commit in find_due(config, run_folder)]
    return {DUE: due if len(due) < 2 else [due[0], due[-1]]}
