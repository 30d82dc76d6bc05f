"""What the tasks of an array share when they build one folder: who does what, and what is done.

The work is cut into units, which do not depend on the number of tasks; a unit that is finished
counts for good, whoever did it. A task that has done its units leaves a marker; whoever finds the
markers of all tasks finishes the build, while holding ``lmscale.tasks.takeover``'s lock.

    FOLDER/.NAME.building/tasks/3-of-8.json   markers
    FOLDER/.NAME.building/finisher/           who finishes
    FOLDER/.NAME.building/<key>/              becomes FOLDER/NAME by one rename
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lmscale.errors import ConfigError, DataError
from lmscale.files.atomic import write_json
from lmscale.tasks.takeover import Turn, fresh_names, holder_of, take_turn

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
    """One folder that any number of tasks builds together, on nodes that see it."""

    final: Path
    key: str
    """Hash of all that ``final`` is made from: configuration, inputs, version of the format."""
    sizes: tuple[int, ...]
    """Size of each unit of work."""
    rank: int = 0
    """Number among the builds that go together, so that not all small ones fall to one task."""

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
    done: frozenset[int]
    foreign: tuple[str, ...]
    """Markers of other settings or inputs, such as ``3-of-8``. They do not count."""
    other_counts: tuple[int, ...]
    """Numbers of tasks that have left markers of the same build. They do not count either, but
    what those tasks finished need not be done again."""

    @cached_property
    def expected(self) -> frozenset[int]:
        """Tasks that have units in this build: with few units, not all of them."""
        return frozenset(self.build.owners(self.num_tasks))

    @property
    def missing(self) -> tuple[int, ...]:
        """Tasks to run. Where all units are done and only the end is missing, any one will do."""
        if self.is_built:
            return ()
        return tuple(sorted(self.expected - self.done)) or (min(self.expected),)


def read_progress(build: SharedBuild, num_tasks: int, *, is_built: bool) -> Progress:
    """What the markers say. A marker of another hash does not count and is named."""
    done, foreign, other_counts = set(), [], set()
    for name in () if is_built else fresh_names(build.markers):
        number, count = _parse_marker(name)
        if count == 0 or _hash_in(build.markers / name) != build.marker_hash(count):
            foreign.append(name.removesuffix(".json"))
        elif count == num_tasks:
            done.add(number)
        else:
            other_counts.add(count)
    return Progress(
        build=build,
        num_tasks=num_tasks,
        is_built=is_built,
        done=frozenset(done),
        foreign=tuple(foreign),
        other_counts=tuple(sorted(other_counts)),
    )


def _marker(task: ArrayTask) -> str:
    return f"{task.number}-of-{task.count}.json"


def _parse_marker(name: str) -> tuple[int, int]:
    """A marker's task and number of tasks; 0 of 0 for what is no marker."""
    match = re.fullmatch(r"(\d{1,9})-of-(\d{1,9})\.json", name, re.ASCII)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _hash_in(path: Path) -> str | None:
    try:
        return json.loads(path.read_bytes())["hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


class UnitsMissing(Exception):  # noqa: N818  # caught by conclude, never seen by a user
    """Raised by a build's ``finish`` for units that are not there, though their task had ended."""

    def __init__(self, units: Collection[int]) -> None:
        super().__init__(units)
        self.units = tuple(units)


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What became of a build when a task had done its units."""

    state: Literal["finished", "already", "waiting", "elsewhere"]
    progress: Progress
    holder: str = ""  # elsewhere: who finishes it

    @property
    def is_finished(self) -> bool:
        return self.state in ("finished", "already")


def raise_unfinished(conclusions: Iterable[Conclusion]) -> None:
    """Raise ``DataError`` for builds of a process alone that are not finished."""
    problems = [
        f"{conclusion.progress.build.final} is being finished by {conclusion.holder}. Wait until "
        "it is there, or stop that one, and run the same command again."
        for conclusion in conclusions
    ]
    if problems:
        raise DataError(problems)


def conclude(
    build: SharedBuild,
    task: ArrayTask,
    *,
    report: dict[str, Any],
    is_built: Callable[[], bool],
    finish: Callable[[Turn], object],
) -> Conclusion:
    """Leave the task's marker, and if no task is missing, finish the build.

    ``finish`` makes ``build.final`` out of ``build.folder``. It may be called again after a kill at
    any point, and calls ``Turn.check`` before what cannot be undone. One process calls it at a
    time; one that is taken for dead although it lives does the same things over again.
    """
    if build.units_of(task):
        try:
            build.markers.mkdir(parents=True, exist_ok=True)
            _write_marker(build, task, report)
        except FileNotFoundError:
            if not is_built():  # else a second copy of this task has removed the folder
                raise
    progress = read_progress(build, task.count, is_built=False)
    if not progress.expected <= progress.done:
        return Conclusion(state="already" if is_built() else "waiting", progress=progress)
    with take_turn(build.folder / "finisher") as turn:
        if is_built():  # since this task looked
            return Conclusion(state="already", progress=progress)
        if turn is None:
            holder = holder_of(build.folder / "finisher")
            return Conclusion(state="elsewhere", progress=progress, holder=holder)
        try:
            finish(turn)
        except UnitsMissing as missing:
            raise _lost(build, task.count, missing.units) from None
    shutil.rmtree(build.folder, ignore_errors=True)  # also what other settings left there
    return Conclusion(state="finished", progress=progress)


def _write_marker(build: SharedBuild, task: ArrayTask, report: dict[str, Any]) -> None:
    marker = {
        "version": MARKER_VERSION,
        "hash": build.marker_hash(task.count),
        "key": build.key,
        "units": len(build.units_of(task)),
        **report,
        "host": socket.gethostname(),
        "time": round(time.time(), 3),
    }
    write_json(build.markers / _marker(task), marker)


def _lost(build: SharedBuild, num_tasks: int, units: Collection[int]) -> DataError:
    owners = build.owners(num_tasks)
    tasks = sorted({owners[unit] for unit in units})
    for number in tasks:
        (build.markers / _marker(ArrayTask(number, num_tasks))).unlink(missing_ok=True)
    again = "the command" if num_tasks == 1 else f"task {', '.join(map(str, tasks))} of {num_tasks}"
    return DataError(
        f"{build.folder}: {len(units)} of {len(build.sizes)} pieces of work are not there or not "
        f"whole, though the task that made them had ended. Run {again} again."
    )


def tidy(build: SharedBuild, leftovers: Sequence[Path] = ()) -> None:
    """Remove what is left of a build that is finished: a kill came between, or a task came late.

    What belongs to other settings stays. ``leftovers`` are folders of this build beside its own.
    """
    if not build.folder.exists():
        return
    with take_turn(build.folder / "finisher") as turn:
        if turn is None:
            return  # another is about to remove it, or finishes what other settings made
        for name in fresh_names(build.markers):
            _, count = _parse_marker(name)
            if _hash_in(build.markers / name) == build.marker_hash(count):
                (build.markers / name).unlink(missing_ok=True)
        for folder in (build.work, build.folder / "finisher", *leftovers):
            shutil.rmtree(folder, ignore_errors=True)
    discard_empty(build.folder)


def discard_empty(folder: Path) -> None:
    """Remove a folder of empty folders; one that holds a file stays, with its empty ones gone."""
    for path, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(path)
        except OSError:
            pass  # not empty, or gone
