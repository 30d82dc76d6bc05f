"""A run from its start to its end, in reading order.

::

    train_run          the ranks meet, the folder is claimed, the watch begins
      open_run         from the newest good checkpoint; again after every rewind
        train_steps    for each report: after_step(report)
      rewind           back to a checkpoint from before a divergence

Requests to stop are heard all the way: ``runs/stop.py``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

from lmscale.checkpoint.find import Search
from lmscale.checkpoint.manifest import Manifest
from lmscale.config import RunConfig
from lmscale.errors import (
    EXIT_USER,
    CheckpointError,
    GuardError,
    LeaseLostError,
    LmscaleError,
    RefusedError,
    TransientError,
)
from lmscale.evaluation.default_tasks import check_names
from lmscale.files.progress import progress
from lmscale.guard.divergence import Divergence, describe_no_checkpoint, plan_rewind
from lmscale.guard.guard import RewindRequest, stop_error
from lmscale.history.history import History, read_history, record_rewind
from lmscale.ranks.binding import bind_rank
from lmscale.ranks.collectives import failing_together, gather_json
from lmscale.ranks.device import select_device
from lmscale.ranks.exits import says_peer_gone
from lmscale.ranks.ranks import Ranks, is_lost_connection, open_process_group
from lmscale.ranks.slow import Seat, find_slow, take_seat
from lmscale.runs import faults
from lmscale.runs.attempts import AttemptLog, find_good_end, read_attempts
from lmscale.runs.goodput import FINISHED
from lmscale.runs.lease import Lease
from lmscale.runs.leftovers import remove_leftovers
from lmscale.runs.logs import IN_FILE_ALONE, setup_logging
from lmscale.runs.profiles import ProfilePlan
from lmscale.runs.stop import StoppedError, StopRequests
from lmscale.train.after_step import AfterStep, open_after_step
from lmscale.train.assemble import Run, open_run
from lmscale.train.early_stop import GO_ON
from lmscale.train.exporting import check_packages, open_exporter
from lmscale.train.folder import claim_folder
from lmscale.train.kept import let_go_of_exported
from lmscale.train.loop import train_steps
from lmscale.train.precision import settle_precision
from lmscale.train.progress import read_progress
from lmscale.train.scoring import complete_evaluation
from lmscale.train.votes import LEASE_LOST, SAVE_FAILED, StopPoll
from lmscale.watch import heartbeat
from lmscale.watch.watchdog import group_timeout, open_watch

logger = logging.getLogger(__name__)
PEER_SECONDS = 0.5  # for the signal that may have ended the others to reach this rank too


def train_run(
    config: RunConfig,
    ranks: Ranks,
    stop: StopRequests,
    began_at: float,
    profile: ProfilePlan | None = None,
) -> str | None:
    """Train on this rank; all ranks call it. Why it stopped early, or None when it finished.

    ``began_at``: when the process began, seconds since 1970. Raises ``LmscaleError``.
    """
    reason: str | None = None
    try:
        with open_session(config, ranks, stop) as (device, lease):
            config = settle_precision(config, ranks, device)
            _train_with_rewinds(config, ranks, device, lease, stop, began_at, profile)
    except StoppedError as stopped:
        reason = stopped.reason
    except Exception as error:
        # Of several ranks, the launcher does it when all have ended.
        if getattr(error, "exit_code", None) == EXIT_USER and ranks.world_size == 1:
            remove_leftovers(config.folder)
        if not is_lost_connection(error):
            raise
        reason = stop.wait(PEER_SECONDS)  # the request that has ended another rank first
        # torch raises no OSError of its connections: that is of a store's, or of a pipe.
        if reason is None and (isinstance(error, LmscaleError | OSError) or ranks.world_size == 1):
            raise
        if reason is None:
            raise _lost_peer(error) from error
        logger.warning("stopped by %s, without saving: another rank had ended before", reason)
    stop.consume_file()
    stop.ignore_from_here()
    return reason


@contextmanager
def open_session(
    config: RunConfig, ranks: Ranks, stop: StopRequests
) -> Iterator[tuple[torch.device, Lease]]:
    """Have the ranks meet and claim the run's folder, which ends an older copy of the run."""
    device = select_device(ranks)
    bound = bind_rank(ranks, device)
    with ExitStack() as stack:
        stack.enter_context(open_process_group(ranks, device, group_timeout(config.watch)))
        with failing_together():  # before the folder is claimed
            if ranks.is_first:
                check_packages(config.export)
            planned_faults = faults.read_faults(
                allowed=config.run.allow_faults, world_size=ranks.world_size
            )
            if ranks.is_first and config.evaluation.tasks:
                check_names(config.evaluation.tasks, config.evaluation.tasks_include_path or None)
        lease = stack.enter_context(claim_folder(config, ranks))
        setup_logging(config.folder, ranks)
        if bound:
            logger.info("rank %d: %s", ranks.rank, bound)
        faults.arm(planned_faults, rank=ranks.rank, folder=config.folder)
        stop.discard_stale_file()
        stack.enter_context(open_watch(config.folder, config.watch, ranks))
        yield device, lease


