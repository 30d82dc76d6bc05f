"""Lion: the sign of a momentum is the update (Chen et al. 2023, arXiv 2302.06675)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmscale.engine.per_parameter import PIECE, PerParameterOptimizer


class Lion(PerParameterOptimizer):
    """Elementwise, so that it takes any piece of a parameter; weight decay as AdamW's."""

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "weight_decay": 0.0})

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        near, far = group["betas"]
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        flat = (parameter.view(-1), gradient.reshape(-1), state["exp_avg"].view(-1))
        for values, slopes, momentum in zip(*(x.split(PIECE) for x in flat), strict=True):
            direction = torch.lerp(slopes, momentum, near).sign_()
            values.mul_(1 - group["lr"] * group["weight_decay"])
            values.add_(direction, alpha=-group["lr"])
            momentum.lerp_(slopes, 1 - far)
