"""torch's matrix modules without their own initial values, which ``init_weights`` would overwrite.

Drawing those takes a minute for 7 billion parameters on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lmscale.model.initialize import Declared


class Linear(nn.Linear):
    """A linear map whose matrix begins with ``std``, and whose bias, if it has one, begins at 0."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, std: float) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.std = std

    def reset_parameters(self) -> None:
        """Leave the memory as it was allocated."""

    def declare(self) -> Mapping[str, Declared]:
        return {"weight": Declared(kind="linear", std=self.std), "bias": Declared(kind="bias")}


class Embedding(nn.Embedding):
    """A table of vectors that begin with ``std``."""

    weight: nn.Parameter

    def __init__(self, rows: int, width: int, *, std: float) -> None:
        super().__init__(rows, width)
        self.std = std

    def reset_parameters(self) -> None:
        """Leave the memory as it was allocated."""

    def declare(self) -> Mapping[str, Declared]:
        return {"weight": Declared(kind="embedding", std=self.std)}
