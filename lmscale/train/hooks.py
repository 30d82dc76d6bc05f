"""What happens after a step: hooks are called with its report, in the order in which they stand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from lmscale.checkpoint import delete_old_checkpoints, save_checkpoint
from lmscale.runtime import heartbeat
from lmscale.runtime.collectives import failing_together
from lmscale.stream.ledger import Ledger, LedgerRow
from lmscale.train.assemble import Run
from lmscale.train.loop import StepReport
from lmscale.train.progress import Progress

Hook = Callable[[StepReport], None]
logger = logging.getLogger(__name__)


class ProgressCounter:
    """Adds the reports up; the one place that knows how far the run is."""

    def __init__(self, start: Progress) -> None:
        self.now = start

    def __call__(self, report: StepReport) -> None:
        self.now = self.now.after(report)


@dataclass(kw_only=True)
class Saver:
    """Saves when a step is due, when the run is asked to stop, and after the last step."""

    run: Run
    counter: ProgressCounter
    ledger: Ledger | None  # rank 0's
    saved_step: int | None = None  # the last one that this attempt has saved

    def __call__(self, report: StepReport) -> None:
        config = self.run.config
        is_due = report.step % config.checkpoint.every_steps == 0
        if is_due or report.stop_reason or report.step == config.train.steps:
            self.save()

    def save(self) -> None:
        """Commit a checkpoint of the steps done so far. All ranks together."""
        run, progress = self.run, self.counter.now
        heartbeat.phase("save")
        with failing_together():
            run.lease.check()
            if self.ledger is not None:
                self.ledger.sync()  # no checkpoint may know of steps that the ledger lacks
            heartbeat.tick()
        saved = save_checkpoint(
            run.checkpoints,
            run.engine,
            step=progress.step,
            state={
                "progress": progress.to_json(),
                "stream": run.stream.state_at(progress.n).to_json(),
            },
            identity=run.identity,
            ranks=run.ranks,
            lease=run.lease,
        )
        self.saved_step = progress.step
        # One that is not finite will not be resumed from: it may push no good one out.
        if run.ranks.is_first and saved.is_finite:
            delete_old_checkpoints(
                run.checkpoints,
                newest=progress.step,
                keep_last=run.config.checkpoint.keep_last,
                keep_every_steps=run.config.checkpoint.keep_every_steps,
            )
        logger.info(
            "saved %s: %.1f MB in %.2f s", saved.folder.name, saved.bytes / 1e6, saved.seconds
        )


def ledger_hook(ledger: Ledger) -> Hook:
    """Append every step to the ledger. Rank 0 only."""

    def hook(report: StepReport) -> None:
        ledger.append(
            LedgerRow(
                step=report.step - 1,  # the ledger counts from 0: step s takes samples from s·G
                first_n=report.first_n,
                samples=report.samples,
                tokens=report.targets,
                digest=report.digest,
            )
        )

    return hook
