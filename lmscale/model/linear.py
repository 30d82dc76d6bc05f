"""torch's matrix modules without their own initial values, which ``init_weights`` would overwrite.

Drawing them takes a minute for 7 billion parameters on a CPU.
"""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Leave the memory as it was allocated."""


class Embedding(nn.Embedding):
    weight: nn.Parameter

    def reset_parameters(self) -> None:
        """Leave the memory as it was allocated."""
