"""The guard: it sees every step's loss and gradient norm, and says when a run has gone wrong.

A step is good, or it is not finite, or a spike: its loss or gradient norm is far above the median
of the good steps before it. What a single bad step does is little, as one that is not finite
changes no weight and a large gradient is clipped; several in a row are a divergence. Every
judgement is a pure function of the steps before it, so all ranks judge alike, and so does a run
that was interrupted: the guard's state is in the checkpoints.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from statistics import median
from typing import TYPE_CHECKING, Any

from lmscale.config.safety import GuardConfig
from lmscale.errors import CheckpointError, GuardError
from lmscale.train.loop import StepReport

if TYPE_CHECKING:
    from lmscale.train.rewinds import Rewind

logger = logging.getLogger(__name__)

RECENT_STEPS = 100  # for the evidence
SIGMAS_PER_MAD = 1.4826  # the standard deviation of a normal distribution, in its MADs
# The least spread that is reckoned with: figures that hardly vary are no reason to call the next
# one that does a spike. With the default threshold of 12 a loss must be 24 % and 0.06 nats above
# the median, and a gradient norm, which varies more by nature, 4 times the median.
LOSS_SPREAD = 0.02  # of the median
LOSS_SPREAD_NATS = 0.005  # a loss that is nearly 0 says nothing by its ratio
NORM_SPREAD = 0.25  # of the median


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """What the guard keeps of a step."""

    step: int
    first_n: int
    samples: int
    loss: float
    gradient_norm: float
    learning_rate: float
    is_skipped: bool

    def to_json(self) -> dict[str, Any]:
        return {key: plain(value) for key, value in asdict(self).items()}

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> StepFigures:
        floats = {key: float(tree[key]) for key in ("loss", "gradient_norm", "learning_rate")}
        return StepFigures(**{**tree, **floats})

    def __str__(self) -> str:
        return (
            f"step {self.step}: loss {self.loss}, gradient norm {self.gradient_norm}, "
            f"learning rate {self.learning_rate:.3g}, samples from {self.first_n}"
        )


def plain(value: Any) -> Any:
    """As JSON has it: numbers that are not finite as ``"nan"``, ``"inf"``, which float() reads."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Verdict(Enum):
    GOOD = "good"
    SEARCHING = "searching"  # fp16's loss scale, which is found by overflows: neither good nor bad
    NONFINITE = "not finite"
    SPIKE = "spike"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Above what a figure is a spike, as of the good steps so far."""

    median_loss: float
    loss: float
    median_gradient_norm: float
    gradient_norm: float


@dataclass(frozen=True, kw_only=True)
class GuardState:
    """All that the guard remembers."""

    window: tuple[tuple[float, float], ...] = ()  # loss and gradient norm of the last good steps
    bad: tuple[StepFigures, ...] = ()  # the bad steps since the last good one
    recent: tuple[StepFigures, ...] = ()  # the last steps of any kind, for the evidence
    nonfinite_steps: int = 0  # of the whole run, what rewinds have undone aside
    spike_steps: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "window": [list(pair) for pair in self.window],
            "bad": [row.to_json() for row in self.bad],
            "recent": [row.to_json() for row in self.recent],
            "nonfinite_steps": self.nonfinite_steps,
            "spike_steps": self.spike_steps,
        }

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> GuardState:
        """Raises ``CheckpointError`` for what is no guard's state."""
        try:
            return GuardState(
                window=tuple((float(loss), float(norm)) for loss, norm in tree["window"]),
                bad=tuple(map(StepFigures.from_json, tree["bad"])),
                recent=tuple(map(StepFigures.from_json, tree["recent"])),
                nonfinite_steps=int(tree["nonfinite_steps"]),
                spike_steps=int(tree["spike_steps"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The guard's state in the checkpoint cannot be read ({type(error).__name__}: "
                f"{error}). Resume with the lmscale that wrote it."
            ) from None


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
    if verdict is Verdict.SEARCHING:
        return replace(state, recent=recent)
    if verdict is Verdict.GOOD:
        pair = (figures.loss, figures.gradient_norm)
        kept = (*state.window, pair)[-config.spike_window :] if config.spike_window else ()
        return replace(state, recent=recent, window=kept, bad=())
    return replace(
        state,
        recent=recent,
        bad=(*state.bad, figures),
        nonfinite_steps=state.nonfinite_steps + (verdict is Verdict.NONFINITE),
        spike_steps=state.spike_steps + (verdict is Verdict.SPIKE),
    )


def describe_divergence(
    bad: Sequence[StepFigures], limits: Limits | None, config: GuardConfig
) -> str | None:
    """Why the steps since the last good one are a divergence, or None while they are not."""
    is_finite = [math.isfinite(row.loss) and math.isfinite(row.gradient_norm) for row in bad]
    nonfinite, spikes = is_finite.count(False), is_finite.count(True)
    if nonfinite >= config.max_nonfinite_steps:
        return f"{_in_a_row(nonfinite)} not finite"
    if spikes < config.spike_steps or limits is None:
        return None
    last = bad[-1]
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
    figures = ", ".join(parts) or "the last one was not finite"
    kind = "spikes" if spikes > 1 else "a spike"
    return f"{_in_a_row(spikes)} {kind}: at step {last.step} the {figures}"


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


def plan_divergence(
    why: str, state: GuardState, limits: Limits | None, jump_steps: int
) -> Divergence:
    """The window in question: ``jump_steps`` steps up to the last bad one, and all the bad ones.

    Never before sample 0. ``state`` holds at least one bad step.
    """
    first, last = state.bad[0], state.bad[-1]
    end = last.first_n + last.samples
    begin = max(0, min(first.first_n, end - jump_steps * last.samples))
    return Divergence(
        why=why,
        at_step=last.step,
        jump_from_n=begin,
        jump_samples=end - begin,
        not_after_step=max(0, min(first.step - 1, last.step - jump_steps)),
        limits=limits,
        state=state,
    )


class RewindRequest(Exception):  # noqa: N818 - a request: the run goes on
    """Raised on all ranks alike: go back to an older checkpoint, and jump over a window of samples.

    ``rewinds.plan_rewind`` says to which one.
    """

    def __init__(self, divergence: Divergence) -> None:
        super().__init__(divergence.why)
        self.divergence = divergence


class Guard:
    """Called after every step; raises ``RewindRequest``, or ``GuardError`` where that may not be.

    ``state`` is what ``to_json`` gave when the checkpoint was saved at which the run goes on, and
    ``rewinds`` are those of the whole run. ``context`` is what the figures depend on by intent,
    such as the mixture and the batch: where it is another one than the state's, what was seen under
    the old one is no measure any more.
    """

    def __init__(
        self,
        config: GuardConfig,
        *,
        minimum_loss_scale: float,
        state: Mapping[str, Any] | None = None,
        rewinds: Sequence[Rewind] = (),
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.rewinds = tuple(rewinds)
        self.state = GuardState() if not state else GuardState.from_json(state)
        self.divergence: Divergence | None = None  # what it has raised for
        self._minimum_loss_scale = minimum_loss_scale
        self._context = dict(context or {})
        if state and dict(state.get("context", {})) != self._context and self.state.window:
            logger.info("guard: the mixture or the batch has changed, so the medians begin anew")
            self.state = replace(self.state, window=(), bad=())

    @property
    def may_rewind(self) -> bool:
        """Whether another divergence would be answered by a rewind."""
        return self.config.on_divergence == "rewind" and len(self.rewinds) < self.config.max_rewinds

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint carries."""
        return self.state.to_json() | {"context": self._context}

    def figures(self) -> dict[str, float]:
        """For the trackers."""
        return {
            "guard/nonfinite_steps": self.state.nonfinite_steps,
            "guard/spike_steps": self.state.spike_steps,
            "guard/rewinds": len(self.rewinds),
            "guard/jumped_samples": sum(rewind.jump_samples for rewind in self.rewinds),
        }

    def __call__(self, report: StepReport) -> None:
        figures = figures_of(report)
        limits = find_limits(self.state.window, self.config)
        # A skipped step is how fp16 finds its loss scale; only at the smallest scale it means
        # trouble.
        is_searching = report.is_skipped and report.loss_scale > self._minimum_loss_scale
        verdict = judge_step(figures, limits, is_searching=is_searching)
        self.state = advance(self.state, figures, verdict, self.config)
        if verdict in (Verdict.GOOD, Verdict.SEARCHING):
            return
        logger.warning(
            "guard: %s, %s; bad steps in a row: %d", verdict.value, figures, len(self.state.bad)
        )
        why = describe_divergence(self.state.bad, limits, self.config)
        if why is None:
            return
        self.divergence = plan_divergence(why, self.state, limits, self.config.jump_steps)
        if self.may_rewind:
            raise RewindRequest(self.divergence)
        raise stop_error(self.divergence, self.config, self.rewinds)


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


def stop_error(
    divergence: Divergence,
    config: GuardConfig,
    rewinds: Sequence[Rewind],
    *,
    problem: str | None = None,
) -> GuardError:
    """Why the run ends; ``problem`` says what stands against a rewind that might still be made."""
    steps = "\n".join(f"  {row}" for row in divergence.state.bad)
    if problem is None and config.on_divergence == "rewind":
        done = "; ".join(f"from step {r.at_step} to {r.to_step} ({r.why})" for r in rewinds)
        problem = (
            f"The run has been rewound {len(rewinds)} times, as often as guard.max_rewinds = "
            f"{config.max_rewinds} allows{': ' if done else ''}{done}."
        )
    reason = "" if problem is None else f"\n{problem}"
    return GuardError(
        f"{divergence.why}, so the run stopped:\n{steps}{reason}\n"
        "The same command goes on from the newest checkpoint with finite weights; those of step "
        f"{divergence.not_after_step + 1} and later were saved while this came up. First lower "
        "engine.optimizer.lr, lengthen the warm-up, or look at these samples."
    )
