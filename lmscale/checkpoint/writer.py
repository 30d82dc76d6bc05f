"""Writing a checkpoint: by a thread of every rank, beside the training, committed last by rank 0.

::

    rank 0                                          every other rank
    lease, ledger, place.begin ── "begin: go" ───→  waits
    writes its file                                 writes its file
    reads all entries        ←─── "entry 3" ──────  what it wrote, or why it could not
    lease, manifest, retention ── "end: saved" ──→  the outcome, the same on all ranks

Instead of an outcome rank 0 may say ``again``: the disk was full, and old checkpoints have gone
since. The notes travel by ranks/mailbox.py.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from lmscale.checkpoint.layout import fragment_file
from lmscale.checkpoint.manifest import Manifest
from lmscale.checkpoint.snapshot import Copy
from lmscale.checkpoint.tier import ForeignManifestError, Job, Saved, Tier, complete, name_steps
from lmscale.checkpoint.write_file import NUM_MARKS, GivenUpError, inspect, try_again, write_file
from lmscale.errors import (
    CheckpointError,
    LeaseLostError,
    LmscaleError,
    NoSpaceError,
    TransientError,
)
from lmscale.files.atomic import writing
from lmscale.ranks.collectives import (
    combine_errors,
    error_from_json,
    error_to_json,
    fail_together,
    sum_float64,
)
from lmscale.ranks.mailbox import Mailbox
from lmscale.ranks.ranks import Ranks
from lmscale.runs.lease import Lease

logger = logging.getLogger(__name__)

GO, AGAIN = "go", "again"
ATTEMPTS = 2
LOOK_SECONDS = 0.2  # how long a rank that waits looks at its own writer before it asks the others
_JOIN_SECONDS = 10.0


class CheckpointWriter:
    """A rank's thread that writes checkpoints, one after the other. Close it."""

    def __init__(
        self,
        ranks: Ranks,
        mailbox: Mailbox,
        *,
        lease: Lease,
        retries: int,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """``prepare``: called by rank 0 before anything is written. May raise ``LmscaleError``."""
        self._ranks, self._mailbox, self._lease = ranks, mailbox, lease
        self._retries, self._prepare_save = retries, prepare
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._job: Job | None = None  # the last one
        self._notes: list[str] = []  # of the job before: all have read them
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._has_started = threading.Event()
        self._thread.start()
        self._has_started.wait()
        # The thread has said that it computes alone, which torch takes as the default of threads
        # to come; this thread's own number is that of before.
        torch.set_num_threads(torch.get_num_threads())

    def start(self, *, step: int, tier: Tier, copy: Copy, draft: Manifest | None) -> Job:
        """Begin to write; all ranks together, each when the job before is done."""
        number = 1 if self._job is None else self._job.number + 1
        job = Job(number=number, step=step, tier=tier, copy=copy, draft=draft)
        self._job = job
        self._jobs.put(job)
        return job

    def wait(self, job: Job) -> Saved:
        """Return when the job is done on all ranks; all of them together.

        Raises the same error on all ranks where it has failed; a ``TransientError`` for a bug that
        a rank's thread has met, whose log shows it.
        """
        job.is_whole = self._wait_for_all(job)
        job.tier.settle(job.step, is_whole=job.is_whole)
        if not job.is_whole:
            job.saved = None  # on this rank it may have gone well
            if job.error is not None and job.tier.is_shared and not job.is_cut_off:
                raise job.error  # rank 0 has told all ranks the same
            bug = job.bug and TransientError(
                f"The checkpoint of step {job.step} could not be written: {job.bug!r}; the log of "
                "this rank says where."
            )
            fail_together(job.error or bug)
        assert job.saved is not None
        return job.saved

    def _wait_for_all(self, job: Job) -> bool:
        """Whether it has gone well."""
        while True:
            deadline = time.monotonic() + LOOK_SECONDS
            while not job.done.wait(LOOK_SECONDS / 4) and time.monotonic() < deadline:
                job.tick()
            is_done = job.done.is_set()
            if is_done:
                job.tick()
            # It also shows at once that a rank has gone, which the threads would not notice.
            num_done, failed, alone = sum_float64(
                [is_done, is_done and job.has_failed, is_done and not job.is_agreed]
            )
            job.is_cut_off = alone > 0
            if num_done == self._ranks.world_size:
                return failed == 0
            if alone:  # that rank has told nobody: the others would wait for it for ever
                job.given_up.set()

    def close(self) -> bool:
        """End the thread, giving up what it may still be writing. Whether it has ended."""
        if self._job is not None:
            self._job.given_up.set()
        self._jobs.put(None)
        self._thread.join(_JOIN_SECONDS)  # it may be held up by a file system that hangs
        return not self._thread.is_alive()

    def _run(self) -> None:
        torch.set_num_threads(1)  # the cores are the training's
        self._has_started.set()
        while (job := self._jobs.get()) is not None:
            try:
                if self._ranks.is_first:
                    self._lead(job)
                else:
                    self._follow(job)
            except GivenUpError:
                logger.warning("the save of step %d was given up", job.step)
            except LmscaleError as error:  # the mailbox's: nobody can be told
                job.error = error
            except Exception as error:
                logger.exception("the writer of checkpoints has met a bug")
                job.bug = error
            finally:
                job.move(NUM_MARKS + 2)
                job.done.set()

    def _lead(self, job: Job) -> None:
        """Rank 0's part."""
        freed: tuple[int, ...] = ()
        error = self._try(job, self._prepare)
        if error is not None:
            self._post(job, 0, "begin", {"error": error_to_json(error), "saved": None})
            job.error, job.is_agreed = error, True
            return
        for attempt in range(ATTEMPTS):
            where, reports, error = self._attempt(job, attempt)
            if attempt + 1 < ATTEMPTS:
                made = self._make_room(job) if isinstance(error, NoSpaceError) else ()
                freed += made
                # Another copy's manifest goes when the folder is cleared once more.
                if made or isinstance(error, ForeignManifestError):
                    self._post(job, attempt, where, AGAIN)
                    continue
            if isinstance(error, NoSpaceError):
                needed = sum(row["bytes"] for row in reports)
                takes = f"takes {needed / 1e6:,.1f} MB" if needed else "takes more than there is"
                takes = f"The checkpoint of step {job.step} in {job.tier.place.location} {takes}"
                explained = job.tier.explain_full_disk(takes, freed)
                error = NoSpaceError([*error.problems, *explained])
            job.error = error and self._clear(job, error)
            if job.error is None:
                job.saved = Saved(
                    step=job.step,
                    name=job.tier.place.name_of(job.step),
                    seconds=time.monotonic() - job.began_at,
                    bytes=sum(row["entry"]["bytes"] for row in reports),
                    is_finite=all(row["is_finite"] for row in reports),
                )
            saved = job.saved and asdict(job.saved)
            is_alone = job.tier.is_shared or self._ranks.is_one_machine
            if job.manifest and saved and not is_alone:
                self._post(job, attempt, "manifest", job.manifest.decode())
            self._post(job, attempt, where, {"error": error_to_json(job.error), "saved": saved})
            break
        job.is_agreed = True

    def _attempt(
        self, job: Job, attempt: int
    ) -> tuple[str, list[dict[str, Any]], LmscaleError | None]:
        """How far it came, what the ranks have written, and what went wrong."""
        error = self._try(job, self._begin)
        if error is not None:
            return "begin", [], error
        self._post(job, attempt, "begin", GO)
        reports = self._gather(job, attempt)
        return "end", reports, self._try(job, partial(self._conclude, reports))

    def _follow(self, job: Job) -> None:
        """Every other rank's."""
        for attempt in range(ATTEMPTS):
            decision = self._read(job, f"{attempt}/begin")
            if decision == GO:
                note = f"{job.number}/{attempt}/{self._ranks.rank}"
                self._mailbox.post(note, self._write(job))
                decision = self._read(job, f"{attempt}/end")
            if decision != AGAIN:
                break
        else:
            raise AssertionError(f"rank 0 wants more than {ATTEMPTS} attempts")
        saved, error = decision["saved"], error_from_json(decision["error"])
        tier = job.tier
        if not tier.is_shared and saved and self._ranks.is_first_on_node:
            # A large note, at 512 ranks of megabytes: none but those who write it down read it.
            manifest = self._read(job, f"{attempt}/manifest").encode()
            error = self._try(job, lambda job: tier.commit_here(job.step, manifest))
        if not tier.is_shared and error is not None:
            error = self._clear(job, error)
        job.error, job.saved = error, None if error else Saved(**saved)
        job.is_agreed = True

    def _prepare(self, job: Job) -> None:
        self._lease.check()
        self._prepare_save()

    def _begin(self, job: Job) -> None:
        self._lease.check()  # before anything of another copy's is cleared away
        self._try_again(job, "clearing the folder", lambda: job.tier.begin(job.step))
        job.move(1)

    def _write(self, job: Job) -> dict[str, Any]:
        """Write this rank's file, and say how it went."""
        name = fragment_file(self._ranks.rank, self._lease.attempt.name)
        report: dict[str, Any] = {"bytes": sum(part.bytes for part in job.copy.parts)}

        def write(job: Job) -> None:
            job.tier.begin_here(job.step)
            job.copy.ready()
            findings = inspect(job.copy.parts)
            entry = write_file(
                job.tier.place,
                job.step,
                name,
                job.copy.parts,
                retries=self._retries,
                moved=lambda mark: job.move(1 + mark),
                given_up=job.given_up,
            )
            report.update({"entry": asdict(entry), **asdict(findings)})

        return report | {"error": error_to_json(self._try(job, write))}

    def _gather(self, job: Job, attempt: int) -> list[dict[str, Any]]:
        """Every rank's report, its own among them."""
        reports = [self._write(job)]
        for rank in range(1, self._ranks.world_size):
            reports.append(self._read(job, f"{attempt}/{rank}"))
            self._mailbox.remove(f"{job.number}/{attempt}/{rank}")
        for note in self._notes:  # who has written for this job has read the end of the last
            self._mailbox.remove(note)
        self._notes.clear()
        return reports

    def _conclude(self, reports: list[dict[str, Any]], job: Job) -> None:
        """Commit what the ranks have written, unless something went wrong with it."""
        # That the run is another copy's is told before anything else: such as that files have
        # vanished, which the other copy has cleared away.
        self._lease.check()
        error = combine_errors([error_from_json(row["error"]) for row in reports])
        if error is not None:
            raise error
        manifest = complete(job.draft, reports)
        content = job.manifest = manifest.to_bytes()
        tier = job.tier
        self._try_again(job, "the commit", lambda: tier.commit(manifest, content, self._lease))

    def _try(self, job: Job, action: Callable[[Job], None]) -> LmscaleError | None:
        """What went wrong with it. A bug is told to the other ranks as well."""
        try:
            location = job.tier.place.location
            with writing("a checkpoint", location, CheckpointError, no_space=NoSpaceError):
                action(job)
        except LmscaleError as error:
            return self._name_cause(error)
        except GivenUpError:
            raise
        except Exception as error:
            logger.exception("the writer of checkpoints has met a bug")
            job.bug = error
            return TransientError(
                f"The checkpoint of step {job.step} could not be written: {error!r}"
            )
        return None

    def _name_cause(self, error: LmscaleError) -> LmscaleError:
        """That the run is another copy's, if it is: that one clears away what this one writes."""
        try:
            self._lease.check()
        except LeaseLostError as lost:
            return lost
        except OSError:
            logger.debug("the lease cannot be read", exc_info=True)
        return error

    def _try_again(self, job: Job, what: str, action: Callable[[], None]) -> None:
        try_again(action, what=what, retries=self._retries, given_up=job.given_up)

    def _make_room(self, job: Job) -> tuple[int, ...]:
        freed: list[int] = []
        location = job.tier.place.location

        def make_room(job: Job) -> None:
            self._lease.check()  # else what is there is another copy's
            freed.extend(job.tier.make_room(job.step))

        failure = self._try(job, make_room)
        if failure is not None:
            logger.warning("no room could be made in %s: %s", location, failure)
        if freed:
            logger.warning(
                "%s is full: what was there of %s was removed to save step %d",
                location,
                name_steps(freed),
                job.step,
            )
        return tuple(freed)

    def _clear(self, job: Job, error: LmscaleError) -> LmscaleError:
        """What a failed save has ended with, once its files are gone, as all ranks have reported.

        They may be what fills the disk, on which the next start, or the next save, needs room.
        """
        if isinstance(error, LeaseLostError):  # they may be another copy's
            return error
        if job.tier.is_shared and not isinstance(error, NoSpaceError):
            return error  # the next start clears them away
        failure = self._try(job, self._drop)
        if isinstance(failure, LeaseLostError):
            return failure
        if failure is not None:
            logger.warning("what is there of step %d stays: %s", job.step, failure)
        return error

    def _drop(self, job: Job) -> None:
        self._lease.check()
        job.tier.drop(job.step)

    def _post(self, job: Job, attempt: int, where: str, value: Any) -> None:
        note = f"{job.number}/{attempt}/{where}"
        self._mailbox.post(note, value)
        self._notes.append(note)

    def _read(self, job: Job, name: str) -> Any:
        value = self._mailbox.read(f"{job.number}/{name}", given_up=job.given_up)
        if value is None:
            raise GivenUpError
        return value
