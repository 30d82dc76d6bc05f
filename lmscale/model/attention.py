# Shape letters: B batch, T time, S time of the keys, C the most of them, D model width, H query
# heads, K key/value heads, X all of them (H + 2K), V head width, R half of it.
"""Self-attention with grouped queries (Ainslie et al. 2023), over SDPA and FlexAttention."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from lmscale.config.model import DecoderConfig
from lmscale.model.initialize import Linear, RMSNorm


class KeyValueCache:
    """One block's keys and values of the tokens so far: a new token costs one token's work."""

    def __init__(self, keys_BKCV: Tensor, values_BKCV: Tensor) -> None:
        self.keys_BKCV = keys_BKCV
        self.values_BKCV = values_BKCV
        self.length = 0

    def extend(self, k_BKTV: Tensor, v_BKTV: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new tokens; the keys and values of all so far, as views [B, K, S, V]."""
        end = self.length + k_BKTV.shape[2]
        assert end <= self.keys_BKCV.shape[2], "the caller allocates for the longest sequence"
        self.keys_BKCV[:, :, self.length : end] = k_BKTV
        self.values_BKCV[:, :, self.length : end] = v_BKTV
        self.length = end
        return self.keys_BKCV[:, :, :end], self.values_BKCV[:, :, :end]


class Attention(nn.Module):
    """``qkv`` holds the rows of all query heads, then all key heads, then all value heads."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.resolved_kv_heads
        self.head_width = config.resolved_head_width
        self.dropout = config.dropout
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        parts = (queries, keys, keys)
        self.qkv = Linear(config.width, parts, bias=config.bias, std=config.init_std)
        self.out = Linear(queries, config.width, bias=config.bias, std=config.residual_std)
        self.query_norm, self.key_norm = (
            RMSNorm(self.head_width, config.norm_eps) if config.qk_norm else nn.Identity()
            for _ in range(2)
        )

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


# Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in Llama's layout of halves.


def plan_rotation(positions_BT: Tensor, *, head_width: int, theta: float) -> Tensor:
    """Cosines and sines, f32 [2, B, T, 1, R], of the angles position · theta^(-2r/V).

    Made from the positions in every pass: no buffer to keep, move between dtypes or save.
    """
    pairs_R = torch.arange(0, head_width, 2, device=positions_BT.device, dtype=torch.float32)
    frequency_R = theta ** (-pairs_R / head_width)
    angle_BTR = positions_BT[..., None].float() * frequency_R
    return torch.stack([angle_BTR.cos(), angle_BTR.sin()])[:, :, :, None]


def rotate(x_BTHV: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair (r, r + V/2) by its angle, in fp32; the dtype stays."""
    cos_BT1R, sin_BT1R = rotation.unbind(0)
    a_BTHR, b_BTHR = x_BTHV.float().chunk(2, dim=-1)
    turned = torch.cat(
        [a_BTHR * cos_BT1R - b_BTHR * sin_BT1R, b_BTHR * cos_BT1R + a_BTHR * sin_BT1R], dim=-1
    )
    return turned.to(x_BTHV.dtype)
