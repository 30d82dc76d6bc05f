"""``lmscale train CONFIG``: train or resume, as one rank of those launched, or alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer

from lmscale.cli.options import ConfigArgument, SetOption
from lmscale.errors import EXIT_RESUMABLE, GuardError, LeaseLostError, LmscaleError

if TYPE_CHECKING:
    from lmscale.cli.train_hooks import Hooks
    from lmscale.config import RunConfig
    from lmscale.engine import Engine
    from lmscale.runtime.attempts import AttemptLog
    from lmscale.runtime.ranks import Ranks
    from lmscale.runtime.stop import StopRequests
    from lmscale.train import Run

logger = logging.getLogger(__name__)

PEER_SECONDS = 0.5  # one `scancel --signal` reaches all ranks within this


def train(config: ConfigArgument, set_: SetOption = None) -> None:
    """Train CONFIG, from its newest checkpoint if it has one.

    Exit codes: 0 finished; 75 ended early and resumable, on request, or with a message that says
    why; 76 stopped by the guard; 2 something to mend; 1 a failure that may pass, or a bug. To start
    several ranks use `lmscale launch`.
    """
    from lmscale.config import load_config

    stop_reason = run_training(load_config(config, set_ or ()))
    if stop_reason is not None:
        raise typer.Exit(EXIT_RESUMABLE)


def run_training(config: RunConfig) -> str | None:
    """Train on this rank; all ranks call it. Why it stopped early, or None when it finished."""
    began_at = time.time()
    from lmscale.runtime.ranks import ranks_from_environment
    from lmscale.runtime.stop import StoppedError, StopRequests

    ranks = ranks_from_environment()
    reason: str | None = None
    with StopRequests(config.folder, watch_file=ranks.is_first) as stop:
        stop.nothing_to_save()
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
    from lmscale.runtime.ranks import is_lost_connection

    if not is_lost_connection(error):
        return None
    reason = stop.wait(PEER_SECONDS)
    if reason is not None:
        logger.warning("stopped by %s, without saving: another rank had ended before", reason)
    return reason


def _run(config: RunConfig, ranks: Ranks, stop: StopRequests, began_at: float) -> None:
    from lmscale.cli.train_hooks import open_run_attempt
    from lmscale.runtime import faults
    from lmscale.runtime.collectives import failing_together
    from lmscale.runtime.device import select_device
    from lmscale.runtime.logs import setup_logging
    from lmscale.runtime.ranks import open_process_group
    from lmscale.runtime.votes import LEASE_LOST
    from lmscale.runtime.watchdog import group_timeout, open_watch
    from lmscale.train import claim_folder, open_run

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
    from lmscale.cli.train_hooks import open_hooks
    from lmscale.evaluation.in_loop import complete_evaluation
    from lmscale.runtime import heartbeat
    from lmscale.runtime.votes import StopPoll
    from lmscale.train.guard import RewindRequest
    from lmscale.train.rewinding import rewind

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
    from lmscale.runtime.stop import StoppedError
    from lmscale.runtime.votes import LEASE_LOST, SAVE_FAILED
    from lmscale.train import train_steps

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
