"""Which checkpoints a run keeps beside ``checkpoint``'s rule, and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmscale.checkpoint.retention import Retention, Spare, look_at
from lmscale.config import RunConfig
from lmscale.errors import LmscaleError
from lmscale.guard.divergence import plan_spared
from lmscale.runs.exports import spare_due

if TYPE_CHECKING:
    from lmscale.train.assemble import Run

logger = logging.getLogger(__name__)


def plan_kept(config: RunConfig, run_folder: Path, *, num_rewinds: int) -> Spare:
    """Those that the guard may go back to, and those that are still to be exported."""
    rewindable = plan_spared(config, num_rewinds=num_rewinds)

    def spare(steps: Sequence[int], newest: int) -> Mapping[str, Sequence[int]]:
        return {**rewindable(steps, newest), **spare_due(config.export, run_folder)}

    return spare


def build_retention(run: Run) -> Retention:
    """What keeps a run's checkpoints to the rule."""
    return Retention(
        run.place,
        run.config.checkpoint,
        run.folder,
        undone=run.history.undone,
        passed_over=run.passed_over,
        spare=plan_kept(run.config, run.folder, num_rewinds=len(run.history.rewinds)),
    )


def let_go_of_exported(run: Run) -> None:
    """Remove what was kept for an export that has ended by now. Rank 0, after the last save; what
    goes wrong is told, and is no reason for a run that is done to fail.
    """
    if not (run.ranks.is_first and run.config.export.every_steps):
        return
    try:
        run.lease.check()
        newest = next(iter(run.place.list_steps()), None)
        if newest is not None and look_at(run.place, newest, run.history.undone).is_good:
            build_retention(run).delete_old(newest=newest)
    except (LmscaleError, OSError) as error:
        logger.warning("old checkpoints in %s stay: %s", run.place.location, error)
