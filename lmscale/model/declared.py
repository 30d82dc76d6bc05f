"""torch's modules, declaring how their parameters begin.

Matrices are not given torch's own initial values, which ``init_weights`` would overwrite: drawing
those takes a minute for 7 billion parameters on a CPU. Norms read bf16 and fp16, compute in fp32
and round once at the end (tested), so no fp32 copy of the activations is kept for the backward
pass.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lmscale.config.model import DecoderConfig
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


class RMSNorm(nn.RMSNorm):
    """x / rms(x) · weight over the last dimension (Zhang and Sennrich 2019)."""

    def declare(self) -> Mapping[str, Declared]:
        return {"weight": Declared(kind="norm", constant=1.0)}


class LayerNorm(nn.LayerNorm):
    """(x - mean) / std · weight (+ bias) over the last dimension."""

    def declare(self) -> Mapping[str, Declared]:
        return {"weight": Declared(kind="norm", constant=1.0), "bias": Declared(kind="bias")}


def build_norm(config: DecoderConfig) -> nn.Module:
    """The norm of the residual stream."""
    if config.norm == "layernorm":
        return LayerNorm(config.width, config.norm_eps, bias=config.bias)
    return RMSNorm(config.width, config.norm_eps)
