"""The lease on a run: of two live copies of a job, the older one ends without committing anything.

When a node's Slurm daemon dies alone, its job is requeued, or the next of its chain started, while
the first copy still trains. So rank 0 of every start writes who it is into ``RUN/lease.json``, and
reads the file again before it commits anything and every few seconds: a name that is not its own
means that a newer start has taken the run over. docs/decisions/0014-lease.md.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from pydantic import TypeAdapter

from lmscale.errors import EXIT_RESUMABLE, LeaseLostError
from lmscale.files.atomic import write_json
from lmscale.files.jsonl import parse_value
from lmscale.files.reading import read_plain
from lmscale.files.strangers import Count, Instant, Text
from lmscale.ranks.attempt import Attempt, node_name
from lmscale.ranks.exits import leave

logger = logging.getLogger(__name__)

LEASE_FILE = "lease.json"
POLL_SECONDS = 2.0
# A holder touches its lease at every poll: one that has not moved for this long has no live holder.
SILENT_SECONDS = 2.5 * POLL_SECONDS
# For the ranks to hear of the loss in their next reduction. Where one of them hangs, nobody does.
GRACE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class LeaseRecord:
    """What ``lease.json`` says."""

    attempt: Text
    job: Text | None
    restart: Count
    hosts: tuple[Text, ...]
    rank0: Text  # ``HOST:PROCESS``
    token: Text  # random; differs for every start
    time: Instant
    ended: Instant | None = None  # at which the holder ended in good order
    submission: Text | None = None

    @property
    def holder(self) -> Attempt:
        return Attempt(job=self.job, restart=self.restart, submission=self.submission)


_LEASE = TypeAdapter(LeaseRecord)


class Claim(Enum):
    """What a start may do with a lease that it finds."""

    REFUSE = "a newer start of the same submission holds it"
    TAKE_OVER = "an older start of the same submission holds it, live or not"
    ASK = "someone else holds it, who may be alive"
    FREE = "nobody holds it"


def judge_claim(standing: LeaseRecord | None, mine: Attempt) -> Claim:
    """How the lease that is there bears on a new start."""
    if standing is None:
        return Claim.FREE
    if standing.holder.is_newer_than(mine):
        return Claim.REFUSE
    if mine.is_newer_than(standing.holder):
        return Claim.TAKE_OVER
    return Claim.ASK if standing.ended is None else Claim.FREE


class Finding(Enum):
    """What a holder learns from its lease file."""

    MINE = "it stands as it was written"
    LOST = "another start has taken it"
    RETAKE = "it is gone, or an older start of the same submission came late and wrote over it"


def judge_found(standing: LeaseRecord | None, mine: LeaseRecord) -> Finding:
    """What the holder of ``mine`` concludes from what is in the file now."""
    if standing is not None and standing.token == mine.token:
        return Finding.MINE
    if standing is None or mine.holder.is_newer_than(standing.holder):
        return Finding.RETAKE
    return Finding.LOST


class Lease:
    """Rank 0's hold on the run's folder. The other ranks have one that is never looked at."""

    def __init__(self, attempt: Attempt, folder: Path | None = None) -> None:
        self.attempt = attempt
        self._folder = folder
        self._record: LeaseRecord | None = None
        self._lost_to: LeaseRecord | None = None
        self._looking = threading.Lock()

    def take(self, hosts: Sequence[str]) -> None:
        """Write this start's name into the file, whoever was there."""
        assert self._folder is not None
        self._record = LeaseRecord(
            attempt=self.attempt.name,
            job=self.attempt.job,
            restart=self.attempt.restart,
            submission=self.attempt.submission,
            hosts=tuple(hosts),
            rank0=f"{node_name()}:{os.getpid()}",
            token=secrets.token_hex(8),
            time=time.time(),
        )
        _write(self._folder, self._record)

    def still_mine(self) -> bool:
        """Result of the last look; costs no I/O, from any thread."""
        return self._lost_to is None

    def check(self) -> None:
        """Look now. Raises ``LeaseLostError`` when the run is another start's.

        An ``OSError`` passes: what cannot be read is no leave to commit.
        """
        self._look()
        if self._lost_to is not None:
            raise self.lost_error()

    def lost_error(self) -> LeaseLostError:
        """For all ranks to raise; only rank 0 can say who the newer one is."""
        newer = self._lost_to
        who = f"attempt {newer.attempt} (rank 0: {newer.rank0})" if newer else "a newer start"
        return LeaseLostError(
            f"This run was taken over by {who}. This copy, attempt {self.attempt.name}, ends "
            "without saving; the newer one goes on from the last checkpoint."
        )

    @contextmanager
    def watched(self) -> Iterator[Lease]:
        """Look every few seconds for the time of the block; in good order, note its end."""
        closing = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(closing,), name="lease", daemon=True)
        watcher.start()
        try:
            yield self
        finally:
            closing.set()
            watcher.join(POLL_SECONDS)  # it may be held up by a file system that hangs
            with suppress(OSError):
                self._note_end()

    def _look(self) -> None:
        if self._folder is None or self._record is None or self._lost_to is not None:
            return
        with self._looking:
            standing = read_lease(self._folder)
            finding = judge_found(standing, self._record)
            if finding is Finding.LOST:
                self._lost_to = standing
            elif finding is Finding.RETAKE:
                logger.warning("%s was not this start's any more: taken again", LEASE_FILE)
                _write(self._folder, self._record)

    def _watch(self, closing: threading.Event) -> None:
        while self.still_mine():
            if closing.wait(POLL_SECONDS):
                return
            with suppress(OSError):  # the check before a commit will say it
                self._look()
                if self._folder is not None and self.still_mine():
                    os.utime(self._folder / LEASE_FILE)
        logger.warning("%s", self.lost_error())
        if not closing.wait(GRACE_SECONDS):
            leave(EXIT_RESUMABLE, str(self.lost_error()))

    def _note_end(self) -> None:
        if self._folder is None or self._record is None:
            return
        self._look()
        if self.still_mine():
            _write(self._folder, replace(self._record, ended=time.time()))


NO_LEASE = Lease(Attempt())  # of a run that nobody has claimed, as in a test


def read_lease(folder: Path) -> LeaseRecord | None:
    """The lease of a run's folder; None if it is missing or cannot be understood.

    An ``OSError`` passes: a lease that cannot be read may be somebody's.
    """
    try:
        return parse_value(read_plain(folder / LEASE_FILE), _LEASE)
    except FileNotFoundError:
        return None


def is_beating(folder: Path) -> bool:
    """Whether a live holder touches or changes the lease; takes ``SILENT_SECONDS`` where not.

    The times are compared with each other, so clocks need not agree.
    """
    before = _stamp(folder)
    deadline = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 10)
        if _stamp(folder) != before:
            return True
    return False


def _write(folder: Path, record: LeaseRecord) -> None:
    write_json(folder / LEASE_FILE, asdict(record))


def _stamp(folder: Path) -> tuple[int, int] | None:
    try:
        # Opened, not only looked up: network file systems answer an open from the server.
        with open(folder / LEASE_FILE, "rb") as file:
            status = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino
