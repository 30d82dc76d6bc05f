# Shape letters: B batch, T time, D model width, F inner width.
"""The feed-forward part of a block: GELU as in GPT-2, or SwiGLU (Shazeer 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lmscale.config.model import DecoderConfig
from lmscale.model.linear import Linear


class GeluFeedForward(nn.Module):
    """down(gelu(up(x)))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        inner = config.resolved_ffn_width
        self.up = Linear(config.width, inner, bias=config.bias, std=config.init_std)
        self.down = Linear(inner, config.width, bias=config.bias, std=config.residual_std)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BTD), approximate="tanh"))  # GPT-2's gelu_new


class SwigluFeedForward(nn.Module):
    """``gate_up`` holds the gate's rows, then the other half's: one product instead of two."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        inner = config.resolved_ffn_width
        self.gate_up = Linear(config.width, 2 * inner, bias=config.bias, std=config.init_std)
        self.down = Linear(inner, config.width, bias=config.bias, std=config.residual_std)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.down(F.silu(gate_BTF) * up_BTF)


def build_feed_forward(config: DecoderConfig) -> nn.Module:
    return SwigluFeedForward(config) if config.activation == "swiglu" else GeluFeedForward(config)
