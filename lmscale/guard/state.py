"""What the guard remembers, and how it judges one step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from lmscale.config.safety import GuardConfig
from lmscale.errors import CheckpointError
from lmscale.guard.figures import Limits, StepFigures

if TYPE_CHECKING:
    pass


RECENT_STEPS = 100  # for the evidence, and for what goes wrong again and again


class Verdict(Enum):
    GOOD = "good"
    SEARCHING = "searching"  # fp16's loss scale, which is found by overflows: neither good nor bad
    NONFINITE = "not finite"
    SPIKE = "spike"


@dataclass(frozen=True, kw_only=True)
class GuardState:
    """All that the guard remembers."""

    window: tuple[tuple[float, float], ...] = ()  # loss and gradient norm of the last good steps
    bad: tuple[StepFigures, ...] = ()  # the bad steps since the last good one
    recent: tuple[StepFigures, ...] = ()  # the last steps of any kind
    recent_bad: tuple[int, ...] = ()  # the numbers of the bad ones of them
    searching: StepFigures | None = None  # since when fp16 has searched, up to the first bad step
    nonfinite_steps: int = 0  # of the whole run, what rewinds have undone aside
    spike_steps: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "window": [list(pair) for pair in self.window],
            "bad": [row.to_json() for row in self.bad],
            "recent": [row.to_json() for row in self.recent],
            "recent_bad": list(self.recent_bad),
            "searching": self.searching and self.searching.to_json(),
            "nonfinite_steps": self.nonfinite_steps,
            "spike_steps": self.spike_steps,
        }

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> GuardState:
        """Raises ``CheckpointError`` for what is no guard's state."""
        try:
            search = tree.get("searching")
            return GuardState(
                window=tuple((float(loss), float(norm)) for loss, norm in tree["window"]),
                bad=tuple(map(StepFigures.from_json, tree["bad"])),
                recent=tuple(map(StepFigures.from_json, tree["recent"])),
                # An older lmscale had neither.
                recent_bad=tuple(map(int, tree.get("recent_bad", ()))),
                searching=StepFigures.from_json(search) if search else None,
                nonfinite_steps=int(tree["nonfinite_steps"]),
                spike_steps=int(tree["spike_steps"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The guard's state in the checkpoint cannot be read ({type(error).__name__}: "
                f"{error}). Resume with the lmscale that wrote it."
            ) from None


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
