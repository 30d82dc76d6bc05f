"""``lmscale train CONFIG``: train or resume, as one rank of those launched, or alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import typer

from lmscale.cli.options import ConfigArgument, SetOption
from lmscale.errors import EXIT_RESUMABLE

if TYPE_CHECKING:
    from lmscale.config import RunConfig
    from lmscale.runtime.stop import StopRequests
    from lmscale.train import Run
    from lmscale.train.hooks import Hook

logger = logging.getLogger(__name__)


def train(config: ConfigArgument, set_: SetOption = None) -> None:
    """Train CONFIG, from its newest checkpoint if it has one.

    Exit codes: 0 finished; 75 stopped early on request and resumable; 76 stopped by the guard;
    2 something to mend. To start several ranks use `lmscale launch`.
    """
    from lmscale.config import load_config

    stop_reason = run_training(load_config(config, set_ or ()))
    if stop_reason is not None:
        raise typer.Exit(EXIT_RESUMABLE)


def run_training(config: RunConfig) -> str | None:
    """Train on this rank; all ranks call it. Why it stopped early, or None when it finished."""
    began_at = time.time()
    from lmscale.runtime.device import select_device
    from lmscale.runtime.logs import setup_logging
    from lmscale.runtime.ranks import open_process_group, ranks_from_environment
    from lmscale.runtime.stop import StopRequests
    from lmscale.train import claim_folder, open_run

    ranks = ranks_from_environment()
    device = select_device(ranks)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequests(config.folder, watch_file=ranks.is_first))
        stack.enter_context(open_process_group(ranks, device))
        stack.enter_context(claim_folder(config, ranks))
        setup_logging(config.folder, ranks)
        run = stack.enter_context(open_run(config, ranks, device))
        if run.start.step >= config.train.steps:
            from lmscale.evaluation.in_loop import complete_evaluation

            complete_evaluation(run)
            logger.info("all %d steps were done before", config.train.steps)
            reason = None
        else:
            reason = _train(run, stop, began_at)
        stop.consume_file()
        return reason


def _train(run: Run, stop: StopRequests, began_at: float) -> str | None:
    from lmscale.train import train_steps
    from lmscale.train.loop import DATA_ERROR

    config = run.config
    with _open_hooks(run, began_at) as hooks:
        for report in train_steps(
            run.engine,
            run.loader,
            config.engine,
            first_step=run.start.step,
            total_steps=config.train.steps,
            seed=config.run.seed,
            rank=run.ranks.rank,
            stop_requested=stop.requested,
        ):
            for hook in hooks:
                hook(report)
            is_stopping = report.stop_reason is not None and report.step < config.train.steps
            if is_stopping and report.stop_reason != DATA_ERROR:  # that one is raised next
                logger.info("stopped after step %d: %s", report.step, report.stop_reason)
                return report.stop_reason
    logger.info("finished %d steps", config.train.steps)
    return None


@contextmanager
def _open_hooks(run: Run, began_at: float) -> Iterator[list[Hook]]:
    """The hooks of this rank, in the order in which they are called after a step."""
    from lmscale.evaluation.in_loop import open_evaluator
    from lmscale.stream.ledger import open_ledger
    from lmscale.train.guard import Guard
    from lmscale.train.hooks import ProgressCounter, Saver, ledger_hook
    from lmscale.train.reporting import end_hook, open_reporting

    config, start = run.config, run.start
    with ExitStack() as stack:
        counter = ProgressCounter(start)
        hooks: list[Hook] = [counter]
        ledger = reporting = None
        if run.ranks.is_first:
            ledger = stack.enter_context(
                open_ledger(run.folder, next_step=start.step, stream=run.stream, n=start.n)
            )
            reporting = stack.enter_context(open_reporting(run, counter, began_at=began_at))
            hooks += [ledger_hook(ledger), *reporting.hooks]
        hooks += [
            Guard(
                max_nonfinite_steps=config.train.max_nonfinite_steps,
                minimum_loss_scale=config.engine.loss_scale.minimum,
            ),
            Saver(run=run, counter=counter, ledger=ledger),
            stack.enter_context(open_evaluator(run, reporting and reporting.trackers)),
        ]
        if reporting is not None:
            hooks.append(end_hook(reporting.attempt, last_step=config.train.steps))
        yield hooks
