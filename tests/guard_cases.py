"""A guard, and steps to show it, for the tests of what it finds and of what it asks for."""

from __future__ import annotations

import math

from handmade_checkpoints import manifest_of

from lmscale.config.safety import GuardConfig
from lmscale.engine.step_report import StepReport
from lmscale.errors import GuardError
from lmscale.guard.guard import Guard, RewindRequest
from lmscale.guard.state import read_guard_state

NAN, INF = math.nan, math.inf
WINDOW = 16
VOCAB = 50_000  # a loss above 6.5 is as good as guessing


def report(step, **changes) -> StepReport:
    values = {
        "step": step,
        "first_n": 12 * (step - 1),
        "samples": 12,
        "targets": 300,
        "digest": 1,
        "figures": {"loss": changes.pop("loss", 2.0), "z_loss": 0.0},
        "counts": {"loss": 300, "z_loss": 300},
        "learning_rate": 3e-4,
        "gradient_norm": 1.0,
        "is_skipped": False,
        "loss_scale": 1.0,
        "step_seconds": 0.1,
        "wait_seconds": 0.0,
        "stop_reason": None,
    }
    return StepReport(**(values | changes))


def config(**changes) -> GuardConfig:
    values = {"spike_window": WINDOW, "max_nonfinite_steps": 3, "on_divergence": "stop"}
    return GuardConfig(**(values | changes))


def guard_of(
    *, minimum_loss_scale=1, state=None, rewinds=(), context=lambda n: {}, **changes
) -> Guard:
    """``state``: what ``to_json`` gave, as a manifest has it."""
    saved = manifest_of(1, [], state={"guard": state})
    return Guard(
        config(**changes),
        minimum_loss_scale=minimum_loss_scale,
        vocab_size=VOCAB,
        state=read_guard_state(saved, where="step 1"),
        rewinds=rewinds,
        context=context,
    )


def watch(guard, changes, *, first_step=1):
    """The step at which the guard raises, and what; or the last one and None."""
    step = first_step - 1
    for step, change in enumerate(changes, start=first_step):
        try:
            guard(report(step, **change))
        except (GuardError, RewindRequest) as raised:
            return step, raised
    return step, None


GOOD: dict = {}
BAD_LOSS, BAD_NORM = {"loss": NAN}, {"gradient_norm": INF}
FULL = [GOOD] * WINDOW
LOST = {"loss": 9.0}
HIGH_LOSS, HIGH_NORM = {"loss": 4.0}, {"gradient_norm": 40.0}
SPIKES = [LOST, HIGH_LOSS | HIGH_NORM]