def _train_with_rewinds(
    config: RunConfig,
    ranks: Ranks,
    device: torch.device,
    lease: Lease,
    stop: StopRequests,
    began_at: float,
    profile: ProfilePlan | None,
) -> None:
    """Open the run and train it, anew after every rewind, with the engine of before."""

    def stop_reason() -> str | None:
        """Why this rank would stop after the step under way."""
        return stop.requested() if lease.still_mine() else LEASE_LOST

    def should_stop() -> bool:
        """For a rank that waits for data, which may never come."""
        return not lease.still_mine() or stop.requested(is_waiting=True) is not None

    warn_of_slow(config, ranks, on_cpu=device.type == "cpu")
    engine, attempt, is_done = None, None, False
    with ExitStack() as stack:
        while not is_done:
            with ExitStack() as opened:
                with progress("opening the run") if ranks.is_first else nullcontext():
                    opening = open_run(
                        config, ranks, device, lease=lease, should_stop=should_stop, engine=engine
                    )
                    run = opened.enter_context(opening)
                with failing_together():
                    if engine is None and ranks.is_first and has_news(run):
                        attempt = stack.enter_context(open_run_attempt(run, began_at))
                    elif attempt is not None:  # rewound, perhaps to before its first step
                        attempt.rewound(run.start.step)
                engine = run.engine
                is_done = train_until_rewound(run, stop, stop_reason, attempt, profile)


def warn_of_slow(config: RunConfig, ranks: Ranks, *, on_cpu: bool) -> None:
    """All ranks together: who shares a core with whom, none of them knows alone."""
    seats = [Seat(*seat) for seat in gather_json(take_seat())] if on_cpu else []
    if ranks.is_first:
        for slow in find_slow(config.engine.precision, on_cpu=on_cpu, seats=seats):
            logger.warning("%s", slow.line)


def has_news(run: Run) -> bool:
    """Whether this start is an attempt: the run goes on, or its end was never written down."""
    return find_good_end(read_attempts(run.folder)) != run.good_end


def open_run_attempt(run: Run, began_at: float) -> AbstractContextManager[AttemptLog]:
    """Rank 0's record of this start, which goes on over rewinds."""
    return AttemptLog(
        run.folder,
        first_step=run.start.step,
        world_size=run.ranks.world_size,
        zero_stage=run.config.engine.zero_stage,
        began_at=began_at,
    )


def train_until_rewound(
    run: Run,
    stop: StopRequests,
    stop_reason: Callable[[], str | None],
    attempt: AttemptLog | None,
    profile: ProfilePlan | None = None,
) -> bool:
    """Train to the end (True), or until the run has been rewound and must be opened again."""
    steps = run.config.train.steps

    def end(reason: str) -> None:
        if attempt is not None:
            attempt.end(reason)

    if run.good_end is not None:
        stop.leave_unless(lambda: False, end)
        try:
            complete_evaluation(run, StopPoll(stop_reason))
        except StoppedError as stopped:
            if stopped.reason == LEASE_LOST:
                raise run.lease.lost_error() from None
            end(stopped.reason)
            raise
        end(run.good_end)
        with open_exporter(run, lambda: None) as exporter:
            exporter.finish(lambda: stop_reason() is not None)
        let_go_of_exported(run)
        is_early = run.good_end != FINISHED
        logger.info("%s", run.good_end if is_early else f"all {steps} steps were done before")
        return True

    early_stop: str | None = None
    with open_after_step(run, stop, stop_reason, attempt, profile) as after_step:
        stop.leave_unless(after_step.has_work, end)
        try:
            _train(run, after_step)
            early_stop = after_step.evaluator.early_stop
            if early_stop is not None:
                end(early_stop)
            after_step.finish_exports()
        except StoppedError as stopped:
            end(stopped.reason)
            raise
        except RewindRequest as request:
            heartbeat.phase("rewind")
            after_step.saver.finish()
            rewind(run, request)
            stop.leave_unless(lambda: False, end)
            return False
        except GuardError:
            try:
                after_step.saver.finish()
            except LeaseLostError:
                raise
            except LmscaleError as error:  # the run ends for what the guard has found
                logger.error("%s", error)
            raise
    logger.info("%s", f"{early_stop}. {GO_ON}" if early_stop else f"finished {steps} steps")
    return True


