# Shape letters: B batch, T time, S time of the keys, D model width, H query heads, K key/value
# heads, X all of them (H + 2K), V head width.
"""Self-attention with grouped queries (Ainslie et al. 2023), over SDPA and FlexAttention."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from lmscale.config.model import DecoderConfig
from lmscale.model.cache import KeyValueCache
from lmscale.model.linear import Linear
from lmscale.model.norm import RMSNorm
from lmscale.model.rope import rotate


class Attention(nn.Module):
    """``qkv`` holds the rows of all query heads, then all key heads, then all value heads."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.resolved_kv_heads
        self.head_width = config.resolved_head_width
        self.dropout = config.dropout
        rows = (self.heads + 2 * self.kv_heads) * self.head_width
        self.qkv = Linear(config.width, rows, bias=config.bias, std=config.init_std)
        self.out = Linear(
            self.heads * self.head_width, config.width, bias=config.bias, std=config.residual_std
        )
        norms = [
            RMSNorm(self.head_width, config.norm_eps) if config.qk_norm else nn.Identity()
            for _ in range(2)
        ]
        self.query_norm, self.key_norm = norms

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Tensor | None,
        mask: Tensor | BlockMask | None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        batch, length, _ = x_BTD.shape
        heads_BTXV = self.qkv(x_BTD).view(batch, length, -1, self.head_width)
        q_BTHV, k_BTKV, v_BTKV = heads_BTXV.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        q_BTHV, k_BTKV = self.query_norm(q_BTHV), self.key_norm(k_BTKV)
        if rotation is not None:
            q_BTHV, k_BTKV = rotate(q_BTHV, rotation), rotate(k_BTKV, rotation)
        q_BHTV, k_BKTV, v_BKTV = (x.transpose(1, 2) for x in (q_BTHV, k_BTKV, v_BTKV))
        if cache is not None:
            k_BKTV, v_BKTV = cache.extend(k_BKTV, v_BKTV)
        y_BHTV = attend(
            q_BHTV, k_BKTV, v_BKTV, mask, dropout=self.dropout if self.training else 0.0
        )
        return self.out(y_BHTV.transpose(1, 2).reshape(batch, length, -1))


def attend(
    q_BHTV: Tensor,
    k_BKSV: Tensor,
    v_BKSV: Tensor,
    mask: Tensor | BlockMask | None,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q kᵀ / √V) v under the mask, [B, H, T, V]; no mask means causal.

    Without a mask a single query sees every key: it is the newest token.
    """
    is_grouped = q_BHTV.shape[1] != k_BKSV.shape[1]
    if isinstance(mask, BlockMask):
        attention = _compiled_flex_attention() if q_BHTV.is_cuda else flex_attention
        return attention(q_BHTV, k_BKSV, v_BKSV, block_mask=mask, enable_gqa=is_grouped)
    if is_grouped and mask is not None:
        # CUDA's kernels that take a mask know no groups, and the fallback would hold [B, H, T, S]
        # scores.
        group = q_BHTV.shape[1] // k_BKSV.shape[1]
        k_BKSV, v_BKSV = (x.repeat_interleave(group, dim=1) for x in (k_BKSV, v_BKSV))
        is_grouped = False
    return F.scaled_dot_product_attention(
        q_BHTV,
        k_BKSV,
        v_BKSV,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and q_BHTV.shape[2] > 1,
        enable_gqa=is_grouped,
    )


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    """FlexAttention is a kernel only when compiled; uncompiled it would hold all the scores."""
    return torch.compile(flex_attention, dynamic=False)
