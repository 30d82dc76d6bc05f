"""When a run is saved, and what the loop sees of it: a copy, and later an outcome."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lmscale.checkpoint.fragments import owned_fragments
from lmscale.checkpoint.job import Job
from lmscale.checkpoint.manifest import ASKED, LAST, REGULAR, STOP, Manifest
from lmscale.checkpoint.places.local_tier import LocalTier, open_node_place
from lmscale.checkpoint.save import draft_manifest, live_copy
from lmscale.checkpoint.snapshot import Copy, Snapshot, parts_of
from lmscale.checkpoint.state import RunState
from lmscale.checkpoint.tier import SharedTier, Tier
from lmscale.checkpoint.writer import CheckpointWriter
from lmscale.engine.step_report import StepReport
from lmscale.errors import ConfigError, DataError, LeaseLostError, LmscaleError
from lmscale.files import fault_points
from lmscale.history.history import attempt_of
from lmscale.ranks.collectives import fail_together, failing_together, sum_float64
from lmscale.ranks.mailbox import open_mailbox
from lmscale.runs.trackers import Trackers
from lmscale.stream.ledger import Ledger
from lmscale.train import votes
from lmscale.train.assemble import Run
from lmscale.train.compare import compare_for_save
from lmscale.train.hooks import Hook, ProgressCounter
from lmscale.train.probe import measure_probe
from lmscale.train.progress import StreamPlace
from lmscale.train.retention import RunRetention
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)


class Saver:
    """Saves when a step is due, when somebody asks for it, on a request to stop, and after the last
    step. All ranks make one together and call it in the same order; ``close`` it.

    At most one save is under way. One that is due meanwhile waits for it or is left out, as
    ``checkpoint.when_busy`` says; those for any other reason wait. Never are two in a row left out,
    nor one for the nodes' own disks: in the wait the watchdog notices a writer that hangs.
    """

    def __init__(
        self,
        *,
        run: Run,
        counter: ProgressCounter,
        ledger: Ledger | None,
        trackers: Trackers | None = None,
        more_states: Sequence[RunState] = (),
    ) -> None:
        """``ledger`` and ``trackers`` are rank 0's. Memory for the copy is taken here.

        ``more_states``: what the run keeps over a restart beside its progress and its stream.
        """
        self.saved_step: int | None = None  # the last one that all ranks know to be committed
        self.waited_step: int | None = None  # after which the loop has waited for a save
        self._run, self._counter, self._ledger = run, counter, ledger
        self._trackers = trackers
        stream = StreamPlace(run.stream, lambda: counter.now.n)
        origin = () if run.origin is None else (run.origin,)
        self._states: Sequence[RunState] = (counter, stream, *origin, *more_states)
        if trackers is not None:
            trackers.on_refusal = self.refuse
        self._refusal: LmscaleError | None = None
        self._job: Job | None = None  # until all ranks have seen its outcome
        self._untold: tuple[Job, dict[str, float]] | None = None  # what a save has cost the loop
        self._has_left_one_out = False  # the last save that was due; alike on all ranks
        with failing_together():
            # A checkpoint tells of which attempt it is (local_tier.describe_superseded).
            attempt = attempt_of(run.folder) if run.ranks.is_first else {}
            self._local_tier = self._open_local_tier(attempt)
        retention = RunRetention(run)
        self._tier = SharedTier(
            run.place,
            written_by=attempt,
            replace=retention.replace,
            tidy=retention.tidy,
            make_room=retention.make_room,
        )
        self._snapshot = self._open_snapshot() if run.config.checkpoint.asynchronous else None
        self._writer = CheckpointWriter(
            run.ranks,
            open_mailbox(run.ranks),
            lease=run.lease,
            retries=run.config.checkpoint.retries,
            prepare=self._prepare,
        )

    def _open_local_tier(self, attempt: Mapping[str, Any]) -> LocalTier | None:
        run = self._run
        place = open_node_place(run.config)
        if place is None:
            return None
        return LocalTier(
            place,
            run.ranks,
            attempt=attempt,
            every_minutes=run.config.checkpoint.local.every_minutes,
            first_step=run.start.step,
        )

    def _open_snapshot(self) -> Snapshot:
        engine = self._run.engine
        with failing_together():
            try:
                return Snapshot(parts_of(owned_fragments(engine)), engine.device)
            except RuntimeError as error:
                raise ConfigError(
                    "checkpoint.asynchronous = true takes as much host memory as a rank's part of "
                    f"a checkpoint, which is not there: {str(error).splitlines()[0]} Save with "
                    "--set checkpoint.asynchronous=false, or use more nodes."
                ) from error
        raise AssertionError("failing_together raises what was raised in it")

    def __call__(self, report: StepReport) -> None:
        """Not for a step of which nothing may be kept: ``Hooks`` ends before that."""
        self.tell()
        config = self._run.config
        if votes.ASKED in report.save_for:
            reason = ASKED
        elif report.stop_reason is not None:
            reason = STOP
        elif report.step == config.train.steps:
            reason = LAST
        elif report.step % config.checkpoint.every_steps == 0:
            reason = REGULAR
        elif votes.LOCAL in report.save_for and self._local_tier is not None:
            self._save_locally(self._local_tier)
            return
        else:
            return
        is_over = report.stop_reason is not None or report.step == config.train.steps
        self.save(reason=reason, wait=is_over)

    def save(self, *, reason: str = REGULAR, wait: bool = True) -> None:
        """Save the steps done so far. All ranks together.

        ``wait``: return when it is committed. Without, when the copy is taken. Raises what went
        wrong with the save before, and with this one where it is waited for.
        """
        checkpoint = self._run.config.checkpoint
        heartbeat.phase("save")
        began_at = time.monotonic()
        may_skip = (
            reason == REGULAR
            and checkpoint.when_busy == "skip"
            and not self._has_left_one_out
            and (self._job is None or self._job.tier.is_shared)
        )
        step = self._counter.now.step
        self._has_left_one_out = not self._make_way(may_skip=may_skip)
        if self._has_left_one_out:
            logger.warning("step %d is not saved: the last save is still under way", step)
        elif step != self.saved_step:
            # Else it is saved already, as when a stop is asked for at a step that was due.
            waits = wait or not checkpoint.asynchronous
            self._start(self._tier, reason, began_at, waits=waits)

    def _save_locally(self, tier: LocalTier) -> None:
        """The same to the nodes' own disks, unless a save is under way: then at the next step."""
        heartbeat.phase("save")
        began_at = time.monotonic()
        if self._make_way(may_skip=True):
            waits = not self._run.config.checkpoint.asynchronous
            self._start(tier, REGULAR, began_at, waits=waits)

    def _start(self, tier: Tier, reason: str, began_at: float, *, waits: bool) -> None:
        step = self._counter.now.step
        waited_seconds = time.monotonic() - began_at
        if self._local_tier is not None:
            self._local_tier.restart_clock()
        compare_for_save(self._run, step)
        heartbeat.phase("save")
        draft = self._draft(reason, tier)
        fault_points.hit("save.copy", step=step)
        copy_at = time.monotonic()
        copy = self._copy()
        copied_at = time.monotonic()
        job = self._writer.start(step=step, tier=tier, copy=copy, draft=draft)
        self._job = job
        if waits:
            self._settle(job)
        costs = {
            "stopped_seconds": time.monotonic() - began_at,
            "copy_seconds": copied_at - copy_at,
            "waited_seconds": waited_seconds,
        }
        self._untold = job, costs
        self.tell()

    def failed(self) -> bool:
        """Whether this rank knows that nothing can be saved any more: it votes ``SAVE_FAILED``."""
        job = self._job
        if self.has_refused or job is None:
            return self.has_refused
        # A save to the nodes' own disks may fail, unless its writers have lost each other.
        return job.has_failed and (job.tier.is_shared or not job.is_agreed)

    def wants(self) -> tuple[str, ...]:
        """Why this rank would have a step saved that is not due by its number."""
        tier = self._local_tier
        is_due = tier is not None and self._run.ranks.is_first and tier.is_due()
        return (votes.LOCAL,) if is_due else ()

    @property
    def committed_step(self) -> int | None:
        """The last one that this rank knows to be committed, before all ranks do."""
        job = self._job
        if job is not None and job.tier.is_shared and job.done.is_set() and job.saved is not None:
            return job.step
        return self.saved_step

    @property
    def has_refused(self) -> bool:
        return self._refusal is not None

    def refuse(self, error: LmscaleError) -> None:
        """Save nothing from here on, and have all ranks end with this error of rank 0.

        As when the ledger lacks a row: no checkpoint may know of that step.
        """
        if self._refusal is None:
            logger.error("%s", error)
            self._refusal = error

    def finish(self) -> None:
        """Wait for what is under way, and raise its error, or ``refuse``'s. All ranks together."""
        heartbeat.phase("save")
        if self._job is not None:
            self._settle(self._job)
        self.tell()
        fail_together(self._refusal)

    def close(self) -> None:
        """Give up what is under way and free the memory. ``finish`` first, in good order."""
        if self._writer.close() and self._snapshot is not None:
            self._snapshot.close()

    def tell(self) -> None:
        """Say what the last save has cost, once, as soon as this rank knows its outcome."""
        if self._untold is None or not self._untold[0].is_over:
            return
        (job, costs), self._untold = self._untold, None
        if job.saved is None:
            return
        saved = job.saved
        logger.info(
            "saved %s%s: %.1f MB in %.2f s, training stopped for %.3f s",
            saved.name.rpartition("/")[2],
            job.tier.where,
            saved.bytes / 1e6,
            saved.seconds,
            costs["stopped_seconds"],
        )
        if self._trackers is None or self.has_refused:
            return
        figures = {
            **costs,
            "commit_seconds": saved.seconds,
            "bytes": float(saved.bytes),
            "gigabytes_per_second": saved.bytes / 1e9 / max(saved.seconds, 1e-9),
        }
        named = {f"{job.tier.page}/{name}": value for name, value in figures.items()}
        self._trackers.log(self._counter.now.step, named)

    def _make_way(self, *, may_skip: bool) -> bool:
        """Whether a save may begin: none is under way any more. All ranks get the same answer."""
        job = self._job
        if job is None:
            return True
        if may_skip:
            done = sum_float64([job.done.is_set()])[0]
            if done < self._run.ranks.world_size:
                return False
        self._settle(job)
        self.tell()
        return True

    def _settle(self, job: Job) -> None:
        """Wait for it on all ranks, and take note of the outcome."""
        self._job, self.waited_step = None, self._counter.now.step
        try:
            saved = self._writer.wait(job)
        except LeaseLostError:
            raise
        except LmscaleError as error:
            if job.tier.is_shared or job.is_cut_off:
                raise
            # The shared place is what a run relies on.
            logger.warning("step %d is not on the nodes' own disks: %s", job.step, error)
        else:
            if job.tier.is_shared:
                self.saved_step = saved.step
                is_last = saved.is_finite and saved.step == self._run.config.train.steps
                if is_last and self._local_tier is not None:
                    self._local_tier.clear()

    def _draft(self, reason: str, tier: Tier) -> Manifest | None:
        """Rank 0's manifest, but for what the files' writers know."""
        run = self._run
        windows = run.config.checkpoint.probe_windows
        probe = None
        if windows:
            try:
                probe = measure_probe(run.engine, run.stream, run.preparation, windows=windows)
            except DataError as error:  # such as of a source that has left the mixture since
                logger.warning("checkpoint.probe_windows: no loss goes with this save: %s", error)
        if not run.ranks.is_first:
            return None
        return draft_manifest(
            run.engine,
            step=self._counter.now.step,
            states=self._states,
            identity=run.identity,
            reason=reason,
            rewinds=len(run.history.rewinds),
            probe=probe,
            written_by=tier.written_by,
        )

    def _copy(self) -> Copy:
        engine = self._run.engine
        if self._snapshot is None:
            return live_copy(engine)
        return self._snapshot.take(parts_of(owned_fragments(engine)), engine.before_update)

    def _prepare(self) -> None:
        """Before anything is written, in the writer's thread of rank 0."""
        if self._refusal is not None:
            raise self._refusal
        if self._ledger is not None:
            self._ledger.sync()  # no checkpoint may know of steps that the ledger lacks


def writing_rows(hook: Hook, saver: Saver) -> Hook:
    """A hook of rank 0 that appends rows: once a row is refused, as on a full disk, it does nothing
    any more, and the saver has all ranks end together.
    """

    def wrapped(report: StepReport) -> None:
        if saver.has_refused:
            return
        try:
            hook(report)
        except LmscaleError as error:
            saver.refuse(error)

    return wrapped
