"""Which checkpoint a divergence goes back to, what is jumped, and what retention keeps for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmscale.checkpoint.find import PassedOver
from lmscale.checkpoint.retention import Spare
from lmscale.config import RunConfig
from lmscale.config.safety import GuardConfig
from lmscale.guard.divergence import Divergence
from lmscale.guard.state import RECENT_STEPS
from lmscale.history.rewinds import Rewind
from lmscale.stream.mixture import Segment

REWIND = "rewind"  # why retention keeps a checkpoint: the guard goes back to it, or will later


def plan_rewind(
    divergence: Divergence,
    committed: Mapping[int, int],
    *,
    number: int,
    time: float,
    segments: Sequence[Segment],
) -> Rewind | None:
    """Back to the newest checkpoint from before the window in question, or None without one.

    ``committed`` maps the step of every checkpoint that can be resumed from (finite, not undone) to
    the samples used there. ``segments`` are the stream's, now.
    """
    steps = [
        step
        for step, n in committed.items()
        if step <= divergence.not_after_step and n <= divergence.jump_from_n
    ]
    if not steps:
        return None
    step = max(steps)
    return Rewind(
        number=number,
        at_step=divergence.at_step,
        to_step=step,
        to_n=committed[step],
        jump_from_n=divergence.jump_from_n,
        jump_samples=divergence.jump_samples,
        why=divergence.why,
        time=time,
        segments=tuple(segments),
    )


def describe_no_checkpoint(divergence: Divergence, passed_over: Sequence[PassedOver]) -> str:
    """Why there was none to go back to, and what would have helped."""
    known = ", ".join(str(step) for step in sorted(one.step for one in passed_over)) or "none"
    # Of those that are old enough it is worth knowing what is the matter with them.
    old = [one for one in passed_over if one.step <= divergence.not_after_step]
    unfit = "".join(f"; {why.rstrip('.')}" for one in old for why in one.why)
    if not passed_over:
        advice = "Save earlier (checkpoint.every_steps)"
    elif old:
        advice = "Keep more (checkpoint.keep_last, checkpoint.keep_every_steps)"
    else:
        advice = "Keep older ones (checkpoint.keep_every_steps, or a larger checkpoint.keep_last)"
    return (
        "The run could not be rewound: that takes a checkpoint of step "
        f"{divergence.not_after_step} or before, and sample {divergence.jump_from_n} or before; "
        f"there are: {known}{unfit}. {advice}, or lower guard.jump_steps."
    )


def reach_of(config: GuardConfig) -> int:
    """Most steps that a divergence reaches back, judged and jumped steps together.

    A row of bad steps, or ``jump_steps`` up to the last bad step of the ``RECENT_STEPS``. Only
    fp16's search for a loss scale, before or between these steps, has no bound.
    """
    longest_row = config.max_nonfinite_steps + config.spike_steps - 1
    return max(longest_row, RECENT_STEPS + config.jump_steps)


def find_rewindable(steps: Sequence[int], *, newest: int, config: GuardConfig) -> tuple[int, ...]:
    """The checkpoints that retention must keep, so that a divergence can always be undone.

    The newest one that a divergence noticed next could go back to, and the oldest newer one, which
    grows into that role: else all would be deleted before they are old enough. So from the
    moment on at which the oldest is as old as ``reach_of``, there is always one of that age; it is
    younger than twice that and the longest way between two good saves.
    """
    if config.on_divergence != "rewind":
        return ()
    last = newest + 1 - reach_of(config)
    target = max((step for step in steps if step <= last), default=-1)
    successor = min((step for step in steps if step > target), default=target)
    return tuple(sorted({target, successor} - {-1}))


def plan_spared(config: RunConfig, *, num_rewinds: int) -> Spare:
    """What retention keeps beside its rule, in a run that was rewound ``num_rewinds`` times.

    Nothing once all steps are done, or once the guard has made all the rewinds that it may make.
    """
    may_rewind = num_rewinds < config.guard.max_rewinds

    def spare(steps: Sequence[int], newest: int) -> Mapping[str, Sequence[int]]:
        if newest >= config.train.steps or not may_rewind:
            return {}
        return {REWIND: find_rewindable(steps, newest=newest, config=config.guard)}

    return spare
