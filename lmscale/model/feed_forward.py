# Shape letters: B batch, T time, D model width, F inner width of the feed-forward.
"""The feed-forward part of every Transformer family, over one table of activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmscale.config.model import DecoderConfig, EncoderConfig
from lmscale.config.model_base import GATED, Activation
from lmscale.model.initialize import Linear

FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": partial(F.gelu, approximate="tanh"),  # gelu_new, as in GPT-2
    "gelu_exact": F.gelu,  # by the error function, as in BERT
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


class FeedForward(nn.Module):
    """down(f(up(x))), or gated down(f(gate(x)) · up(x)) (Shazeer 2020, arXiv 2002.05202).

    ``gate_up`` holds the gate's rows, then the other half's: one product instead of two.
    ``dropout`` is of what ``down`` takes.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        activation: Activation,
        *,
        bias: bool,
        std: float,
        residual_std: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.is_gated = activation in GATED
        self.function = FUNCTIONS[GATED.get(activation, activation)]
        if self.is_gated:
            self.gate_up = Linear(width, (inner, inner), bias=bias, std=std)
        else:
            self.up = Linear(width, inner, bias=bias, std=std)
        self.down = Linear(inner, width, bias=bias, std=residual_std)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.is_gated:
            return self.down(self.dropout(self.function(self.up(x_BTD))))
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.down(self.dropout(self.function(gate_BTF) * up_BTF))


def build_feed_forward(config: DecoderConfig | EncoderConfig) -> FeedForward:
    """That of a block of a decoder or an encoder."""
    return FeedForward(
        config.width,
        config.resolved_ffn_width,
        config.activation,
        bias=config.bias,
        std=config.init_std,
        residual_std=config.residual_std,
    )
