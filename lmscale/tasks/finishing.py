"""The end of a task, and of a build: the task leaves a marker that it has done its units, and who
finds all markers puts the units' files together, names them, and swaps the folder in.

That may be killed at any point, and may be done over by another process, at the same time too: the
same bytes go to the same places.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

from lmscale.errors import DataError
from lmscale.files import progress as telling
from lmscale.files.atomic import (
    fsync_folder,
    have_sizes,
    replace_folder,
    write_bytes,
    write_json,
)
from lmscale.files.jsonl import read_object
from lmscale.files.reading import read_plain, reading, seal, unseal
from lmscale.files.strangers import check_places
from lmscale.tasks.takeover import Turn, fresh_names, holder_of, take_turn
from lmscale.tasks.target import MANIFEST, ArrayTask, ManifestT, Target, UnitsMissing

MARKER_VERSION = 1
NOTE = "moves.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a build is, for a number of tasks."""

    target: Target[Any]
    num_tasks: int
    is_built: bool = False
    ended: frozenset[int] = frozenset()  # tasks whose markers count
    foreign: tuple[str, ...] = ()  # 3-of-8, of other settings or inputs, which do not count
    other_counts: tuple[int, ...] = ()
    """Other numbers of tasks with markers of the same build. Those markers do not count either,
    but the units that these tasks finished need not be done again."""

    @cached_property
    def expected(self) -> frozenset[int]:
        """Tasks that have units in this build; with few units some tasks have none."""
        return frozenset(self.target.owners(self.num_tasks))

    @property
    def missing(self) -> tuple[int, ...]:
        """Tasks to run. Where only the end of the build is missing, any task finishes it."""
        if self.is_built:
            return ()
        return tuple(sorted(self.expected - self.ended)) or (min(self.expected),)


def read_progress(target: Target[Any], num_tasks: int) -> Progress:
    """The progress of an unfinished build by its markers."""
    markers = list(_read_markers(target))
    tasks = [task for _, task in markers if task is not None]
    return Progress(
        target=target,
        num_tasks=num_tasks,
        ended=frozenset(task.number for task in tasks if task.count == num_tasks),
        foreign=tuple(path.name.removesuffix(".json") for path, task in markers if task is None),
        other_counts=tuple(sorted({task.count for task in tasks} - {num_tasks})),
    )


def write_marker(target: Target[Any], task: ArrayTask, *, seconds: float) -> None:
    """Say on disk that the task has done its units, after so many ``seconds``."""
    path = marker_path(target, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    marker = {
        "version": MARKER_VERSION,
        "hash": marker_hash(target, task.count),
        "key": target.key,
        "units": len(target.units_of(task)),
        "seconds": round(seconds, 3),
        "host": socket.gethostname(),
        "time": round(time.time(), 3),
    }
    write_json(path, marker)


def marker_hash(target: Target[Any], num_tasks: int) -> str:
    content = json.dumps([MARKER_VERSION, target.key, num_tasks, target.sizes])
    return hashlib.sha256(content.encode()).hexdigest()


def marker_path(target: Target[Any], task: ArrayTask) -> Path:
    return target.folder / "tasks" / f"{task.number}-of-{task.count}.json"


def _read_markers(target: Target[Any]) -> Iterator[tuple[Path, ArrayTask | None]]:
    """Each marker, and the task of this build that has left it; None for a foreign one."""
    for name in fresh_names(target.folder / "tasks"):
        path = target.folder / "tasks" / name
        match = re.fullmatch(r"(\d{1,9})-of-(\d{1,9})\.json", name, re.ASCII)
        task = ArrayTask(int(match[1]), int(match[2])) if match else None
        recorded_hash = read_object(path).get("hash")
        yield path, task if task and recorded_hash == marker_hash(target, task.count) else None


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
                with telling.progress(f"putting {target.what} together"):
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
        write_bytes(work / NOTE, seal({"manifest": manifest, "moves": moves}))
    with reading(work / NOTE, "Delete it, and run the same command again."):
        note = unseal(read_plain(work / NOTE))
        check_places(place for move in note["moves"] for place in move[:2])
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
        for path, task in _read_markers(target):
            if task is not None:
                path.unlink(missing_ok=True)
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
