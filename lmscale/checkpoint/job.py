"""One save: what is to be written, what rank 0 does around it, and what has become of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lmscale.checkpoint.manifest import Manifest
from lmscale.checkpoint.places.local_tier import LocalTier
from lmscale.checkpoint.places.place import Place
from lmscale.checkpoint.snapshot import Copy
from lmscale.errors import LmscaleError, NoSpaceError
from lmscale.runs.lease import Lease


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
    place: Place
    copy: Copy
    draft: Manifest | None  # rank 0's: all that is known before anything is written
    tier: LocalTier | None = None  # whose save it is, if it is not the shared place's
    began_at: float = field(default_factory=time.monotonic)
    marks: int = 0  # grows as the writer gets on, on all ranks up to the same number
    done: threading.Event = field(default_factory=threading.Event)
    given_up: threading.Event = field(default_factory=threading.Event)
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
        return self.done.is_set() if self.tier is None else self.is_whole is not None

    @property
    def has_failed(self) -> bool:
        return self.done.is_set() and self.saved is None

    def move(self, mark: int) -> None:
        """A sign of life; a file that is written again does not go back."""
        self.marks = max(self.marks, mark)


@dataclass(frozen=True, kw_only=True)
class Duties:
    """What rank 0's writer does around the files."""

    lease: Lease
    prepare: Callable[[], None] = lambda: None
    """Before anything is written. May raise ``LmscaleError``: then nothing is."""
    tidy: Callable[[Place, Manifest], None] = lambda place, manifest: None
    """After a commit to the shared place."""
    make_room: Callable[[Place, int], tuple[int, ...]] = lambda place, step: ()
    """On a full disk: returns the steps whose checkpoints have gone."""


def name_steps(steps: Sequence[int]) -> str:
    """``step 2``, or ``steps 2, 4``."""
    return f"{'step' if len(steps) == 1 else 'steps'} {', '.join(map(str, steps))}"


def describe_full_disk(
    error: NoSpaceError, job: Job, freed: tuple[int, ...], needed: int
) -> NoSpaceError:
    """What a person has to know to go on."""
    takes = f"takes {needed / 1e6:,.1f} MB" if needed else "takes more than there is"
    takes = f"The checkpoint of step {job.step} in {job.place.location} {takes}"
    if job.tier is not None:
        return NoSpaceError(
            [
                *error.problems,
                f"{takes}, all nodes together. It is left out, nothing of it stays there, and the "
                "run trains on: make room, or name another folder at the next start "
                "(checkpoint.local.folder).",
            ]
        )
    return NoSpaceError(
        [
            *error.problems,
            f"{takes}. "
            + (
                f"What was there of {name_steps(freed)} was removed, which was not enough."
                if freed
                else "There was nothing to remove: what is left is the newest good one, and those "
                "that are kept for good."
            ),
            "The run is whole and goes on from its last commit: free some space, or name another "
            "place (checkpoint.folder), and start it again.",
        ]
    )
