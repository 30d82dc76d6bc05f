"""Where a run's checkpoints are: what may be done there, and how it is done in a folder.

``run_place.open_place`` gives a run's own; ``remote_place`` has what is behind a URL.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from lmscale.checkpoint.layout import MANIFEST, step_folder
from lmscale.checkpoint.manifest import FileEntry
from lmscale.errors import CheckpointError
from lmscale.files import fault_points
from lmscale.files.atomic import (
    fsync_folder,
    is_full,
    to_json_bytes,
    write_bytes,
    write_bytes_once,
    writing,
)
from lmscale.files.locations import join_location
from lmscale.files.reading import sha256_file
from lmscale.files.run_files import STEP_FOLDER
from lmscale.files.strangers import parse_json

logger = logging.getLogger(__name__)

OWNER_FILE = "lmscale-run.json"  # whose a place is that is not in a run's own folder
_DISCARDED = ".discarded-"


class Place(ABC):
    """A root of checkpoints, named by ``location``. A checkpoint is what has a manifest there."""

    location: str
    is_shared = True
    """Whether all nodes see the same files; else each node sees the files of its own ranks."""

    @abstractmethod
    def claim(self, run_name: str) -> None:
        """Write down the run that owns this place, which shows as well that saves can be written.

        Raises ``CheckpointError`` when it is another run's, or refuses; ``TransientError`` when it
        does not answer. Rank 0 alone, before anything else.
        """

    @abstractmethod
    def list_steps(self, *, committed: bool = True) -> list[int]:
        """Steps with a manifest, newest first; or, not ``committed``, steps without a manifest."""

    @abstractmethod
    def read_manifest(self, step: int) -> str:
        """The text of the step's manifest. Raises ``FileNotFoundError``."""

    @abstractmethod
    def begin(self, step: int) -> None:
        """Begin a save: clear away the files of an interrupted save of this step."""

    @abstractmethod
    def write_file(self, step: int, name: str, pieces: Iterable[memoryview]) -> None:
        """Write a file of a checkpoint, in one attempt; on return the file is durable.

        What may pass by itself is raised as ``TransientError`` or ``OSError``: a caller that can
        give the pieces once more may try again.
        """

    @abstractmethod
    def commit(self, step: int, manifest: bytes) -> bytes:
        """Write the manifest unless the step has one; returns the manifest that stands there now.

        Of two writers at once one wins, where the store can tell them apart.
        """

    @abstractmethod
    def delete(self, step: int) -> None:
        """Remove a checkpoint, the manifest first: without a manifest it does not count."""

    @abstractmethod
    def discard_uncommitted(self) -> None:
        """Clear away the uncommitted saves, so that no process can commit them any more.

        A save may still be under way: an older copy of the run may have read that the lease was its
        own, just before that ended. Such a copy cannot commit files that are gone.
        """

    @abstractmethod
    def describe_damage(self, step: int, entry: FileEntry) -> str | None:
        """What is wrong with a file: missing, of another size, of another hash."""

    @abstractmethod
    def opened(self, step: int, entry: FileEntry) -> AbstractContextManager[Path]:
        """The file on this machine's own disk, to be read, for the time of the block."""

    def holds(self, step: int, entry: FileEntry) -> bool:
        """Whether this node has the file; a place that all nodes see does not look."""
        return True

    def name_of(self, step: int) -> str:
        """What people call a checkpoint of this place."""
        return join_location(self.location, step_folder(Path(), step).name)


