"""What a build makes: a folder, out of units of work that any number of tasks can share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from lmscale.errors import DataError
from lmscale.files.atomic import have_sizes
from lmscale.tasks.array_tasks import SharedBuild

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
class Target(Generic[ManifestT]):
    """A folder to build, and all that distinguishes a corpus's build from that of shards."""

    name: str  # the key in a BuildSummary
    kind: str  # corpus or dataset, for messages
    what: str  # what is written, for messages of a full disk and the like
    setting: str  # the YAML's key of the folder
    build: SharedBuild
    parts: Path  # folder of the finished units
    contents: tuple[str, ...]  # patterns of what the finished folder holds beside its manifest
    leftovers: tuple[Path, ...] = ()  # folders of this build outside of build.work
    load: Callable[[Path], ManifestT]
    """The manifest in a folder. Raises ``DataError``."""
    key_of: Callable[[ManifestT], str]
    """The key of the build that wrote a manifest."""
    files_of: Callable[[ManifestT], Iterable[tuple[str, int]]]
    """(path below the folder, bytes) of each file."""
    describe_difference: Callable[[ManifestT], str]
    """From what else the folder was built, as the end of a sentence."""
    units: Callable[[Iterable[int]], list[Unit]]
    """The units with these numbers."""
    assemble: Callable[[int], tuple[dict[str, Any], list[Move]]]
    """The manifest as JSON data, and the move of each file to its place, by so many processes.

    Raises ``UnitsMissing``, and ``DataError`` where nothing useful would come of the units.
    """
    plan: Callable[[bool], Target[ManifestT]] | None = None
    """Cuts the target into units, where that takes time; True writes the plan down."""

    def planned(self, *, keep: bool) -> Target[ManifestT]:
        """The target with its units known; ``keep`` writes a plan down."""
        return self.plan(keep) if self.plan else self


def existing_manifest(
    target: Target[ManifestT], problems: list[str], *, force: bool
) -> ManifestT | None:
    """The manifest of a finished build of the same; None where a file is lost.

    A folder of something else is a problem, unless ``force`` allows to replace it.
    """
    final = target.build.final
    if not final.exists():
        return None
    try:
        manifest = target.load(final)
    except DataError as error:
        problems.append(
            f"{final} exists and holds no {target.kind} of lmscale ({error}) "
            f"Name another {target.setting}, or move it away."
        )
        return None
    if target.key_of(manifest) == target.build.key:
        sizes = ((final / name, size) for name, size in target.files_of(manifest))
        return manifest if have_sizes(sizes) else None
    if not force:
        problems.append(
            f"{final} was built {target.describe_difference(manifest)}. Name another "
            f"{target.setting}, or build it again with --force."
        )
    return None
