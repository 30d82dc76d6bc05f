"""The end of a build: put the units' files together, name them, and swap the folder in.

May be killed at any point, and may be done over by another process, at the same time too: the
same bytes go to the same places.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from lmscale.errors import DataError
from lmscale.files.atomic import fsync_folder, have_sizes, replace_folder, write_json
from lmscale.tasks.array_tasks import ArrayTask
from lmscale.tasks.markers import (
    Progress,
    marker_path,
    read_progress,
    remove_markers,
    write_marker,
)
from lmscale.tasks.takeover import Turn, fresh_names, holder_of, take_turn
from lmscale.tasks.target import MANIFEST, ManifestT, Target, UnitsMissing

NOTE = "moves.json"


@dataclass(frozen=True, kw_only=True)
class Built(Generic[ManifestT]):
    """A finished folder, and whether this call finished it or found it finished."""

    folder: Path
    manifest: ManifestT
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A build that waits for other tasks, or that another process finishes: the ``holder``."""

    progress: Progress
    holder: str = ""


def conclude(
    target: Target[ManifestT],
    task: ArrayTask,
    *,
    seconds: float,
    processes: int,
    force: bool = False,
) -> Built[ManifestT] | Unfinished:
    """Leave the task's marker, and if no task is missing, finish the build.

    One process at a time finishes; a process that is taken for dead although it lives does the
    same things over again. ``force`` finishes also what is built already.
    """

    def is_built() -> bool:
        return not force and target.is_built()

    if target.units_of(task):
        try:
            write_marker(target, task, seconds=seconds)
        except FileNotFoundError:
            if not is_built():  # else a second copy of this task has removed the folder
                raise
    progress = read_progress(target, task.count)
    is_new = False
    if not progress.expected <= progress.ended:
        if not is_built():
            return Unfinished(progress=progress)
    else:
        with take_turn(target.folder / "finisher") as turn:
            if not is_built():  # since this task looked
                if turn is None:
                    holder = holder_of(target.folder / "finisher")
                    return Unfinished(progress=progress, holder=holder)
                _finish(target, task.count, processes, turn)
                is_new = True
    if is_new:
        shutil.rmtree(target.folder, ignore_errors=True)  # also what other settings left there
    else:
        tidy(target)
    return Built(folder=target.final, manifest=target.load(target.final), is_new=is_new)


def is_assembled(target: Target[Any]) -> bool:
    """Whether files have begun to leave the units' folders, which are then not whole."""
    return (target.work / NOTE).exists() or (target.work / MANIFEST).exists()


def _finish(target: Target[Any], num_tasks: int, processes: int, turn: Turn) -> None:
    """Turn the units' results into ``target.final``.

    ``Turn.check`` comes before what cannot be undone. May be called again after any kill.
    """
    work, final = target.work, target.final
    work.mkdir(exist_ok=True)
    if not (work / MANIFEST).exists():
        try:
            _move(target, processes, turn)
        except UnitsMissing as missing:
            raise _lost(target, num_tasks, missing.units) from None
    target.load(work)
    for path in work.iterdir():  # notes, plans, and what a kill has left half-written
        if path.name != MANIFEST and not any(map(path.match, target.contents)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    if final.exists():
        target.load(final)  # only what lmscale wrote is replaced
    turn.check()
    replace_folder(work, final)


def _move(target: Target[Any], processes: int, turn: Turn) -> None:
    """Rename every file to its place. A rename that was done before is passed over."""
    work = target.work
    if not (work / NOTE).exists():
        fresh_names(target.parts)  # what other nodes finished a moment ago
        manifest, moves = target.assemble(processes)
        turn.check()
        write_json(work / NOTE, {"manifest": manifest, "moves": moves})
    note = json.loads((work / NOTE).read_bytes())
    turn.check()
    for source, name, _ in note["moves"]:
        if (target.folder / source).exists():
            os.replace(target.folder / source, work / name)
    for folder in sorted({(work / name).parent for _, name, _ in note["moves"]}):
        fsync_folder(folder)
    if not have_sizes((work / name, size) for _, name, size in note["moves"]):
        (work / NOTE).unlink(missing_ok=True)
        target.assemble(processes)  # raises for units that have given files away
        raise UnitsMissing(range(len(target.units)))
    write_json(work / MANIFEST, note["manifest"])


def _lost(target: Target[Any], num_tasks: int, units: Sequence[int]) -> DataError:
    """Take the markers of the tasks away that must make ``units`` again."""
    owners = target.owners(num_tasks)
    tasks = sorted({owners[unit] for unit in units})
    for number in tasks:
        marker_path(target, ArrayTask(number, num_tasks)).unlink(missing_ok=True)
    again = "the command" if num_tasks == 1 else f"task {', '.join(map(str, tasks))} of {num_tasks}"
    return DataError(
        f"{target.folder}: {len(units)} of {len(owners)} pieces of work are not there or not "
        f"whole, though the task that made them had ended. Run {again} again."
    )


def tidy(target: Target[Any]) -> None:
    """Remove what is left of a finished build: a kill came between, or a task came late.

    Builds of other settings stay.
    """
    if not target.folder.exists():
        return
    with take_turn(target.folder / "finisher") as turn:
        if turn is None:
            return  # another is about to remove it, or finishes what other settings made
        remove_markers(target)
        for folder in (target.work, target.folder / "finisher", *target.leftovers):
            shutil.rmtree(folder, ignore_errors=True)
    discard_empty(target.folder)


def discard_empty(folder: Path) -> None:
    """Remove every empty folder below ``folder``, and ``folder`` itself if nothing is left."""
    for path, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(path)
        except OSError:
            pass  # not empty, or gone
