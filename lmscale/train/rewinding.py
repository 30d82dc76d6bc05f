"""Going back: from a divergence to the checkpoint at which the run begins anew."""

from __future__ import annotations

import logging
import time

from lmscale.checkpoint import Manifest, load_manifest
from lmscale.checkpoint.find import Search
from lmscale.errors import CheckpointError, TransientError
from lmscale.runtime import heartbeat
from lmscale.runtime.atomic import writing
from lmscale.runtime.collectives import broadcast_object, failing_together
from lmscale.train.assemble import Run
from lmscale.train.evidence import change_decision
from lmscale.train.guard import Divergence, RewindRequest, stop_error
from lmscale.train.rewinds import (
    describe_no_checkpoint,
    describe_undone,
    is_undone,
    plan_rewind,
    record_rewind,
)

logger = logging.getLogger(__name__)


def rewind(run: Run, request: RewindRequest) -> int:
    """Decide to which step the run goes back, and make it so. All ranks; returns the step.

    Once this has returned, or was killed after the row was written, every start of the run goes on
    from there. Raises ``GuardError`` on all ranks where no checkpoint is old enough and whole.
    """
    target = _find_target(run, request.divergence)
    to_step = -1
    with failing_together():
        if run.ranks.is_first:
            run.lease.check()
            planned = plan_rewind(
                request.divergence,
                {} if target is None else {target.step: _samples_of(target)},
                number=len(run.rewinds) + 1,
                time=time.time(),
                segments=run.stream.segments,
            )
            if planned is None:
                with writing("the checkpoints' list", run.place.location, CheckpointError):
                    why = describe_no_checkpoint(request.divergence, _committed(run))
                change_decision(run.folder, request.divergence, len(run.rewinds), "stop")
                raise stop_error(request.divergence, run.config.guard, run.rewinds, problem=why)
            record_rewind(run.folder, planned)
            to_step = planned.to_step
        heartbeat.tick()
    return int(broadcast_object(to_step))


def _find_target(run: Run, divergence: Divergence) -> Manifest | None:
    """The newest checkpoint from before the samples in question, verified by all ranks together:
    once the row is written there is no way back to a newer one.
    """

    def unfit(manifest: Manifest) -> str | None:
        if manifest.step > divergence.not_after_step:
            return "is not from before the samples that the guard suspects"
        if _samples_of(manifest) > divergence.jump_from_n:
            return "has used some of the samples that the guard suspects"
        return describe_undone(manifest, run.rewinds)

    try:
        found = next(Search([run.place], run.ranks, identity=run.identity, undone=unfit), None)
    except TransientError:
        raise
    except CheckpointError as error:  # on all ranks alike
        logger.warning("%s", error)
        return None
    return None if found is None else found.manifest


def _samples_of(manifest: Manifest) -> int:
    return int(manifest.state["progress"]["n"])


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
            found[step] = _samples_of(manifest)
    return found
