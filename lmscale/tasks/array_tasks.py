"""How the tasks of an array share the build of one folder: the units of each task, and markers.

The work is cut into units, which do not depend on the number of tasks; a unit that is finished
counts for good, whichever task did it. A task that has done its units leaves a marker; the task
that finds the markers of all tasks finishes the build, under ``lmscale.tasks.takeover``'s lock.

    FOLDER/.NAME.building/tasks/3-of-8.json   markers
    FOLDER/.NAME.building/finisher/           who finishes
    FOLDER/.NAME.building/<key>/              becomes FOLDER/NAME by one rename
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmscale.errors import ConfigError
from lmscale.files.atomic import write_json
from lmscale.tasks.takeover import fresh_names

MARKER_VERSION = 1


@dataclass(frozen=True)
class ArrayTask:
    """Task ``number``, from 0 on, of ``count``."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"task {self.number} of {self.count}"


ALONE = ArrayTask(0, 1)


def parse_task(text: str) -> ArrayTask:
    """``3/8`` is the fourth of eight tasks. Raises ``ConfigError``."""
    match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    if match and int(match[1]) < int(match[2]):
        return ArrayTask(int(match[1]), int(match[2]))
    raise ConfigError(f"--task {text}: give I/N with I from 0 to N - 1, for example 0/8 or 7/8.")


def deal(sizes: Sequence[int], num_tasks: int, *, first: int = 0) -> tuple[int, ...]:
    """The task of each unit: runs of about equal size, the first of them to task ``first``.

    No run is longer than its even share and one unit.
    """
    total = sum(size + 1 for size in sizes)  # + 1: units of no size are work, too
    tasks = []
    start = 0
    for size in sizes:
        middle = 2 * start + size + 1  # in halves, so that it stays whole
        tasks.append((middle * num_tasks // (2 * total) + first) % num_tasks)
        start += size + 1
    return tuple(tasks)


@dataclass(frozen=True, kw_only=True)
class SharedBuild:
    """A folder that any number of tasks build together, on nodes that see the same file system."""

    final: Path
    key: str
    """Hash of everything that ``final`` is made from: configuration, inputs, format's version."""
    sizes: tuple[int, ...]
    """Size of each unit of work."""
    rank: int = 0
    """Number among the builds of one command, so that small builds fall to different tasks."""

    @property
    def folder(self) -> Path:
        return self.final.with_name(f".{self.final.name}.building")

    @property
    def work(self) -> Path:
        return self.folder / self.key[:16]

    @property
    def markers(self) -> Path:
        return self.folder / "tasks"

    def owners(self, num_tasks: int) -> tuple[int, ...]:
        """The task of each unit."""
        return deal(self.sizes, num_tasks, first=self.rank)

    def units_of(self, task: ArrayTask) -> tuple[int, ...]:
        owners = self.owners(task.count)
        return tuple(unit for unit, owner in enumerate(owners) if owner == task.number)

    def marker_hash(self, num_tasks: int) -> str:
        content = json.dumps([MARKER_VERSION, self.key, num_tasks, self.sizes])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a build is, for a number of tasks."""

    build: SharedBuild
    num_tasks: int
    is_built: bool
    ended: frozenset[int]
    """Tasks whose markers count."""
    foreign: tuple[str, ...]
    """Markers of other settings or inputs, such as ``3-of-8``, which do not count."""
    other_counts: tuple[int, ...]
    """Other numbers of tasks with markers of the same build. Those markers do not count either,
    but the units that these tasks finished need not be done again."""

    @cached_property
    def expected(self) -> frozenset[int]:
        """Tasks that have units in this build; with few units some tasks have none."""
        return frozenset(self.build.owners(self.num_tasks))

    @property
    def missing(self) -> tuple[int, ...]:
        """Tasks to run. Where only the end of the build is missing, any task finishes it."""
        if self.is_built:
            return ()
        return tuple(sorted(self.expected - self.ended)) or (min(self.expected),)


def read_progress(build: SharedBuild, num_tasks: int, *, is_built: bool) -> Progress:
    """The progress by the markers. A marker of another hash is among the foreign ones."""
    ended, foreign, other_counts = set(), [], set()
    for name in () if is_built else fresh_names(build.markers):
        number, count = _parse_marker(name)
        if count == 0 or _hash_in(build.markers / name) != build.marker_hash(count):
            foreign.append(name.removesuffix(".json"))
        elif count == num_tasks:
            ended.add(number)
        else:
            other_counts.add(count)
    return Progress(
        build=build,
        num_tasks=num_tasks,
        is_built=is_built,
        ended=frozenset(ended),
        foreign=tuple(foreign),
        other_counts=tuple(sorted(other_counts)),
    )


def _marker(task: ArrayTask) -> str:
    return f"{task.number}-of-{task.count}.json"


def _parse_marker(name: str) -> tuple[int, int]:
    """A marker's task and number of tasks; 0 of 0 for the name of another file."""
    match = re.fullmatch(r"(\d{1,9})-of-(\d{1,9})\.json", name, re.ASCII)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _hash_in(path: Path) -> str | None:
    try:
        return json.loads(path.read_bytes())["hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_marker(build: SharedBuild, task: ArrayTask, report: dict[str, Any]) -> None:
    """Say on disk that the task has done its units. ``report`` is for people."""
    marker = {
        "version": MARKER_VERSION,
        "hash": build.marker_hash(task.count),
        "key": build.key,
        "units": len(build.units_of(task)),
        **report,
        "host": socket.gethostname(),
        "time": round(time.time(), 3),
    }
    build.markers.mkdir(parents=True, exist_ok=True)
    write_json(build.markers / _marker(task), marker)


def remove_marker(build: SharedBuild, task: ArrayTask) -> None:
    (build.markers / _marker(task)).unlink(missing_ok=True)


def remove_markers(build: SharedBuild) -> None:
    """Remove the markers of this build, of any number of tasks, and leave those of others."""
    for name in fresh_names(build.markers):
        _, count = _parse_marker(name)
        if _hash_in(build.markers / name) == build.marker_hash(count):
            (build.markers / name).unlink(missing_ok=True)