class LocalPlace(Place):
    """A folder on this machine, or on a file system that all nodes share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)

    def claim(self, run_name: str) -> None:
        with writing("a checkpoint (checkpoint.folder)", self.root, CheckpointError):
            self.root.mkdir(parents=True, exist_ok=True)
            path, owner = self.root / OWNER_FILE, to_json_bytes({"run": run_name})
            check_owner(write_bytes_once(path, owner), run_name, self.location)
            try:
                write_bytes(path, owner)  # its own: it shows that saves can be written as well
            except OSError as error:
                if not is_full(error):  # which a save that was cut off may be the reason of
                    raise

    def list_steps(self, *, committed: bool = True) -> list[int]:
        if not self.root.is_dir():
            return []
        matches = [STEP_FOLDER.fullmatch(path.name) for path in self.root.iterdir()]
        return sorted(
            (
                int(match[1])
                for match in matches
                if match
                and (self.root / match[0]).is_dir()
                and (self.root / match[0] / MANIFEST).is_file() == committed
            ),
            reverse=True,
        )

    def read_manifest(self, step: int) -> str:
        return (step_folder(self.root, step) / MANIFEST).read_text(encoding="utf-8")

    def begin(self, step: int) -> None:
        # Of the same step; other ranks may have been more in number.
        folder = step_folder(self.root, step)
        self.delete(step)
        if folder.exists():  # NFS keeps files that somebody has open
            shutil.rmtree(_set_aside(folder), ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)

    def write_file(self, step: int, name: str, pieces: Iterable[memoryview]) -> None:
        path = step_folder(self.root, step) / name
        with open(path, "wb", buffering=1 << 20) as file:
            file.writelines(pieces)
            file.flush()
            fault_points.hit("save.fsync", step=step, path=path)
            os.fsync(file.fileno())
        fault_points.hit("save.written", step=step, path=path)

    def commit(self, step: int, manifest: bytes) -> bytes:
        folder = step_folder(self.root, step)
        fsync_folder(folder)
        standing = write_bytes_once(folder / MANIFEST, manifest)
        fsync_folder(self.root)
        fault_points.hit("save.committed", step=step, path=folder)
        return standing

    def delete(self, step: int) -> None:
        folder = step_folder(self.root, step)
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def discard_uncommitted(self) -> None:
        for step in self.list_steps(committed=False):
            folder = step_folder(self.root, step)
            logger.warning("%s was never committed: it is cleared away", folder)
            _discard(_set_aside(folder), folder)
        for aside in self.root.glob(f"{_DISCARDED}*"):  # of a start that was killed in here
            _discard(aside, self.root / aside.name.removeprefix(_DISCARDED).rpartition("-")[0])

    def describe_damage(self, step: int, entry: FileEntry) -> str | None:
        path = step_folder(self.root, step) / entry.name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != entry.bytes:
            return f"{path} has {path.stat().st_size} bytes instead of {entry.bytes}"
        if sha256_file(path) != entry.sha256:
            return f"{path} does not have the hash that its manifest gives"
        return None

    @contextmanager
    def opened(self, step: int, entry: FileEntry) -> Iterator[Path]:
        yield step_folder(self.root, step) / entry.name


def _set_aside(folder: Path) -> Path:
    """Rename it; the new name, which the next start clears away."""
    aside = folder.with_name(f"{_DISCARDED}{folder.name}-{secrets.token_hex(4)}")
    os.replace(folder, aside)
    return aside


def _discard(aside: Path, folder: Path) -> None:
    """Remove it; or put it back, where somebody has committed it before it was set aside."""
    if (aside / MANIFEST).exists() and not folder.exists():
        os.replace(aside, folder)
    shutil.rmtree(aside, ignore_errors=True)


def check_owner(content: bytes | None, run_name: str, location: str) -> None:
    """Raise ``CheckpointError`` when ``content`` of an ``OWNER_FILE`` names another run."""
    try:
        owner = None if content is None else parse_json(content)["run"]
    except (ValueError, KeyError, TypeError):
        owner = None  # torn: it is written anew
    if owner not in (None, run_name):
        raise CheckpointError(
            f"checkpoint.folder = {location} holds the checkpoints of the run {owner!r}, not of "
            f"{run_name!r}. Name another place: saves of this run would undo that one's. Of a run "
            f"that was moved or copied here on purpose, remove {OWNER_FILE} there."
        )
