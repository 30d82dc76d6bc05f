"""Where a save goes, and what is done there besides the ranks' files.

::

    rank 0                   every other rank
    begin                    waits
    begin_here, its file     begin_here, its file
    commit, tidy             commit_here             or, of a save that has failed, drop
    settle                   settle                  all know whether all have committed

The writer calls these, and knows neither of the two tiers: ``SharedTier`` is what a run relies on,
``places/local_tier.py`` has the nodes' own disks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from lmscale.checkpoint.commit import commit
from lmscale.checkpoint.manifest import Manifest
from lmscale.checkpoint.places.place import Place
from lmscale.errors import NoSpaceError
from lmscale.runs.lease import Lease


class Tier(ABC):
    """One of the two tiers. ``attempt``: as ``attempt_of`` gives it; rank 0's alone matters."""

    is_shared: ClassVar[bool]
    """All nodes see the same, and the run relies on it: a save that fails ends the run."""
    page: ClassVar[str]
    """Of the figures of its saves, for the trackers."""
    where: ClassVar[str]
    """Behind the name of a checkpoint in the log."""

    def __init__(self, place: Place, *, attempt: Mapping[str, Any]) -> None:
        self.place = place
        self._attempt = attempt

    def written_by(self) -> dict[str, Any]:
        """What rank 0 adds to ``Manifest.written_by``."""
        return dict(self._attempt)

    @abstractmethod
    def begin(self, step: int) -> None:
        """Rank 0, before any rank writes: clear away what an interrupted save has left."""

    @abstractmethod
    def begin_here(self, step: int) -> None:
        """Every rank, before its file; no rank need wait for another."""

    @abstractmethod
    def commit(self, step: int, manifest: bytes, lease: Lease) -> None:
        """Rank 0, once all files are written."""

    @abstractmethod
    def commit_here(self, step: int, manifest: bytes) -> None:
        """Every other rank, once rank 0 has committed this manifest."""

    @abstractmethod
    def tidy(self, manifest: Manifest) -> None:
        """Rank 0, after a commit."""

    @abstractmethod
    def make_room(self, step: int) -> tuple[int, ...]:
        """Rank 0, on a full disk: the steps whose checkpoints have gone."""

    @abstractmethod
    def drop(self, step: int) -> None:
        """Remove what is there of a save that has failed, once no rank writes any more: rank 0,
        or every rank where each node has a part of its own.
        """

    @abstractmethod
    def settle(self, step: int, *, is_whole: bool) -> None:
        """Every rank, once all know whether every rank has committed it."""

    @abstractmethod
    def explain_full_disk(self, takes: str, freed: Sequence[int]) -> tuple[str, ...]:
        """What a person has to know to go on. ``freed``: the steps that ``make_room`` removed."""

    def describe_full_disk(
        self, error: NoSpaceError, step: int, *, freed: Sequence[int], needed: int
    ) -> NoSpaceError:
        """``needed``: bytes of all ranks' files; 0 where nobody knows."""
        takes = f"takes {needed / 1e6:,.1f} MB" if needed else "takes more than there is"
        takes = f"The checkpoint of step {step} in {self.place.location} {takes}"
        return NoSpaceError([*error.problems, *self.explain_full_disk(takes, freed)])


class SharedTier(Tier):
    """The place that a run relies on."""

    is_shared, page, where = True, "checkpoint", ""

    def __init__(
        self,
        place: Place,
        *,
        attempt: Mapping[str, Any] | None = None,
        tidy: Callable[[Manifest], None] = lambda manifest: None,
        make_room: Callable[[int], tuple[int, ...]] = lambda step: (),
    ) -> None:
        super().__init__(place, attempt=attempt or {})
        self._tidy, self._make_room = tidy, make_room

    def begin(self, step: int) -> None:
        self.place.begin(step)

    def begin_here(self, step: int) -> None:
        pass

    def commit(self, step: int, manifest: bytes, lease: Lease) -> None:
        commit(self.place, step, manifest, lease)

    def commit_here(self, step: int, manifest: bytes) -> None:
        pass

    def tidy(self, manifest: Manifest) -> None:
        self._tidy(manifest)

    def make_room(self, step: int) -> tuple[int, ...]:
        return self._make_room(step)

    def drop(self, step: int) -> None:
        if step in self.place.list_steps(committed=False):
            self.place.delete(step)

    def settle(self, step: int, *, is_whole: bool) -> None:
        pass

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
