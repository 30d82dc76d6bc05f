# Shape letters: B batch, T time, D model width, F inner width of the feed-forward.
"""One layer: attention and feed-forward, each normed before and added to the residual stream."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from lmscale.config.model import DecoderConfig
from lmscale.model.attention import Attention, KeyValueCache
from lmscale.model.declared import Linear, build_norm


class GeluFeedForward(nn.Module):
    """down(gelu(up(x))), as in GPT-2."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        inner = config.resolved_ffn_width
        self.up = Linear(config.width, inner, bias=config.bias, std=config.init_std)
        self.down = Linear(inner, config.width, bias=config.bias, std=config.residual_std)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BTD), approximate="tanh"))  # gelu_new


class SwigluFeedForward(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020).

    ``gate_up`` holds the gate's rows, then the other half's: one product instead of two.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        inner = config.resolved_ffn_width
        self.gate_up = Linear(config.width, 2 * inner, bias=config.bias, std=config.init_std)
        self.down = Linear(inner, config.width, bias=config.bias, std=config.residual_std)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.down(F.silu(gate_BTF) * up_BTF)


class Block(nn.Module):
    """Free of data-dependent Python, so that ``block.compile()`` gives one graph."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = build_norm(config)
        is_gated = config.activation == "swiglu"
        self.feed_forward = SwigluFeedForward(config) if is_gated else GeluFeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Tensor | None,
        mask: Tensor | BlockMask | None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        attended_BTD = self.attention(self.attention_norm(x_BTD), rotation, mask, cache)
        x_BTD = x_BTD + self.dropout(attended_BTD)
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))
