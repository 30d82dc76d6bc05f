"""``lmscale train CONFIG``: train or resume, as one rank of those launched, or alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from lmscale.cli.options import ConfigArgument, SetOption
from lmscale.errors import EXIT_RESUMABLE

if TYPE_CHECKING:
    from lmscale.config import RunConfig
    from lmscale.evaluation.in_loop import Evaluator
    from lmscale.runtime.goodput import AttemptLog
    from lmscale.runtime.ranks import Ranks
    from lmscale.runtime.stop import StopRequests
    from lmscale.runtime.votes import StopPoll
    from lmscale.train import Run, StepReport
    from lmscale.train.hooks import Hook, ProgressCounter, Saver

logger = logging.getLogger(__name__)

PEER_SECONDS = 0.5  # one `scancel --signal` reaches all ranks within this


def train(config: ConfigArgument, set_: SetOption = None) -> None:
    """Train CONFIG, from its newest checkpoint if it has one.

    Exit codes: 0 finished; 75 stopped early on request and resumable; 76 stopped by the guard;
    2 something to mend; 1 a failure that may pass, or a bug. To start several ranks use
    `lmscale launch`.
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
    from lmscale.evaluation.in_loop import complete_evaluation
    from lmscale.runtime.device import select_device
    from lmscale.runtime.logs import setup_logging
    from lmscale.runtime.ranks import open_process_group
    from lmscale.runtime.votes import LEASE_LOST, StopPoll
    from lmscale.runtime.watchdog import group_timeout, open_watch
    from lmscale.train import claim_folder, open_run

    device = select_device(ranks)
    with ExitStack() as stack:
        stack.enter_context(open_process_group(ranks, device, group_timeout(config.watch)))
        lease = stack.enter_context(claim_folder(config, ranks))
        setup_logging(config.folder, ranks)
        stop.discard_stale_file()
        stack.enter_context(open_watch(config.folder, config.watch, ranks))

        def requested(*, is_waiting: bool = False) -> str | None:
            return stop.requested(is_waiting=is_waiting) if lease.still_mine() else LEASE_LOST

        run = stack.enter_context(
            open_run(
                *(config, ranks, device),
                lease=lease,
                should_stop=lambda: requested(is_waiting=True) is not None,
            )
        )
        poll = StopPoll(requested)
        if run.start.step < config.train.steps:
            _train(run, stop, poll, began_at)
        else:
            complete_evaluation(run, poll)
            logger.info("all %d steps were done before", config.train.steps)


def _train(run: Run, stop: StopRequests, poll: StopPoll, began_at: float) -> None:
    from lmscale.runtime.stop import StoppedError
    from lmscale.runtime.votes import LEASE_LOST
    from lmscale.train import train_steps

    config = run.config
    with _open_hooks(run, poll, began_at) as hooks:
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
                stop_requested=poll.requested,
            ):
                stop.something_to_save()
                hooks(report)
        except StoppedError as stopped:
            if stopped.reason == LEASE_LOST:
                raise run.lease.lost_error() from None
            hooks.save_what_is_left()
            logger.info("stopped after step %d: %s", hooks.counter.now.step, stopped.reason)
            hooks.end(stopped.reason)
            raise
    logger.info("finished %d steps", config.train.steps)


@dataclass(frozen=True, kw_only=True)
class _Hooks:
    """What follows a step on this rank, and what follows the last one."""

    run: Run
    each: tuple[Hook, ...]  # in the order in which they are called
    counter: ProgressCounter
    saver: Saver
    evaluator: Evaluator
    poll: StopPoll
    attempt: AttemptLog | None  # rank 0's

    def __call__(self, report: StepReport) -> None:
        """Raises ``StoppedError`` when no further step shall be begun."""
        from lmscale.runtime.stop import StoppedError
        from lmscale.runtime.votes import DATA_ERROR, LEASE_LOST

        reason = report.stop_reason
        if reason == LEASE_LOST:
            raise StoppedError(reason)
        for hook in self.each:
            hook(report)
        if report.step == self.run.config.train.steps or reason == DATA_ERROR:
            return  # that one is raised by the next step
        if reason is not None:
            raise StoppedError(reason)
        if report.step in (self.saver.saved_step, self.evaluator.scored_step):
            self.poll.now()  # that may have taken minutes, and a step takes one

    def save_what_is_left(self) -> None:
        step = self.counter.now.step
        if step not in (self.run.start.step, self.saver.saved_step):
            self.saver.save()

    def end(self, reason: str) -> None:
        """Record why the attempt stops."""
        if self.attempt is not None:
            self.attempt.end(reason)


@contextmanager
def _open_hooks(run: Run, poll: StopPoll, began_at: float) -> Iterator[_Hooks]:
    from lmscale.evaluation.in_loop import open_evaluator
    from lmscale.runtime import heartbeat
    from lmscale.runtime.collectives import failing_together
    from lmscale.stream.ledger import open_ledger
    from lmscale.train.guard import Guard
    from lmscale.train.hooks import ProgressCounter, Saver, ledger_hook
    from lmscale.train.reporting import open_reporting

    config, start = run.config, run.start
    with ExitStack() as stack:
        counter = ProgressCounter(start)
        each: list[Hook] = [counter]
        ledger = reporting = None
        with failing_together():
            if run.ranks.is_first:
                run.lease.check()
                ledger = stack.enter_context(
                    open_ledger(run.folder, next_step=start.step, stream=run.stream, n=start.n)
                )
                reporting = stack.enter_context(open_reporting(run, counter, began_at=began_at))
                each += [ledger_hook(ledger), *reporting.hooks]
            heartbeat.tick()
        guard = Guard(
            max_nonfinite_steps=config.train.max_nonfinite_steps,
            minimum_loss_scale=config.engine.loss_scale.minimum,
        )
        saver = Saver(run=run, counter=counter, ledger=ledger)
        trackers = reporting and reporting.trackers
        evaluator = stack.enter_context(open_evaluator(run, trackers, poll))
        yield _Hooks(
            run=run,
            each=(*each, guard, saver, evaluator),
            counter=counter,
            saver=saver,
            evaluator=evaluator,
            poll=poll,
            attempt=reporting and reporting.attempt,
        )
