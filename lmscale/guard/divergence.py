"""When a run diverges, and since which step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from statistics import median
from typing import TYPE_CHECKING

from lmscale.config.safety import GuardConfig
from lmscale.guard.figures import Limits, StepFigures
from lmscale.guard.state import RECENT_STEPS, GuardState

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Bad steps that something has to be done about."""

    rows: tuple[StepFigures, ...]
    why: str
    is_level: bool = False
    """It is the data's level that has changed: the medians have to follow."""


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
    parts = [
        f"{what} {value:.4g} is above {limit:.4g} (median {middle:.4g})"
        for what, value, limit, middle in (
            ("loss", last.loss, limits.loss, limits.median_loss),
            (
                *("gradient norm", last.gradient_norm),
                *(limits.gradient_norm, limits.median_gradient_norm),
            ),
        )
        if value > limit
    ]
    return ", ".join(parts) or "last one was not finite"


def follow_level(state: GuardState, rows: Sequence[StepFigures], limits: Limits) -> GuardState:
    """The window moved up to the level of these steps, with the spread that it had."""
    finite = [row for row in rows if row.is_finite]
    loss = max(0.0, median(row.loss for row in finite) - limits.median_loss)
    norm = median(row.gradient_norm for row in finite) - limits.median_gradient_norm
    norm = max(0.0, norm)
    window = tuple((one + loss, other + norm) for one, other in state.window)
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
