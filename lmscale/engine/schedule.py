"""Learning rates as pure functions of the step, without any state to save."""

from __future__ import annotations

import math

from lmscale.config.run import RunConfig
from lmscale.config.training import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, *, peak: float, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step ``step``, counted from 1 to ``total_steps``.

    Warm-up is linear and reaches ``peak`` at step ``warmup_steps``. Then: ``constant`` stays;
    ``linear`` and ``cosine`` (Loshchilov and Hutter 2017, without restarts) fall over
    ``decay_steps`` to ``final_ratio`` × peak; ``wsd`` stays and falls linearly over its last
    ``decay_steps``.
    """
    warmup = schedule.warmup_steps
    if step <= warmup:
        return peak * step / warmup
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "wsd":
        decay = schedule.decay_steps or max(1, total_steps // 10)
        begin = max(warmup, total_steps - decay)
    else:
        decay = schedule.decay_steps or max(1, total_steps - warmup)
        begin = warmup
    progress = min(1.0, max(0, step - begin) / decay)
    remaining = (
        0.5 * (1 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1 - progress
    )
    return peak * (schedule.final_ratio + (1 - schedule.final_ratio) * remaining)


def rate_at(step: int, config: RunConfig) -> float:
    """The learning rate of a run's step, counted from 1."""
    schedule, peak = config.engine.schedule, config.engine.optimizer.lr
    return learning_rate(schedule, peak=peak, step=step, total_steps=config.train.steps)
