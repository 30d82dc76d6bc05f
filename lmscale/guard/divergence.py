"""When a run diverges, since which step, and to which checkpoint it goes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from statistics import median

from lmscale.checkpoint.find import PassedOver
from lmscale.checkpoint.retention import Spare
from lmscale.config import RunConfig
from lmscale.config.safety import GuardConfig
from lmscale.guard.state import RECENT_STEPS, GuardState, Limits, StepFigures
from lmscale.history.history import Rewind
from lmscale.stream.mixture import Segment

REWIND = "rewind"  # why retention keeps a checkpoint: the guard goes back to it, or will later


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Bad steps that something has to be done about."""

    rows: tuple[StepFigures, ...]
    why: str
    is_level: bool = False  # it is the data's level that has changed: the medians have to follow


def find_trouble(
    state: GuardState, limits: Limits | None, config: GuardConfig, *, lost_loss: float
) -> Trouble | None:
    """After a bad step: whether it is enough, with the bad steps before it."""

    def is_severe(row: StepFigures) -> bool:
        if limits is None:
            return not row.is_finite
        return limits.is_severe(row, lost_loss=lost_loss)

    row = tuple(takewhile(is_severe, reversed(state.bad)))[::-1]
    nonfinite = sum(not figures.is_finite for figures in row)
    if nonfinite >= config.max_nonfinite_steps:
        return Trouble(rows=row, why=f"{_in_a_row(nonfinite)} not finite")
    spikes = len(row) - nonfinite
    if limits is not None and spikes >= config.spike_steps:
        kind = "spikes" if spikes > 1 else "a spike"
        figures = _describe_last(row[-1], limits)
        why = f"{_in_a_row(spikes)} {kind}: at step {row[-1].step} the {figures}"
        return Trouble(rows=row, why=why)
    if len(state.recent_bad) <= RECENT_STEPS // 2:
        return None
    numbers = set(state.recent_bad)
    bad = tuple(figures for figures in state.recent if figures.step in numbers)
    severe = tuple(filter(is_severe, bad))
    if limits is not None and len(severe) <= len(bad) // 2:
        if row:  # it may become a divergence: the medians stay until that is known
            return None
        return Trouble(rows=bad, why=_describe_last(bad[-1], limits), is_level=True)
    return Trouble(
        rows=severe,
        why=f"{len(bad)} of the last {len(state.recent)} steps were not finite or spikes",
    )


def _describe_last(last: StepFigures, limits: Limits) -> str:
    rows = (
        ("loss", last.loss, limits.loss, limits.median_loss),
        ("gradient norm", last.gradient_norm, limits.gradient_norm, limits.median_gradient_norm),
    )
    parts = [
        f"{what} {value:.4g} is above {limit:.4g} (median {middle:.4g})"
        for what, value, limit, middle in rows
        if value > limit
    ]
    return ", ".join(parts) or "last one was not finite"


def follow_level(state: GuardState, rows: Sequence[StepFigures], limits: Limits) -> GuardState:
    """The window moved up to the level of these steps, with the spread that it had."""
    finite = [row for row in rows if row.is_finite]
    loss = max(0.0, median(row.loss for row in finite) - limits.median_loss)
    norm = max(0.0, median(row.gradient_norm for row in finite) - limits.median_gradient_norm)
    window = tuple((old_loss + loss, old_norm + norm) for old_loss, old_norm in state.window)
    return replace(state, window=window, bad=(), recent_bad=(), searching=None)


def _in_a_row(steps: int) -> str:
    return f"{steps} steps in a row were" if steps > 1 else "1 step was"


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """What was noticed, and which samples did it as far as one can tell."""

    why: str
    at_step: int
    jump_from_n: int  # of the samples in question, to the last bad step's last one
    jump_samples: int
    not_after_step: int  # the last step that was done before any of them
    limits: Limits | None
    state: GuardState
    bad: tuple[StepFigures, ...] = ()  # the steps that decided it


def plan_divergence(
    trouble: Trouble, state: GuardState, limits: Limits | None, jump_steps: int
) -> Divergence:
    """The window in question: ``jump_steps`` steps up to the last bad one, and all the bad ones.

    Never before sample 0. Where fp16 searched its loss scale up to the first bad step, and so found
    none, the weights were bad before: the window begins with the step before the search.
    """
    first, last = trouble.rows[0], trouble.rows[-1]
    first_step, first_n = first.step, first.first_n
    if (search := state.searching) is not None:
        first_step = min(first_step, search.step - 1)
        first_n = min(first_n, search.first_n - search.samples)
    end = last.first_n + last.samples
    begin = max(0, min(first_n, end - jump_steps * last.samples))
    return Divergence(
        why=trouble.why,
        at_step=last.step,
        jump_from_n=begin,
        jump_samples=end - begin,
        not_after_step=max(0, min(first_step - 1, last.step - jump_steps)),
        limits=limits,
        state=state,
        bad=trouble.rows,
    )


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
    steps = ", ".join(str(step) for step in sorted(passed.step for passed in passed_over)) or "none"
    # Of those that are old enough it is worth knowing what is the matter with them.
    old = [passed for passed in passed_over if passed.step <= divergence.not_after_step]
    unfit = "".join(f"; {why.rstrip('.')}" for passed in old for why in passed.why)
    if not passed_over:
        advice = "Save earlier (checkpoint.every_steps)"
    elif old:
        advice = "Keep more (checkpoint.keep_last, checkpoint.keep_every_steps)"
    else:
        advice = "Keep older ones (checkpoint.keep_every_steps, or a larger checkpoint.keep_last)"
    return (
        "The run could not be rewound: that takes a checkpoint of step "
        f"{divergence.not_after_step} or before, and sample {divergence.jump_from_n} or before; "
        f"there are: {steps}{unfit}. {advice}, or lower guard.jump_steps."
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
