"""Schedule-free AdamW: an average of the iterates in place of a decay of the learning rate.

Defazio et al. 2024 (arXiv 2405.15682), algorithm 1 with AdamW's normalised step. Three points: z
steps, x is the average of all z, and the gradient is taken at y = (1 - β1) z + β1 x, which the
model trains with. With d the gradient over the root of its mean square, and the decay at y::

    z' = z - γ d        x' = (1 - c) x + c z'        c = γ² / sum of γ² so far

where γ in c is the largest rate so far. Kept are y, as the master, and z; x follows from both, so
it takes no more memory than AdamW. What is scored is x (engine/average.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmscale.engine.per_parameter import PIECE, PerParameterOptimizer

Z = "z"
WEIGHT_SUM, LARGEST_RATE = "weight_sum", "largest_rate"  # numbers: the same for every master


class ScheduleFreeAdamW(PerParameterOptimizer):
    """Elementwise, so that it takes any piece of a parameter. Groups have ``base_lr``, the rate of
    a group whose ``lr_ratio`` is 1, by which all groups average alike.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float
    ) -> None:
        defaults = {"lr": 0.0, "base_lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(groups, defaults)

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(first_states(parameter))
        state["step"] += 1
        state[LARGEST_RATE] = max(state[LARGEST_RATE], group["base_lr"])
        state[WEIGHT_SUM] += state[LARGEST_RATE] ** 2
        # Of z in the average; before the first rate above 0 all three points are the same.
        share = state[LARGEST_RATE] ** 2 / state[WEIGHT_SUM] if state[WEIGHT_SUM] else 1.0
        (near, far), rate = group["betas"], group["lr"]
        correction = 1 - far ** int(state["step"])
        kept = (tensor.view(-1) for tensor in (parameter, state[Z], state["exp_avg_sq"]))
        pieces = (flat.split(PIECE) for flat in (gradient.reshape(-1), *kept))
        for slopes, y, z, squares in zip(*pieces, strict=True):
            squares.mul_(far).addcmul_(slopes, slopes, value=1 - far)
            direction = slopes / (squares / correction).sqrt_().add_(group["eps"])
            direction.add_(y, alpha=group["weight_decay"])
            # (1 - β1) z' + β1 x', where β1 x = y - (1 - β1) z:
            y.lerp_(z, share).add_(direction, alpha=rate * (near * (1 - share) - 1))
            z.sub_(direction, alpha=rate)


def first_states(master: Tensor) -> dict[str, Any]:
    """All three points begin where the weights are."""
    return {
        Z: master.detach().clone(),
        "exp_avg_sq": torch.zeros_like(master),
        "step": torch.zeros((), dtype=torch.float32),  # on the host, which reads it
        WEIGHT_SUM: 0.0,
        LARGEST_RATE: 0.0,
    }


def average_point(y: Tensor, z: Tensor, beta: float) -> Tensor:
    """x, a new tensor, of any part of y and z."""
    return torch.lerp(y, z, 1 - 1 / beta)