def _train(run: Run, after_step: AfterStep) -> None:
    """All steps that are left, or are worth it. Raises ``StoppedError`` once a stop was agreed and
    all is saved.
    """
    evaluator = after_step.evaluator
    try:
        reports = train_steps(
            run.engine,
            run.loader,
            run.config,
            first_step=run.start.step,
            mixture=run.stream.mixture,
            stop=after_step.stop_reason,
            save=after_step.save_reasons,
        )
        evaluator.score_owed()
        while evaluator.early_stop is None and (report := next(reports, None)) is not None:
            after_step(report)
        if evaluator.early_stop is not None:
            after_step.end_early()
        after_step.saver.finish()
    except StoppedError as stopped:
        if stopped.reason == LEASE_LOST:
            raise run.lease.lost_error() from None
        if stopped.reason == SAVE_FAILED:
            after_step.saver.finish()  # raises why
            raise AssertionError("a save had failed, and ended well") from None
        after_step.save_what_is_left()
        logger.info("stopped after step %d: %s", after_step.counter.now.step, stopped.reason)
        raise


def rewind(run: Run, request: RewindRequest) -> None:
    """Decide to which checkpoint the run goes back, and write it down. All ranks together.

    Once this has returned, or was killed after the row was written, every start of the run goes on
    from there. Raises ``GuardError`` on all ranks where no checkpoint is old enough and whole, and
    ``RefusedError`` where one may not be looked at.
    """
    divergence, rewinds = request.divergence, run.history.rewinds
    target, why_none = _find_target(run, divergence)
    with failing_together():
        if run.ranks.is_first:
            run.lease.check()
            planned = plan_rewind(
                divergence,
                {} if target is None else {target.step: _samples_of(target)},
                number=len(rewinds) + 1,
                time=time.time(),
                segments=run.stream.segments,
            )
            assert (planned is None) == (target is None), "all ranks do what the row says"
            if planned is not None:
                record_rewind(run.folder, planned)
        heartbeat.tick()
    if target is None:
        raise stop_error(divergence, run.config.guard, rewinds, problem=why_none)


def _find_target(run: Run, divergence: Divergence) -> tuple[Manifest | None, str]:
    """The newest checkpoint from before the samples in question, or why there is none.

    Verified by all ranks together: once the row is written there is no way back to a newer one.
    """
    history = History()
    with failing_together():
        if run.ranks.is_first:  # who alone is asked
            history = read_history(run.folder)

    def unfit(manifest: Manifest) -> str | None:
        try:
            num_samples = _samples_of(manifest)
        except CheckpointError as error:
            return "; ".join(error.problems)
        if manifest.step > divergence.not_after_step:
            return "is not from before the samples that the guard suspects"
        if num_samples > divergence.jump_from_n:
            return "has used some of the samples that the guard suspects"
        return history.undone(manifest)

    search = Search([run.place], run.ranks, identity=run.identity, undone=unfit)
    problems: tuple[str, ...] = ()
    try:
        candidate = next(search, None)
    except RefusedError:  # it may be the one to go back to
        raise
    except CheckpointError as error:  # on all ranks alike
        candidate, problems = None, error.problems
    if candidate is not None:
        return candidate.manifest, ""
    reasons = {why for passed in search.passed_over for why in passed.why}
    more = [problem for problem in problems if problem not in reasons]
    return None, "\n".join([describe_no_checkpoint(divergence, search.passed_over), *more])


def _samples_of(manifest: Manifest) -> int:
    return read_progress(manifest, where=f"the checkpoint of step {manifest.step}").n


def _lost_peer(error: Exception) -> TransientError:
    """In place of the library's pages about a connection, which go to this rank's log alone."""
    logger.error("another rank is gone", exc_info=error, extra=IN_FILE_ALONE)
    lines = str(error).splitlines() or [""]
    said = next(filter(says_peer_gone, lines), lines[0])[:300]
    return TransientError(
        f"Another rank ended, or cannot be reached any more ({type(error).__name__}: {said}). That "
        "rank's own words say why; this one ends as well."
    )
