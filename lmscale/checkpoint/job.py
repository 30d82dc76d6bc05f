"""One save: what is to be written, and what has become of it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from lmscale.checkpoint.manifest import Manifest
from lmscale.checkpoint.snapshot import Copy
from lmscale.checkpoint.tier import Tier
from lmscale.errors import LmscaleError


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
        return self.done.is_set() if self.tier.is_shared else self.is_whole is not None

    @property
    def has_failed(self) -> bool:
        return self.done.is_set() and self.saved is None

    def move(self, mark: int) -> None:
        """A sign of life; a file that is written again does not go back."""
        self.marks = max(self.marks, mark)
