# Shape letters: B batch, T time, D model width.
"""One layer: attention and feed-forward, each normed before and added to the residual stream."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from lmscale.config.model import DecoderConfig
from lmscale.model.attention import Attention
from lmscale.model.cache import KeyValueCache
from lmscale.model.feed_forward import build_feed_forward
from lmscale.model.norm import build_norm


class Block(nn.Module):
    """Free of data-dependent Python, so that ``block.compile()`` gives one graph."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(
            config.norm, config.width, config.norm_eps, bias=config.bias
        )
        self.attention = Attention(config)
        self.feed_forward_norm = build_norm(
            config.norm, config.width, config.norm_eps, bias=config.bias
        )
        self.feed_forward = build_feed_forward(config)
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
