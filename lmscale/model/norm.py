# Shape letters: D width of what is normed.
"""LayerNorm and RMSNorm (Zhang and Sennrich 2019). Statistics and scaling are computed in fp32.

torch's kernels read bf16 and fp16, compute in fp32 and round once at the end (tested), so no fp32
copy of the activations is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmscale.model.initialize import Declared


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)

    def declare(self) -> Mapping[str, Declared]:
        return {"weight": Declared(kind="norm", constant=1.0)}


class LayerNorm(nn.Module):
    """(x - mean) / std · weight (+ bias) over the last dimension."""

    def __init__(self, width: int, eps: float, *, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)

    def declare(self) -> Mapping[str, Declared]:
        return {"weight": Declared(kind="norm", constant=1.0), "bias": Declared(kind="bias")}


def build_norm(kind: str, width: int, eps: float, *, bias: bool) -> nn.Module:
    return LayerNorm(width, eps, bias=bias) if kind == "layernorm" else RMSNorm(width, eps)
