"""What Lion, Adafactor and schedule-free AdamW share: each parameter is updated by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

# Elements that are worked on at a time: under ZeRO a rank's masters are one flat tensor, of which
# what is computed between would be whole copies.
PIECE = 2**24


class PerParameterOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer that says how it updates a parameter."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update, unless a gradient is not finite (``found_inf``, as of torch's fused ones)."""
        if getattr(self, "found_inf", False):
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, group)

    @abstractmethod
    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Of one parameter, in place; without autograd."""
