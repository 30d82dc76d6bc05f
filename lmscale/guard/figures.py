"""What the guard keeps of a step, and above what its figures are a spike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from lmscale.config.safety import GuardConfig
from lmscale.engine.step_report import StepReport
from lmscale.files.strangers import EXACT, Count, Flag, Number

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

    def to_json(self) -> dict[str, Any]:
        return {key: plain(value) for key, value in asdict(self).items()}

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
