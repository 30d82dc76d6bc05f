"""The guard: it sees every step's loss and gradient norm, and says when a run has gone wrong.

A step is good, or it is not finite, or a spike: its loss or gradient norm is far above the median
of the good steps before it. What a single bad step does is little, as one that is not finite
changes no weight and a large gradient is clipped. Several severe ones in a row are a divergence,
and so are more than half of the last 100 steps. Spikes of the loss alone or of the norm alone are
none: where more than half of the steps have them, the data has another level, and the medians
follow it. Every judgement is a pure function of the steps before it, so all ranks judge
alike, and so does a run that was interrupted: the guard's state is in the checkpoints.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import takewhile
from statistics import median
from typing import TYPE_CHECKING, Any

from lmscale.config.safety import GuardConfig
from lmscale.errors import CheckpointError, GuardError
from lmscale.train.figures import Limits, StepFigures, figures_of, find_limits
from lmscale.train.loop import StepReport

if TYPE_CHECKING:
    from lmscale.train.rewinds import Rewind

logger = logging.getLogger(__name__)

RECENT_STEPS = 100  # for the evidence, and for what goes wrong again and again
# A loss beyond this share of what guessing would have: no other text does that to a model that knew
# better a moment before. Unigram statistics alone are about two thirds.
LOST_SHARE = 0.6


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
    ``rewinds`` are those of the whole run. ``context`` gives what the figures depend on by intent
    from a sample's number on, such as the mixture and the batch: where it is another one than the
    step's before, or the state's, what was seen under the old one is no measure any more.
    """

    def __init__(
        self,
        config: GuardConfig,
        *,
        minimum_loss_scale: float,
        vocab_size: int,
        state: Mapping[str, Any] | None = None,
        rewinds: Sequence[Rewind] = (),
        context: Callable[[int], Mapping[str, Any]] = lambda n: {},
    ) -> None:
        self.config = config
        self.rewinds = tuple(rewinds)
        self.state = GuardState() if not state else GuardState.from_json(state)
        self.divergence: Divergence | None = None  # what it has raised for
        self._minimum_loss_scale = minimum_loss_scale
        self._lost_loss = LOST_SHARE * math.log(vocab_size)
        self._context_at = context
        self._context = dict((state or {}).get("context", {}))  # of the last step

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

    def _enter(self, context: Mapping[str, Any]) -> None:
        if context != self._context and self.state.window:
            logger.info("guard: the mixture or the batch has changed, so the medians begin anew")
            self.state = replace(self.state, window=(), bad=(), recent_bad=())
        self._context = dict(context)

    def __call__(self, report: StepReport) -> None:
        self._enter(self._context_at(report.first_n))
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
        trouble = find_trouble(self.state, limits, self.config, lost_loss=self._lost_loss)
        if trouble is None:
            return
        if trouble.is_level:
            assert limits is not None
            logger.warning("guard: the medians follow the data's new level: %s", trouble.why)
            self.state = follow_level(self.state, trouble.rows, limits)
            return
        self.divergence = plan_divergence(trouble, self.state, limits, self.config.jump_steps)
        if self.may_rewind:
            raise RewindRequest(self.divergence)
        raise stop_error(self.divergence, self.config, self.rewinds)


def stop_error(
    divergence: Divergence,
    config: GuardConfig,
    rewinds: Sequence[Rewind],
    *,
    problem: str | None = None,
) -> GuardError:
    """Why the run ends; ``problem`` says what stands against a rewind that might still be made."""
    steps = "\n".join(f"  {row}" for row in divergence.bad)
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
