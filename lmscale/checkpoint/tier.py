"""Where a save goes, and what is done there besides the ranks' files.

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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmscale.checkpoint.commit import commit
from lmscale.checkpoint.manifest import Manifest
from lmscale.checkpoint.places.place import Place
from lmscale.errors import LmscaleError
from lmscale.runs.lease import Lease

logger = logging.getLogger(__name__)


class Tier:
    """One of the two tiers; each does nothing at a moment unless it says otherwise."""

    is_shared = False
    """All nodes see the same, and the run relies on it: a save that fails ends the run."""
    page = ""
    """Of the figures of its saves, for the trackers."""
    where = ""
    """Behind the name of a checkpoint in the log."""

    def __init__(self, place: Place, *, written_by: Mapping[str, Any]) -> None:
        """``written_by``: what rank 0 adds to ``Manifest.written_by``."""
        self.place, self.written_by = place, written_by

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

    def __init__(
        self,
        place: Place,
        *,
        written_by: Mapping[str, Any] | None = None,
        replace: Callable[[int], None] = lambda step: None,
        tidy: Callable[[Manifest], None] = lambda manifest: None,
        make_room: Callable[[int], tuple[int, ...]] = lambda step: (),
    ) -> None:
        """``replace`` is called before a save clears away what is there of its step, ``tidy`` after
        a commit.
        """
        super().__init__(place, written_by=written_by or {})
        self._replace, self._tidy, self._make_room = replace, tidy, make_room

    def begin(self, step: int) -> None:
        self._replace(step)
        self.place.begin(step)

    def commit(self, manifest: Manifest, content: bytes, lease: Lease) -> None:
        commit(self.place, manifest.step, content, lease)
        try:
            self._tidy(manifest)
        except (LmscaleError, OSError) as failure:  # the next save comes by here again
            logger.warning("old checkpoints in %s stay: %s", self.place.location, failure)

    def make_room(self, step: int) -> tuple[int, ...]:
        return self._make_room(step)

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
