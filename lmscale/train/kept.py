"""Which checkpoints a run keeps beside ``checkpoint``'s rule, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lmscale.checkpoint.retention import Spare
from lmscale.config import RunConfig
from lmscale.guard.divergence import plan_spared
from lmscale.runs.exports import spare_due


def plan_kept(config: RunConfig, run_folder: Path, *, num_rewinds: int) -> Spare:
    """Those that the guard may go back to, and those that are still to be exported."""
    rewindable = plan_spared(config, num_rewinds=num_rewinds)

    def spare(steps: Sequence[int], newest: int) -> Mapping[str, Sequence[int]]:
        return {**rewindable(steps, newest), **spare_due(config.export, run_folder)}

    return spare
