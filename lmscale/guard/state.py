"""What the guard remembers, and how it judges one step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from pydantic import TypeAdapter

from lmscale.checkpoint.manifest import Manifest
from lmscale.checkpoint.state import read_state
from lmscale.config.safety import GuardConfig
from lmscale.files.strangers import EXACT, Count, Tree
from lmscale.guard.figures import Figure, Limits, StepFigures

RECENT_STEPS = 100  # for the evidence, and for what goes wrong again and again


class Verdict(Enum):
    GOOD = "good"
    SEARCHING = "searching"  # fp16's loss scale, which is found by overflows: neither good nor bad
    NONFINITE = "not finite"
    SPIKE = "spike"


@dataclass(frozen=True, kw_only=True)
class GuardState:
    """All that the guard remembers."""

    __pydantic_config__ = EXACT
    window: tuple[tuple[Figure, Figure], ...] = ()
    """Loss and gradient norm of the last good steps."""
    bad: tuple[StepFigures, ...] = ()  # the bad steps since the last good one
    recent: tuple[StepFigures, ...] = ()  # the last steps of any kind
    recent_bad: tuple[Count, ...] = ()  # the numbers of the bad ones of them
    searching: StepFigures | None = None  # since when fp16 has searched, up to the first bad step
    nonfinite_steps: Count = 0  # of the whole run, what rewinds have undone aside
    spike_steps: Count = 0
    context: Tree = field(default_factory=dict)  # of the last step: what the figures depend on

    def to_json(self) -> dict[str, Any]:
        return _STATE.dump_python(self, mode="json")


GUARD = "guard"  # its key in a manifest's ``state``
_STATE = TypeAdapter(GuardState)


def read_guard_state(manifest: Manifest, *, where: str) -> GuardState | None:
    """As the guard left it; None of a run without one. Raises ``CheckpointError``."""
    return read_state(manifest, GUARD, _STATE, where=where)


def judge_step(
    figures: StepFigures, limits: Limits | None, *, is_searching: bool = False
) -> Verdict:
    """``is_searching``: the step was skipped for fp16's loss scale, which has not yet come to its
    minimum.
    """
    if not math.isfinite(figures.loss):
        return Verdict.NONFINITE
    if is_searching:
        return Verdict.SEARCHING
    if not math.isfinite(figures.gradient_norm):
        return Verdict.NONFINITE
    if limits is None:
        return Verdict.GOOD
    is_spike = figures.loss > limits.loss or figures.gradient_norm > limits.gradient_norm
    return Verdict.SPIKE if is_spike else Verdict.GOOD


def advance(
    state: GuardState, figures: StepFigures, verdict: Verdict, config: GuardConfig
) -> GuardState:
    """The state after a step. Only a good step enters the window, and ends a row of bad ones."""
    recent = (*state.recent, figures)[-RECENT_STEPS:]
    past = tuple(step for step in state.recent_bad if step >= recent[0].step)
    state = replace(state, recent=recent, recent_bad=past)
    if verdict is Verdict.SEARCHING:
        return state if state.bad else replace(state, searching=state.searching or figures)
    if verdict is Verdict.GOOD:
        pair = (figures.loss, figures.gradient_norm)
        kept = (*state.window, pair)[-config.spike_window :] if config.spike_window else ()
        return replace(state, window=kept, bad=(), searching=None)
    return replace(
        state,
        bad=(*state.bad, figures),
        recent_bad=(*past, figures.step),
        nonfinite_steps=state.nonfinite_steps + (verdict is Verdict.NONFINITE),
        spike_steps=state.spike_steps + (verdict is Verdict.SPIKE),
    )
