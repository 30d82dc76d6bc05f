"""A run from its start to its end, in reading order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lmscale.errors import GuardError, LeaseLostError, LmscaleError

if TYPE_CHECKING:
    from lmscale.config import RunConfig
    from lmscale.engine import Engine
    from lmscale.ranks.ranks import Ranks
    from lmscale.runs.attempts import AttemptLog
    from lmscale.runs.stop import StopRequests
    from lmscale.train import Run
    from lmscale.train.after_step import Hooks


logger = logging.getLogger(__name__)
PEER_SECONDS = 0.5  # one `scancel --signal` reaches all ranks within this


def open_session(
    config: RunConfig, ranks: Ranks, stop: StopRequests, began_at: float
) -> str | None:
    """Train on this rank; all ranks call it. Why it stopped early, or None when it finished."""
    from lmscale.runs.stop import StoppedError

    reason: str | None = None
    try:
        _run(config, ranks, stop, began_at)
    except StoppedError as stopped:
        reason = stopped.reason
    except Exception as error:
        reason = _requested_as_well(stop, error)
        if reason is None:
            raise
    stop.consume_file()
    stop.ignore_from_here()
    return reason


def _requested_as_well(stop: StopRequests, error: Exception) -> str | None:
    """The request to stop that has ended another rank first, which is all that went wrong."""
    from lmscale.ranks.ranks import is_lost_connection

    if not is_lost_connection(error):
        return None
    reason = stop.wait(PEER_SECONDS)
    if reason is not None:
        logger.warning("stopped by %s, without saving: another rank had ended before", reason)
    return reason


def _run(config: RunConfig, ranks: Ranks, stop: StopRequests, began_at: float) -> None:
    from lmscale.ranks.collectives import failing_together
    from lmscale.ranks.device import select_device
    from lmscale.ranks.ranks import open_process_group
    from lmscale.runs import faults
    from lmscale.runs.logs import setup_logging
    from lmscale.train import claim_folder, open_run
    from lmscale.train.after_step import open_run_attempt
    from lmscale.train.votes import LEASE_LOST
    from lmscale.watch.watchdog import group_timeout, open_watch

    device = select_device(ranks)
    with ExitStack() as stack:
        stack.enter_context(open_process_group(ranks, device, group_timeout(config.watch)))
        with failing_together():  # before the folder is claimed, which ends an older copy
            planned_faults = faults.read_faults(
                allowed=config.run.allow_faults, world_size=ranks.world_size
            )
        lease = stack.enter_context(claim_folder(config, ranks))
        setup_logging(config.folder, ranks)
        faults.arm(planned_faults, rank=ranks.rank, folder=config.folder)
        stop.discard_stale_file()
        stack.enter_context(open_watch(config.folder, config.watch, ranks))

        def requested(*, is_waiting: bool = False) -> str | None:
            return stop.requested(is_waiting=is_waiting) if lease.still_mine() else LEASE_LOST

        engine: Engine | None = None
        attempt: AttemptLog | None = None
        is_done = False
        while not is_done:
            with open_run(
                *(config, ranks, device),
                lease=lease,
                should_stop=lambda: requested(is_waiting=True) is not None,
                engine=engine,
            ) as run:
                with failing_together():
                    if engine is None and run.start.step < config.train.steps:
                        attempt = stack.enter_context(open_run_attempt(run, began_at))
                    elif attempt is not None:  # rewound, if need be to before where it was to go
                        attempt.rewound(run.start.step)
                engine = run.engine
                is_done = _go_on(run, stop, requested, attempt)


def _go_on(
    run: Run,
    stop: StopRequests,
    requested: Callable[[], str | None],
    attempt: AttemptLog | None,
) -> bool:
    """Train to the end, or (False) until the run has been rewound and must be opened again."""
    from lmscale.guard.guard import RewindRequest
    from lmscale.train.after_step import open_hooks
    from lmscale.train.rewinding import rewind
    from lmscale.train.scoring import complete_evaluation
    from lmscale.train.votes import StopPoll
    from lmscale.watch import heartbeat

    steps = run.config.train.steps
    if run.start.step >= steps:
        complete_evaluation(run, StopPoll(requested))
        logger.info("all %d steps were done before", steps)
        return True
    with open_hooks(run, requested, stop, attempt) as hooks:
        try:
            _train(run, stop, hooks)
        except RewindRequest as request:
            heartbeat.phase("rewind")
            hooks.saver.finish()
            rewind(run, request)
            stop.nothing_to_save(hooks.end)
            return False
        except GuardError:
            _finish_save(hooks)
            raise
    logger.info("finished %d steps", steps)
    return True


def _finish_save(hooks: Hooks) -> None:
    """End the save that may be under way; should it fail, the run ends for what the guard found."""
    try:
        hooks.saver.finish()
    except LeaseLostError:
        raise
    except LmscaleError as error:
        logger.error("%s", error)


def _train(run: Run, stop: StopRequests, hooks: Hooks) -> None:
    from lmscale.runs.stop import StoppedError
    from lmscale.train import train_steps
    from lmscale.train.votes import LEASE_LOST, SAVE_FAILED

    config = run.config
    stop.nothing_to_save(hooks.end)
    try:
        for report in train_steps(
            run.engine,
            run.loader,
            config.engine,
            first_step=run.start.step,
            total_steps=config.train.steps,
            seed=config.run.seed,
            rank=run.ranks.rank,
            stop_requested=hooks.stop_requested,
            save_requested=hooks.save_requested,
            recompute_every_steps=config.guard.recompute_every_steps,
        ):
            stop.something_to_save()
            hooks(report)
        hooks.saver.finish()
    except StoppedError as stopped:
        if stopped.reason == LEASE_LOST:
            raise run.lease.lost_error() from None
        if stopped.reason == SAVE_FAILED:
            hooks.saver.finish()  # raises why
            raise AssertionError("a save had failed, and ended well") from None
        hooks.save_what_is_left()
        logger.info("stopped after step %d: %s", hooks.counter.now.step, stopped.reason)
        hooks.end(stopped.reason)
        raise
