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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lmscale.checkpoint.layout import LOCAL_TIER, MANIFEST, step_folder
from lmscale.checkpoint.manifest import FileEntry, Manifest
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.checkpoint.tier import Tier
from lmscale.config import RunConfig
from lmscale.errors import CheckpointError, ConfigError, NoSpaceError
from lmscale.files.atomic import is_full, write_bytes, writing
from lmscale.files.private_folder import find_risk, make_private
from lmscale.ranks.attempt import node_name
from lmscale.ranks.ranks import Ranks
from lmscale.runs.lease import Lease


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
        newest_committed = max((old for old in committed if old <= newest), default=None)
        for old in (*committed, *self.list_steps(committed=False)):
            if old not in (step, newest_committed):
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


class LocalTier(Tier):
    """The nodes' own disks: on each node the first of its ranks does what is done once there.

    What a run trains on without: a save that fails is left out.
    """

    is_shared, page, where = False, "checkpoint_local", " on the nodes"
    written_by = {"tier": LOCAL_TIER}
    place: NodePlace

    def __init__(
        self, place: NodePlace, ranks: Ranks, *, every_minutes: float, first_step: int | None = None
    ) -> None:
        """``first_step``: where the run has gone on; what is here of later steps is undone."""
        super().__init__(place)
        place.whole_up_to = first_step
        self._ranks = ranks
        self._every_seconds = 60 * every_minutes
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Rank 0 asks, for all."""
        return time.monotonic() - self._saved_at >= self._every_seconds

    def restart_clock(self) -> None:
        """A save begins, of either tier."""
        self._saved_at = time.monotonic()

    def begin_here(self, step: int) -> None:
        if self._ranks.is_first_on_node:
            with _writing(self.place.root):
                self.place.begin(step)

    def commit(self, manifest: Manifest, content: bytes, lease: Lease) -> None:
        lease.check()
        self.commit_here(manifest.step, content)

    def commit_here(self, step: int, content: bytes) -> None:
        if self._ranks.is_first_on_node:
            with _writing(self.place.root):
                self.place.commit(step, content)

    def drop(self, step: int) -> None:
        """It would fill the node's memory until the next one."""
        if self._ranks.is_first_on_node:
            self.place.delete(step)

    def settle(self, step: int, *, is_whole: bool) -> None:
        """What ``begin_here`` keeps follows from it."""
        before = self.place.whole_up_to
        if is_whole:
            self.place.whole_up_to = step
        else:
            self.place.whole_up_to = step - 1 if before is None else min(before, step - 1)

    def explain_full_disk(self, takes: str, freed: Sequence[int]) -> tuple[str, ...]:
        return (
            f"{takes}, all nodes together. It is left out, nothing of it stays there, and the run "
            "trains on: make room, or name another folder at the next start "
            "(checkpoint.local.folder).",
        )

    def clear(self) -> None:
        """Every rank, once the run's last step is committed elsewhere: memory disks are memory."""
        if self._ranks.is_first_on_node:
            shutil.rmtree(self.place.root, ignore_errors=True)


def open_node_place(config: RunConfig) -> NodePlace | None:
    """This node's place, if the run has the tier.

    Environment variables in ``checkpoint.local.folder`` are filled in: a batch system may give
    every job, or every node, a folder of its own.

    The folder is closed to all other users of the node, who could else read the weights, or put
    other weights there. Raises ``ConfigError`` where another user has made the folder, or where a
    variable is not set.
    """
    folder = config.checkpoint.local.folder
    if not folder:
        return None
    path = str(config.folder.expanduser().absolute())
    digest = hashlib.sha256(path.encode()).hexdigest()[:12]
    expanded = os.path.expandvars(folder)
    if "$" in expanded:
        raise ConfigError(
            f"checkpoint.local.folder: {folder} names an environment variable that is not set on "
            f"{node_name()}: {expanded}. Have the batch script set it, or name the folder itself."
        )
    root = Path(expanded).expanduser().absolute()
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
