"""``lmscale train CONFIG``: train or resume, as one rank of those launched, or alone."""

from __future__ import annotations

import logging
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
        claim_folder(config, ranks)
        setup_logging(config.folder, ranks)
        run = stack.enter_context(open_run(config, ranks, device))
        reason = _train(run, stop)
        stop.consume_file()
        return reason


def _train(run: Run, stop: StopRequests) -> str | None:
    from lmscale.train import train_steps

    config = run.config
    with _open_hooks(run) as hooks:
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
            if report.stop_reason and report.step < config.train.steps:
                logger.info("stopped after step %d: %s", report.step, report.stop_reason)
                return report.stop_reason
    logger.info("finished %d steps", config.train.steps)
    return None


@contextmanager
def _open_hooks(run: Run) -> Iterator[list[Hook]]:
    """The hooks of this rank, in the order in which they are called after a step."""
    from lmscale.evaluation.in_loop import evaluation_hook
    from lmscale.stream.ledger import open_ledger
    from lmscale.train.guard import Guard
    from lmscale.train.hooks import ProgressCounter, Saver, ledger_hook
    from lmscale.train.reporting import reporting_hooks

    config, start = run.config, run.start
    with ExitStack() as stack:
        counter = ProgressCounter(start)
        hooks: list[Hook] = [counter]
        ledger = trackers = None
        if run.ranks.is_first:
            ledger = stack.enter_context(
                open_ledger(run.folder, next_step=start.step, stream=run.stream, n=start.n)
            )
            trackers, reporting = stack.enter_context(reporting_hooks(run, counter))
            hooks += [ledger_hook(ledger), *reporting]
        hooks += [
            Guard(
                max_nonfinite_steps=config.train.max_nonfinite_steps,
                minimum_loss_scale=config.engine.loss_scale.minimum,
            ),
            Saver(run=run, counter=counter, ledger=ledger),
            stack.enter_context(evaluation_hook(run, trackers)),
        ]
        yield hooks
