"""A second tier of checkpoints on every node's own disk, or in its memory: faster, less safe.

Every rank writes its file on its own node; no file goes over the network. The manifest, which rank
0 makes as for any other checkpoint, is committed on every node::

    FOLDER/lmscale-RUN-0123456789ab/step-000000012/     on each node, with its own ranks' files

On a node the newest that every node has committed stays until the next one has been. Of a later one
that it cannot take nothing stays; what other nodes have of that goes when the next save begins.
What is here is lost with the node, and of no use to ranks that come to other nodes. So it counts on
resume only if every rank finds all it needs on its own node (``find.Search``), and if it is of this
run's history (``describe_superseded``): nobody clears away what a run left on a node that it does
not use any more.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmscale.checkpoint.layout import MANIFEST, step_folder
from lmscale.checkpoint.manifest import FileEntry
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.config import RunConfig
from lmscale.errors import CheckpointError, ConfigError, NoSpaceError
from lmscale.files.atomic import is_full, write_bytes, writing
from lmscale.files.private_folder import find_risk, make_private
from lmscale.ranks.attempt import node_name
from lmscale.ranks.ranks import Ranks

LOCAL = "local"  # what ``written_by`` calls this tier


class NodePlace(LocalPlace):
    """This node's part of the checkpoints: another folder on every node."""

    is_shared = False
    whole_up_to: int | None = None
    """The last step that every node has committed, as far as anybody knows. Here a later one may be
    committed all the same, where another node's disk refused it. None: nobody has said."""

    def begin(self, step: int) -> None:
        """Make room, also for ranks that write already: only what is no part of this save goes.

        Of what was committed the newest before this step stays, up to ``whole_up_to``; later ones
        are of steps undone.
        """
        (step_folder(self.root, step) / MANIFEST).unlink(missing_ok=True)
        committed = self.list_steps()
        newest = step - 1 if self.whole_up_to is None else min(step - 1, self.whole_up_to)
        kept = max((old for old in committed if old <= newest), default=None)
        for old in (*committed, *self.list_steps(committed=False)):
            if old not in (step, kept):
                self.delete(old)

    def write_file(self, step: int, name: str, pieces: Iterable[memoryview]) -> None:
        with _writing(self.root):
            step_folder(self.root, step).mkdir(parents=True, exist_ok=True)
            super().write_file(step, name, pieces)

    def commit(self, step: int, manifest: bytes) -> bytes:
        """In place of any other: who may commit is decided where the run's lease is."""
        folder = step_folder(self.root, step)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / MANIFEST, manifest)
        return manifest

    def holds(self, step: int, entry: FileEntry) -> bool:
        try:
            return (step_folder(self.root, step) / entry.name).stat().st_size == entry.bytes
        except OSError:
            return False


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """As ``atomic.writing``, for a run that trains on when the node refuses."""
    what = "a checkpoint (checkpoint.local.folder)"
    with writing(what, folder, CheckpointError):
        try:
            yield
        except OSError as error:
            if not is_full(error):
                raise
            raise NoSpaceError(f"No space is left in {folder} for {what}.") from error


class LocalTier:
    """What a rank does for the tier: for each save ``begin``, its file, ``commit_here``, and
    ``settle``.
    """

    def __init__(
        self,
        place: NodePlace,
        ranks: Ranks,
        *,
        attempt: Mapping[str, Any],
        every_minutes: float,
        first_step: int | None = None,
    ) -> None:
        """``attempt``: as ``attempt_of`` gives it; rank 0's alone matters.

        ``first_step``: the one that the run has gone on from; what is here of later ones is undone.
        """
        self.place = place
        place.whole_up_to = first_step
        self._ranks = ranks
        self._every_seconds = 60 * every_minutes
        self._saved_at = time.monotonic()
        self._attempt = attempt

    def is_due(self) -> bool:
        """Rank 0 asks, for all."""
        return time.monotonic() - self._saved_at >= self._every_seconds

    def restart_clock(self) -> None:
        """A save begins, of either tier."""
        self._saved_at = time.monotonic()

    def written_by(self) -> dict[str, Any]:
        """What rank 0 adds to ``Manifest.written_by``."""
        return {"tier": LOCAL, **self._attempt}

    def begin(self, step: int) -> None:
        """Every rank, before its file; no rank need wait for another."""
        if self._ranks.is_first_on_node:
            with _writing(self.place.root):
                self.place.begin(step)

    def commit_here(self, step: int, manifest: bytes) -> None:
        """Every rank, once rank 0 says that all files are written, and what the manifest is."""
        if self._ranks.is_first_on_node:
            with _writing(self.place.root):
                self.place.commit(step, manifest)

    def drop(self, step: int) -> None:
        """Every rank, of a save that has failed, once no rank writes any more: what is there of it
        would fill the node's memory until the next one.
        """
        if self._ranks.is_first_on_node:
            self.place.delete(step)

    def settle(self, step: int, *, is_whole: bool) -> None:
        """Every rank, once all know whether every node has committed it: what ``begin`` keeps."""
        known = self.place.whole_up_to
        if is_whole:
            self.place.whole_up_to = step
        else:
            self.place.whole_up_to = step - 1 if known is None else min(known, step - 1)

    def clear(self) -> None:
        """Every rank, once the run's last step is committed elsewhere: memory disks are memory."""
        if self._ranks.is_first_on_node:
            shutil.rmtree(self.place.root, ignore_errors=True)


def open_node_place(config: RunConfig) -> NodePlace | None:
    """This node's place, if the run has the tier. Environment variables in its folder are filled
    in: a batch system may give every job, or every node, a folder of its own.

    Closed to all other users of the node, who could else read the weights, or put others there.
    Raises ``ConfigError`` where one of them was first, or where a variable is not set.
    """
    folder = config.checkpoint.local.folder
    if not folder:
        return None
    path = str(config.folder.expanduser().absolute())
    digest = hashlib.sha256(path.encode()).hexdigest()[:12]
    root = Path(_expand(folder)).expanduser().absolute()
    own = root / f"lmscale-{config.run.name}-{digest}"
    try:
        make_private(own)
    except OSError as error:
        if not is_full(error):  # which no run shall wait for: the first save will say it
            raise ConfigError(
                f"checkpoint.local.folder: {own} cannot be made on {node_name()}: {error}. Name a "
                "folder that every node can make."
            ) from None
    risk = find_risk(own)
    if risk is not None:
        raise ConfigError(
            f"checkpoint.local.folder: {own} is no safe place for checkpoints: {risk}. Name a "
            "folder that only you can write to."
        )
    return NodePlace(own)


def _expand(folder: str) -> str:
    expanded = os.path.expandvars(folder)
    if "$" in expanded:
        raise ConfigError(
            f"checkpoint.local.folder: {folder} names an environment variable that is not set on "
            f"{node_name()}: {expanded}. Have the batch script set it, or name the folder itself."
        )
    return expanded
