"""What the guard remembers of the steps, and how it judges one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from statistics import median
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter

from lmscale.checkpoint.manifest import Manifest, read_state
from lmscale.config.safety import GuardConfig
from lmscale.engine.step_report import StepReport
from lmscale.files.strangers import EXACT, Count, Flag, Number, Tree

RECENT_STEPS = 100  # for the evidence, and for what goes wrong again and again
SIGMAS_PER_MAD = 1.4826  # the standard deviation of a normal distribution, in its MADs
# The least spread that is reckoned with: figures that hardly vary are no reason to call the next
# one that does a spike. With the default threshold of 12 a loss must be 24 % and 0.3 nats above
# the median, and a gradient norm, which varies more by nature, 4 times the median.
LOSS_SPREAD = 0.02  # of the median
LOSS_SPREAD_NATS = 0.025  # a loss that is nearly 0 says nothing by its ratio
NORM_SPREAD = 0.25  # of the median


def plain(value: Any) -> Any:
    """As JSON has it: numbers that are not finite as ``"nan"``, ``"inf"``, which float() reads."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def plain_fields(row: StepFigures | Limits) -> dict[str, Any]:
    return {key: plain(value) for key, value in vars(row).items()}


def _from_plain(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


Figure = Annotated[Number, BeforeValidator(_from_plain), PlainSerializer(plain)]


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """What the guard keeps of a step."""

    __pydantic_config__ = EXACT
    step: Count
    first_n: Count
    samples: Count
    loss: Figure
    gradient_norm: Figure
    learning_rate: Figure
    is_skipped: Flag

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)

    def __str__(self) -> str:
        return (
            f"step {self.step}: loss {self.loss}, gradient norm {self.gradient_norm}, "
            f"learning rate {self.learning_rate:.3g}, samples from {self.first_n}"
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Above what a figure is a spike, as of the good steps so far."""

    median_loss: float
    loss: float
    median_gradient_norm: float
    gradient_norm: float

    def is_severe(self, figures: StepFigures, *, lost_loss: float) -> bool:
        """Not finite; or loss and gradient norm both too high, or the loss as good as guessing.

        One of them alone may be the data's: other text has another loss, short documents have
        larger gradients.
        """
        if not figures.is_finite:
            return True
        is_high = figures.loss > self.loss
        return is_high and (figures.gradient_norm > self.gradient_norm or figures.loss > lost_loss)


def find_limits(window: Sequence[tuple[float, float]], config: GuardConfig) -> Limits | None:
    """From the good steps' losses and gradient norms; None while there are too few to judge by."""
    if not config.spike_window or len(window) < config.spike_window:
        return None
    losses, norms = zip(*window, strict=True)
    median_loss, loss_spread = _median_and_spread(losses)
    median_norm, norm_spread = _median_and_spread(norms)
    loss_spread = max(loss_spread, LOSS_SPREAD * abs(median_loss), LOSS_SPREAD_NATS)
    norm_spread = max(norm_spread, NORM_SPREAD * median_norm)
    return Limits(
        median_loss=median_loss,
        loss=median_loss + config.spike_threshold * loss_spread,
        median_gradient_norm=median_norm,
        # A model without a gradient has no spread to reckon with either.
        gradient_norm=median_norm + config.spike_threshold * norm_spread or math.inf,
    )


def _median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    middle = median(values)
    return middle, SIGMAS_PER_MAD * median(abs(value - middle) for value in values)


def figures_of(report: StepReport) -> StepFigures:
    return StepFigures(
        step=report.step,
        first_n=report.first_n,
        samples=report.samples,
        loss=float(report.loss),
        gradient_norm=float(report.gradient_norm),
        learning_rate=report.learning_rate,
        is_skipped=bool(report.is_skipped),
    )


class Verdict(Enum):
    GOOD = "good"
    SEARCHING = "searching"  # fp16's loss scale, which is found by overflows: neither good nor bad
    NONFINITE = "not finite"
    SPIKE = "spike"


@dataclass(frozen=True, kw_only=True)
class GuardState:
    """All that the guard remembers."""

    __pydantic_config__ = EXACT
    window: tuple[tuple[Figure, Figure], ...] = ()  # loss and gradient norm of the last good steps
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
        window = (*state.window, pair)[-config.spike_window :] if config.spike_window else ()
        return replace(state, window=window, bad=(), searching=None)
    return replace(
        state,
        bad=(*state.bad, figures),
        recent_bad=(*past, figures.step),
        nonfinite_steps=state.nonfinite_steps + (verdict is Verdict.NONFINITE),
        spike_steps=state.spike_steps + (verdict is Verdict.SPIKE),
    )
