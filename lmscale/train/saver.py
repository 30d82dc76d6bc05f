"""When a run is saved, and what the loop sees of it: a copy, and later an outcome."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

from lmscale.checkpoint.fragments import owned_fragments
from lmscale.checkpoint.manifest import ASKED, LAST, REGULAR, STOP, Manifest, RunStates
from lmscale.checkpoint.places.local_tier import LocalTier, open_node_place
from lmscale.checkpoint.snapshot import Snapshot, draft_manifest, live_copy, parts_of
from lmscale.checkpoint.tier import Job, SharedTier, Tier
from lmscale.checkpoint.writer import CheckpointWriter
from lmscale.engine.engine import Engine
from lmscale.engine.step_report import StepReport
from lmscale.errors import ConfigError, DataError, LeaseLostError, LmscaleError
from lmscale.files import fault_points
from lmscale.history.history import attempt_of
from lmscale.ranks.collectives import fail_together, failing_together, sum_float64
from lmscale.ranks.mailbox import open_mailbox
from lmscale.runs.origins import BRANCH, INITIAL
from lmscale.runs.trackers import Trackers
from lmscale.stream.ledger import Ledger
from lmscale.train import votes
from lmscale.train.assemble import Run
from lmscale.train.class_weights import CLASS_WEIGHTS
from lmscale.train.compare import compare_for_save
from lmscale.train.kept import build_retention
from lmscale.train.probe import measure_probe
from lmscale.train.progress import PROGRESS, STREAM, ProgressCounter
from lmscale.train.teacher import TEACHER
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
        more_states: RunStates | None = None,
    ) -> None:
        """``ledger`` and ``trackers`` are rank 0's. Memory for the copy is taken here.

        ``more_states``: what the run keeps over a restart beside its progress and its stream.
        """
        self.saved_step: int | None = None  # the last one that all ranks know to be committed
        self.waited_step: int | None = None  # after which the loop has waited for a save
        self._is_finite, self._last_step = False, run.config.train.steps  # the former of that save
        self._run, self._counter, self._ledger = run, counter, ledger
        self._trackers = trackers
        # Runs that this one has to do with.
        others = ((INITIAL, run.origin), (BRANCH, run.branch), (TEACHER, run.teacher))
        others = (*others, (CLASS_WEIGHTS, run.class_weights))
        self._states: RunStates = {
            PROGRESS: counter.to_json,
            STREAM: lambda: run.stream.state_at(counter.now.n).to_json(),
            **{name: what.to_json for name, what in others if what is not None},
            **(more_states or {}),
        }
        if trackers is not None:
            trackers.on_refusal = self.refuse
        self._refusal: LmscaleError | None = None
        self._job: Job | None = None  # until all ranks have seen its outcome
        self._untold: tuple[Job, dict[str, float]] | None = None  # what a save has cost the loop
        self._has_left_one_out = False  # the last save that was due; alike on all ranks
        config, engine = run.config.checkpoint, run.engine
        self._attempt: dict[str, Any] = {}  # rank 0's: a checkpoint tells of which attempt it is
        self._local_tier: LocalTier | None = None
        self._snapshot: Snapshot | None = None
        with failing_together():
            if run.ranks.is_first:
                self._attempt = attempt_of(run.folder)
            node_place = open_node_place(run.config)
            if node_place is not None:
                self._local_tier = LocalTier(
                    node_place,
                    run.ranks,
                    every_minutes=config.local.every_minutes,
                    first_step=run.start.step,
                )
            if config.asynchronous:
                self._snapshot = _allocate_snapshot(engine)
        self._tier = SharedTier(run.place, build_retention(run))
        self._writer = CheckpointWriter(
            run.ranks,
            open_mailbox(run.ranks),
            lease=run.lease,
            retries=config.retries,
            prepare=self._prepare,
        )

    def __call__(self, report: StepReport) -> None:
        """Not for a step of which nothing may be kept: ``AfterStep`` ends before that."""
        self.tell()
        config = self._run.config
        is_last = report.step == config.train.steps
        if votes.ASKED in report.save_for:
            reason = ASKED
        elif report.stop_reason is not None:
            reason = STOP
        elif is_last:
            reason = LAST
        elif report.step % config.checkpoint.every_steps == 0:
            reason = REGULAR
        else:
            if votes.LOCAL in report.save_for and self._local_tier is not None:
                # Unless a save is under way: then at the next step.
                self._save(self._local_tier, REGULAR, may_skip=True)
            return
        self.save(reason=reason, wait=report.stop_reason is not None or is_last)

    def save(self, *, reason: str = REGULAR, wait: bool = True) -> None:
        """Save the steps done so far. All ranks together.

        ``wait``: return when it is committed. Without, when the copy is taken. Raises what went
        wrong with the save before, and with this one where it is waited for.
        """
        may_skip = (
            reason == REGULAR
            and self._run.config.checkpoint.when_busy == "skip"
            and not self._has_left_one_out
            and (self._job is None or self._job.tier.is_shared)
        )
        has_begun = self._save(self._tier, reason, may_skip=may_skip, wait=wait)
        self._has_left_one_out = not has_begun
        if not has_begun:
            step = self._counter.now.step
            logger.warning("step %d is not saved: the last save is still under way", step)

    def save_last(self) -> None:
        """Save the step with which the run ends, though it is not ``train.steps``."""
        self._last_step = self._counter.now.step
        self.save(reason=LAST)
        self._clear_local_tier()  # which saw another step as the last one, if it was saved before

    def _save(self, tier: Tier, reason: str, *, may_skip: bool, wait: bool = False) -> bool:
        """False, and the same on all ranks, where it was left out as another is under way."""
        heartbeat.phase("save")
        began_at = time.monotonic()
        before, step = self._job, self._counter.now.step
        if before is not None:
            is_done = before.done.is_set()
            if may_skip and sum_float64([is_done])[0] < self._run.ranks.world_size:
                return False
            self._settle(before)
            self.tell()
        if tier.is_shared and step == self.saved_step:
            return True  # as when a stop is asked for at a step that was due
        engine, way_at = self._run.engine, time.monotonic()
        if self._local_tier is not None:
            self._local_tier.restart_clock()
        compare_for_save(self._run, step)
        heartbeat.phase("save")
        draft = self._draft(reason, tier)
        fault_points.hit("save.copy", step=step)
        copy_at = time.monotonic()
        if self._snapshot is None:
            copy = live_copy(engine)
        else:
            copy = self._snapshot.take(parts_of(owned_fragments(engine)), engine.before_update)
        copied_at = time.monotonic()
        job = self._job = self._writer.start(step=step, tier=tier, copy=copy, draft=draft)
        if wait or self._snapshot is None:
            self._settle(job)
        costs = {
            "stopped_seconds": time.monotonic() - began_at,
            "copy_seconds": copied_at - copy_at,
            "waited_seconds": way_at - began_at,
        }
        self._untold = job, costs
        self.tell()
        return True

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
                self.saved_step, self._is_finite = saved.step, saved.is_finite
                self._clear_local_tier()

    def _clear_local_tier(self) -> None:
        """Once the run's last step is committed on the shared one."""
        is_last = self._is_finite and self.saved_step == self._last_step
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
        step = self._counter.now.step
        draft = draft_manifest(run.engine, step=step, states=self._states, identity=run.identity)
        return replace(
            draft,
            reason=reason,
            rewinds=len(run.history.rewinds),
            probe=probe,
            written_by={**draft.written_by, **self._attempt, **tier.written_by},
        )

    def _prepare(self) -> None:
        """Before anything is written, in the writer's thread of rank 0."""
        if self._refusal is not None:
            raise self._refusal
        if self._ledger is not None:
            self._ledger.sync()  # no checkpoint may know of steps that the ledger lacks
        if self._trackers is not None and self._run.config.evaluation.stop.metric:
            self._trackers.sync()  # nor of figures on which the run's end rests


def _allocate_snapshot(engine: Engine) -> Snapshot:
    try:
        return Snapshot(parts_of(owned_fragments(engine)), engine.device)
    except RuntimeError as error:
        raise ConfigError(
            "checkpoint.asynchronous = true takes as much host memory as a rank's part of a "
            f"checkpoint, which is not there: {str(error).splitlines()[0]} Save with --set "
            "checkpoint.asynchronous=false, or use more nodes."
        ) from error
