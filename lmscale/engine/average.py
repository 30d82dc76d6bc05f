"""An average of the weights over the steps, kept in fp32 beside the masters and dealt out as they.

Exponential: after step s the average moves to the weights by 1 - d(s). It is one more of
``Engine.kept_elements``, so checkpoints have it at every stage and world size, and no rank sends
anything for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmscale.config.training import AVERAGE
from lmscale.engine.engine import Engine
from lmscale.engine.masters import base_optimizer, master_groups
from lmscale.engine.per_parameter import PIECE
from lmscale.engine.schedule_free import Z, average_point


def average_decay(most: float, step: int) -> float:
    """What of the average remains at ``step``, counted from 1: ``most``, and at first less.

    With (1 + s) / (10 + s), as of TensorFlow's ExponentialMovingAverage, the random weights of the
    beginning are gone after some steps, however slow the average is.
    """
    return min(most, (1 + step) / (10 + step))


def keep_average(engine: Engine) -> None:
    """Begin the average with the weights as they are, where the configuration wants one."""
    if engine.config.ema_decay:
        engine.kept_elements[AVERAGE] = {
            master: master.detach().clone() for master, _ in master_groups(engine)
        }


@torch.no_grad()
def update_average(engine: Engine, step: int) -> None:
    """Take the weights after ``step`` into the average; of a step that was skipped too, so that it
    is a function of the steps and waits for no device.
    """
    remains = average_decay(engine.config.ema_decay, step)
    for master, average in engine.kept_elements.get(AVERAGE, {}).items():
        average.lerp_(master, 1 - remains)


@torch.no_grad()
def averages_of(engine: Engine) -> Mapping[Tensor, Tensor]:
    """A rank's masters → the averages of their weights: those that are kept, or the x that
    schedule-free AdamW's points make, in memory of its own.
    """
    if AVERAGE in engine.kept_elements:
        return engine.kept_elements[AVERAGE]
    state, beta = base_optimizer(engine).state, engine.config.optimizer.betas[0]
    return {
        master: average_point(master.detach(), state[master][Z], beta)
        for master, _ in master_groups(engine)
    }


@torch.no_grad()
def exchange(averages: Mapping[Tensor, Tensor]) -> None:
    """Put the averages where the masters are, and the masters where they were; twice changes no
    bit. Whoever calls it refreshes the parameters of the forward pass (checkpoint/fragments.py).
    """
    for master, average in averages.items():
        pairs = (tensor.detach().view(-1).split(PIECE) for tensor in (master, average))
        for weights, means in zip(*pairs, strict=True):
            held = weights.clone()
            weights.copy_(means)
            means.copy_(held)
