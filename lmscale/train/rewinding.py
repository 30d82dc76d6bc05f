"""Going back: from a divergence to the checkpoint at which the run begins anew."""

from __future__ import annotations

import logging
import time

from lmscale.checkpoint import load_manifest
from lmscale.errors import CheckpointError
from lmscale.runtime import heartbeat
from lmscale.runtime.atomic import writing
from lmscale.runtime.collectives import broadcast_object, failing_together
from lmscale.train.assemble import Run
from lmscale.train.evidence import change_decision
from lmscale.train.guard import RewindRequest, stop_error
from lmscale.train.rewinds import (
    describe_no_checkpoint,
    is_undone,
    plan_rewind,
    record_rewind,
)

logger = logging.getLogger(__name__)


def rewind(run: Run, request: RewindRequest) -> int:
    """Decide to which step the run goes back, and make it so. All ranks; returns the step.

    Once this has returned, or was killed after the row was written, every start of the run goes on
    from there. Raises ``GuardError`` on all ranks where no checkpoint is old enough.
    """
    to_step = -1
    with failing_together():
        if run.ranks.is_first:
            run.lease.check()
            with writing("the checkpoints' list", run.place.location, CheckpointError):
                committed = _committed(run)
            planned = plan_rewind(
                request.divergence,
                committed,
                number=len(run.rewinds) + 1,
                time=time.time(),
                segments=run.stream.segments,
            )
            if planned is None:
                why = describe_no_checkpoint(request.divergence, committed)
                change_decision(run.folder, request.divergence, len(run.rewinds), "stop")
                raise stop_error(request.divergence, run.config.guard, run.rewinds, problem=why)
            record_rewind(run.folder, planned)
            to_step = planned.to_step
        heartbeat.tick()
    return int(broadcast_object(to_step))


def _committed(run: Run) -> dict[int, int]:
    """Step → samples used, of the checkpoints on this branch that can be resumed from."""
    found: dict[int, int] = {}
    for step in run.place.list_steps():
        try:
            manifest = load_manifest(run.place, step)
        except CheckpointError as error:  # damaged: it will not be resumed from either
            logger.warning("%s", error)
            continue
        if manifest.is_finite and not is_undone(step, manifest.rewinds, run.rewinds):
            found[step] = int(manifest.state["progress"]["n"])
    return found
