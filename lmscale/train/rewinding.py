"""Going back: from a divergence to the checkpoint at which the run begins anew."""

from __future__ import annotations

import time

from lmscale.checkpoint.find import Search
from lmscale.checkpoint.manifest import Manifest
from lmscale.errors import CheckpointError, RefusedError
from lmscale.guard.divergence import Divergence, describe_no_checkpoint, plan_rewind
from lmscale.guard.guard import RewindRequest, stop_error
from lmscale.history.history import History, read_history
from lmscale.history.rewinds import record_rewind
from lmscale.ranks.collectives import failing_together
from lmscale.train.assemble import Run
from lmscale.train.progress import read_progress
from lmscale.watch import heartbeat


def rewind(run: Run, request: RewindRequest) -> None:
    """Decide to which checkpoint the run goes back, and write it down. All ranks together.

    Once this has returned, or was killed after the row was written, every start of the run goes on
    from there. Raises ``GuardError`` on all ranks where no checkpoint is old enough and whole, and
    ``RefusedError`` where one may not be looked at.
    """
    divergence, rewinds = request.divergence, run.history.rewinds
    target, why_none = _find_target(run, divergence)
    with failing_together():
        if run.ranks.is_first:
            run.lease.check()
            planned = plan_rewind(
                divergence,
                {} if target is None else {target.step: _samples_of(target)},
                number=len(rewinds) + 1,
                time=time.time(),
                segments=run.stream.segments,
            )
            if planned is not None:
                record_rewind(run.folder, planned)
        heartbeat.tick()
    if target is None:
        raise stop_error(divergence, run.config.guard, rewinds, problem=why_none)


def _find_target(run: Run, divergence: Divergence) -> tuple[Manifest | None, str]:
    """The newest checkpoint from before the samples in question, or why there is none.

    Verified by all ranks together: once the row is written there is no way back to a newer one.
    """
    history = History()
    with failing_together():
        if run.ranks.is_first:  # who alone is asked
            history = read_history(run.folder)

    def unfit(manifest: Manifest) -> str | None:
        try:
            num_samples = _samples_of(manifest)
        except CheckpointError as error:
            return "; ".join(error.problems)
        if manifest.step > divergence.not_after_step:
            return "is not from before the samples that the guard suspects"
        if num_samples > divergence.jump_from_n:
            return "has used some of the samples that the guard suspects"
        return history.undone(manifest)

    search = Search([run.place], run.ranks, identity=run.identity, undone=unfit)
    problems: tuple[str, ...] = ()
    try:
        found = next(search, None)
    except RefusedError:  # it may be the one to go back to
        raise
    except CheckpointError as error:  # on all ranks alike
        found, problems = None, error.problems
    if found is not None:
        return found.manifest, ""
    told = {why for one in search.passed_over for why in one.why}
    more = [problem for problem in problems if problem not in told]
    return None, "\n".join([describe_no_checkpoint(divergence, search.passed_over), *more])


def _samples_of(manifest: Manifest) -> int:
    return read_progress(manifest, where=f"the checkpoint of step {manifest.step}").n
