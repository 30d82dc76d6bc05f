"""What a build makes: a folder, out of units of work that any number of tasks can share.

A unit does not depend on the number of tasks; once finished it counts for good, whoever did it.

FOLDER/.NAME.building/tasks/3-of-8.json   markers
FOLDER/.NAME.building/finisher/           who finishes
FOLDER/.NAME.building/<key>/              becomes FOLDER/NAME by one rename
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from lmscale.errors import ConfigError, DataError
from lmscale.files.atomic import have_sizes


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


ManifestT = TypeVar("ManifestT")
MANIFEST = "manifest.json"
Move = tuple[str, str, int]  # path below the build's folder, path below the finished one, bytes


class Unit(Protocol):
    """A piece of work for one process, which gets it pickled. The result appears by a rename."""

    @property
    def bytes(self) -> int: ...

    def is_done(self) -> bool:
        """Whether the result is on disk and whole, whichever task made it."""
        ...

    def do(self) -> object: ...


class UnitsMissing(Exception):  # noqa: N818  # caught by conclude, never seen by a user
    """Raised by a build's end for units without a result, though their tasks had ended."""

    def __init__(self, units: Collection[int]) -> None:
        super().__init__(units)
        self.units = tuple(units)


@dataclass(frozen=True, kw_only=True)
class Target(ABC, Generic[ManifestT]):
    """A folder to build. The subclasses say what distinguishes a corpus from shards."""

    kind: ClassVar[str]  # corpus or dataset, for messages
    setting: ClassVar[str]  # the YAML's key of the folder
    contents: ClassVar[tuple[str, ...]]  # patterns of a finished folder's files but the manifest

    name: str  # the key in a BuildSummary
    what: str  # what is written, for messages of a full disk and the like
    final: Path
    key: str  # hash of everything ``final`` is made from: configuration, inputs, format's version
    units: tuple[Unit, ...] = ()
    rank: int = 0  # among the builds of one command, so that small ones fall to different tasks

    @property
    def folder(self) -> Path:
        return self.final.with_name(f".{self.final.name}.building")

    @property
    def work(self) -> Path:
        return self.folder / self.key[:16]

    @property
    def parts(self) -> Path:
        """Folder of the finished units."""
        return self.work / "parts"

    @property
    def leftovers(self) -> tuple[Path, ...]:
        """Folders of this build outside of ``work``."""
        return ()

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(unit.bytes for unit in self.units)

    def owners(self, num_tasks: int) -> tuple[int, ...]:
        """The task of each unit."""
        return deal(self.sizes, num_tasks, first=self.rank)

    def units_of(self, task: ArrayTask) -> list[Unit]:
        owners = self.owners(task.count)
        return [
            unit for unit, owner in zip(self.units, owners, strict=True) if owner == task.number
        ]

    def planned(self, *, keep: bool) -> Target[ManifestT]:
        """The target with its units, where finding them takes time; ``keep`` writes them down."""
        return self

    @abstractmethod
    def load(self, folder: Path) -> ManifestT:
        """The manifest in a folder. Raises ``DataError``."""

    @abstractmethod
    def key_of(self, manifest: ManifestT) -> str:
        """The key of the build that wrote a manifest."""

    @abstractmethod
    def files_of(self, manifest: ManifestT) -> Iterable[tuple[str, int]]:
        """(path below the folder, bytes) of each file."""

    @abstractmethod
    def describe_difference(self, manifest: ManifestT) -> str:
        """From what else the folder was built, as the end of a sentence, and how to keep it."""

    @abstractmethod
    def assemble(self, processes: int) -> tuple[dict[str, Any], list[Move]]:
        """The manifest as JSON data, and the move of each file to its place, by so many processes.

        Raises ``UnitsMissing``, and ``DataError`` where nothing useful would come of the units.
        """

    def load_built(self, *, force: bool) -> ManifestT | None:
        """The manifest of a finished build of the same; None where a file is lost.

        A folder of something else is a ``DataError``, unless ``force`` allows to replace it.
        """
        if not self.final.exists():
            return None
        try:
            manifest = self.load(self.final)
        except DataError as error:
            raise DataError(
                f"{self.final} exists and holds no {self.kind} of lmscale ({error}) "
                f"Name another {self.setting}, or move it away."
            ) from None
        if self.key_of(manifest) == self.key:
            sizes = ((self.final / name, size) for name, size in self.files_of(manifest))
            return manifest if have_sizes(sizes) else None
        if force:
            return None
        raise DataError(
            f"{self.final} was built {self.describe_difference(manifest)} Name another "
            f"{self.setting}, or build it again with --force."
        )

    def is_built(self) -> bool:
        try:
            return self.load_built(force=True) is not None
        except DataError:
            return False
