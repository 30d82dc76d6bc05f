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
from dataclasses import replace
from typing import Any

from lmscale.config.safety import GuardConfig
from lmscale.engine.step_report import StepReport
from lmscale.errors import GuardError
from lmscale.guard.divergence import Divergence, find_trouble, follow_level, plan_divergence
from lmscale.guard.state import GuardState, Verdict, advance, figures_of, find_limits, judge_step
from lmscale.history.history import Rewind

logger = logging.getLogger(__name__)

# A loss beyond this share of what guessing would have: no other text does that to a model that knew
# better a moment before. Unigram statistics alone are about two thirds.
LOST_SHARE = 0.6


class RewindRequest(Exception):  # noqa: N818 - a request: the run goes on
    """Raised on all ranks alike: go back to an older checkpoint, and jump over a window of samples.

    ``divergence.plan_rewind`` chooses the checkpoint.
    """

    def __init__(self, divergence: Divergence) -> None:
        super().__init__(divergence.why)
        self.divergence = divergence


class Guard:
    """Called after every step; raises ``RewindRequest``, or ``GuardError`` where that may not be.

    ``state`` is what ``to_json`` gave when the checkpoint was saved at which the run goes on, and
    ``rewinds`` are those of the whole run. ``context`` gives what the figures depend on by intent
    from a sample's number on, such as the mixture: where that or the batch is another one than
    the step's before, or the state's, what was seen under the old one is no measure any more.
    """

    def __init__(
        self,
        config: GuardConfig,
        *,
        minimum_loss_scale: float,
        vocab_size: int,
        state: GuardState | None = None,
        rewinds: Sequence[Rewind] = (),
        context: Callable[[int], Mapping[str, Any]] = lambda n: {},
    ) -> None:
        self.config = config
        self.rewinds = tuple(rewinds)
        self.state = state or GuardState()
        self.divergence: Divergence | None = None  # what it has raised for
        self._minimum_loss_scale = minimum_loss_scale
        self._lost_loss = LOST_SHARE * math.log(vocab_size)
        self._context_at = context

    @property
    def may_rewind(self) -> bool:
        """Whether another divergence would be answered by a rewind."""
        return self.config.on_divergence == "rewind" and len(self.rewinds) < self.config.max_rewinds

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint carries."""
        return self.state.to_json()

    def figures(self) -> dict[str, float]:
        """For the trackers."""
        return {
            "guard/nonfinite_steps": self.state.nonfinite_steps,
            "guard/spike_steps": self.state.spike_steps,
            "guard/rewinds": len(self.rewinds),
            "guard/jumped_samples": sum(rewind.jump_samples for rewind in self.rewinds),
        }

    def _enter(self, context: Mapping[str, Any], step: int) -> None:
        before = self.state.context
        if context != before and self.state.window:
            changes = [
                f"{name} = {_describe(context[name])} (before: {_describe(before.get(name))})"
                for name in context
                if context[name] != before.get(name)
            ]
            logger.info(
                "from step %d on %s: the guard's medians begin anew", step, ", ".join(changes)
            )
            self.state = replace(self.state, window=(), bad=(), recent_bad=())
        self.state = replace(self.state, context=dict(context))

    def __call__(self, report: StepReport) -> None:
        context = self._context_at(report.first_n)
        self._enter({"global_windows": report.samples, **context}, report.step)
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


def _describe(setting: Any) -> str:
    """Of a mixture its shares: ``a 75 %, b 25 %``."""
    if not isinstance(setting, Mapping):
        return str(setting)
    total = sum(setting.values())
    return ", ".join(f"{name} {100 * n / total:.4g} %" for name, n in setting.items())


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
        described = "; ".join(f"from step {r.at_step} to {r.to_step} ({r.why})" for r in rewinds)
        problem = (
            f"The run has been rewound {len(rewinds)} times, as often as guard.max_rewinds = "
            f"{config.max_rewinds} allows{': ' if described else ''}{described}."
        )
    reason = "" if problem is None else f"\n{problem}"
    return GuardError(
        f"{divergence.why}, so the run stopped:\n{steps}{reason}\n"
        "The same command goes on from the newest checkpoint with finite weights; those of step "
        f"{divergence.not_after_step + 1} and later were saved while this came up. First lower "
        "engine.optimizer.lr, lengthen the warm-up, or look at these samples."
    )
