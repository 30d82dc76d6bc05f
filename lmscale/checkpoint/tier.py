"""Where a save goes, what is done there besides the ranks' files, and the commit.

::

    rank 0                   every other rank
    begin                    waits
    begin_here, its file     begin_here, its file
    commit                   commit_here             or, of a save that has failed, drop
    settle                   settle                  all know whether all have committed

The writer calls these, and knows neither of the two tiers: ``SharedTier`` is what a run relies on,
``places/local_tier.py`` has the nodes' own disks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lmscale.checkpoint.layout import find_gaps
from lmscale.checkpoint.manifest import FileEntry, Manifest
from lmscale.checkpoint.places.place import Place
from lmscale.checkpoint.retention import Retention
from lmscale.checkpoint.snapshot import Copy
from lmscale.errors import CheckpointError, LmscaleError
from lmscale.files import fault_points
from lmscale.ranks.fingerprint import add_fingerprints
from lmscale.runs.lease import Lease
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)


class Tier:
    """One of the two tiers; each does nothing at a moment unless it says otherwise."""

    is_shared = False  # all nodes see it, and the run relies on it: a save that fails ends the run
    page = ""  # of the figures of its saves, for the trackers
    where = ""  # behind the name of a checkpoint in the log
    written_by: Mapping[str, str] = {}  # what ``Manifest.written_by`` says of it

    def __init__(self, place: Place) -> None:
        self.place = place

    def begin(self, step: int) -> None:
        """Clear away what an interrupted save has left."""

    def begin_here(self, step: int) -> None:
        """Every rank, before its file; no rank need wait for another."""

    def commit(self, manifest: Manifest, content: bytes, lease: Lease) -> None:
        """Once all files are written. ``content``: the manifest's."""

    def commit_here(self, step: int, content: bytes) -> None:
        """Once rank 0 has committed this manifest."""

    def make_room(self, step: int) -> tuple[int, ...]:
        """Rank 0, on a full disk: the steps whose checkpoints have gone."""
        return ()

    def drop(self, step: int) -> None:
        """Remove what is there of a save that has failed, once no rank writes any more: rank 0, or
        every rank where each node has a part of its own.
        """

    def settle(self, step: int, *, is_whole: bool) -> None:
        """Once all know whether every rank has committed it."""

    def explain_full_disk(self, takes: str, freed: Sequence[int]) -> tuple[str, ...]:
        """What a person has to know to go on. ``freed``: the steps that ``make_room`` removed."""
        return (takes,)


class SharedTier(Tier):
    """The place that a run relies on."""

    is_shared, page = True, "checkpoint"

    def __init__(self, place: Place, retention: Retention | None = None) -> None:
        super().__init__(place)
        self._retention = retention

    def begin(self, step: int) -> None:
        if self._retention is not None:
            self._retention.replace(step)
        self.place.begin(step)

    def commit(self, manifest: Manifest, content: bytes, lease: Lease) -> None:
        commit(self.place, manifest.step, content, lease)
        if self._retention is not None:
            try:
                self._retention.tidy(manifest)
            except (LmscaleError, OSError) as failure:  # the next save comes by here again
                logger.warning("old checkpoints in %s stay: %s", self.place.location, failure)

    def make_room(self, step: int) -> tuple[int, ...]:
        return () if self._retention is None else self._retention.free_space(saving=step)

    def drop(self, step: int) -> None:
        if step in self.place.list_steps(committed=False):
            self.place.delete(step)

    def explain_full_disk(self, takes: str, freed: Sequence[int]) -> tuple[str, ...]:
        removed = (
            f"What was there of {name_steps(freed)} was removed, which was not enough."
            if freed
            else "There was nothing to remove: what is left is the newest good one, and those that "
            "are kept for good."
        )
        return (
            f"{takes}. {removed}",
            "The run is whole and goes on from its last commit: free some space, or name another "
            "place (checkpoint.folder), and start it again.",
        )


def name_steps(steps: Sequence[int]) -> str:
    """``step 2``, or ``steps 2, 4``."""
    return f"{'step' if len(steps) == 1 else 'steps'} {', '.join(map(str, steps))}"


class ForeignManifestError(CheckpointError):
    """An older copy's manifest came late into the folder of a save by the run's holder."""


def complete(draft: Manifest | None, reports: list[dict[str, Any]]) -> Manifest:
    """The manifest, with what every rank has told of its file."""
    assert draft is not None, "rank 0 has a draft"
    manifest = replace(
        draft,
        is_finite=all(row["is_finite"] for row in reports),
        weights=f"{add_fingerprints(row['weights'] for row in reports):016x}",
        files=tuple(FileEntry(**row["entry"]) for row in reports),
    )
    gaps = find_gaps(manifest)
    if gaps:
        raise AssertionError(f"the ranks' fragments do not cover the model: {gaps[:3]}")
    return manifest


def commit(place: Place, step: int, manifest: bytes, lease: Lease) -> None:
    """Write the manifest, unless the run is another copy's at the last moment.

    And after it: a write that a broken network holds up for minutes finds either that the folder is
    gone (``discard_uncommitted``), or the other copy's manifest, which it does not replace.
    """
    lease.check()
    fault_points.hit("save.commit", step=step)
    if place.commit(step, manifest) != manifest:
        lease.check()
        raise ForeignManifestError(
            f"{place.name_of(step)} was committed by somebody else meanwhile."
        )


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What one save has made; the same on all ranks."""

    step: int
    name: str  # of the checkpoint, for people
    seconds: float  # from the copy to the commit
    bytes: int  # of all ranks
    is_finite: bool


@dataclass(kw_only=True)
class Job:
    """One save, on one rank: what is to be written, and what has become of it."""

    number: int  # of the writer's jobs
    step: int
    tier: Tier
    copy: Copy
    draft: Manifest | None  # rank 0's: all that is known before anything is written
    began_at: float = field(default_factory=time.monotonic)
    marks: int = 0  # grows as the writer gets on, on all ranks up to the same number
    ticks: int = 0  # heartbeats that told of these marks
    done: threading.Event = field(default_factory=threading.Event)
    given_up: threading.Event = field(default_factory=threading.Event)  # do not wait or try on
    saved: Saved | None = None
    manifest: bytes | None = None  # rank 0's, once all files are written
    error: LmscaleError | None = None
    bug: Exception | None = None  # what this rank's thread did not expect
    is_agreed: bool = False  # this rank has told, and been told, what there was to tell
    is_cut_off: bool = False  # one was not, and none will be in later jobs; the same on all ranks
    is_whole: bool | None = None  # it went well on all ranks, as ``CheckpointWriter.wait`` learns

    @property
    def is_over(self) -> bool:
        """Whether this rank knows how it has ended: another node may yet refuse what this took."""
        return self.done.is_set() if self.tier.is_shared else self.is_whole is not None

    @property
    def has_failed(self) -> bool:
        return self.done.is_set() and self.saved is None

    def move(self, mark: int) -> None:
        """A sign of life; a file that is written again does not go back."""
        self.marks = max(self.marks, mark)

    def tick(self) -> None:
        """Pass on the signs of life: as many on every rank in the end."""
        while self.ticks < self.marks:
            heartbeat.tick()
            self.ticks += 1
