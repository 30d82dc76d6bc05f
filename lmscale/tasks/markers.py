"""The markers that tasks leave: which tasks have done their units, and which are missing."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmscale.files.atomic import write_json
from lmscale.tasks.array_tasks import ArrayTask
from lmscale.tasks.takeover import fresh_names
from lmscale.tasks.target import Target

MARKER_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a build is, for a number of tasks."""

    target: Target[Any]
    num_tasks: int
    is_built: bool = False
    ended: frozenset[int] = frozenset()
    """Tasks whose markers count."""
    foreign: tuple[str, ...] = ()
    """Markers of other settings or inputs, such as ``3-of-8``, which do not count."""
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


def remove_markers(target: Target[Any]) -> None:
    """Remove the markers of this build, of any number of tasks, and leave those of others."""
    for path, task in _read_markers(target):
        if task is not None:
            path.unlink(missing_ok=True)


def marker_hash(target: Target[Any], num_tasks: int) -> str:
    sizes = [unit.bytes for unit in target.units]
    content = json.dumps([MARKER_VERSION, target.key, num_tasks, sizes])
    return hashlib.sha256(content.encode()).hexdigest()


def marker_path(target: Target[Any], task: ArrayTask) -> Path:
    return target.folder / "tasks" / f"{task.number}-of-{task.count}.json"


def _read_markers(target: Target[Any]) -> Iterator[tuple[Path, ArrayTask | None]]:
    """Each marker, and the task of this build that has left it; None for a foreign one."""
    for name in fresh_names(target.folder / "tasks"):
        path = target.folder / "tasks" / name
        match = re.fullmatch(r"(\d{1,9})-of-(\d{1,9})\.json", name, re.ASCII)
        task = ArrayTask(int(match[1]), int(match[2])) if match else None
        try:
            found = json.loads(path.read_bytes())["hash"]
        except (OSError, ValueError, KeyError, TypeError):
            found = None
        yield path, task if task and found == marker_hash(target, task.count) else None
