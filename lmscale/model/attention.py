# Shape letters: B batch, T time, S time of the keys, C the most of them, D model width, H query
# heads, K key/value heads, X all of them (H + 2K), V head width.
"""Self-attention with grouped queries (Ainslie et al. 2023), over SDPA, FlexAttention and flash
attention of cut sequences."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from lmscale.config.model import DecoderConfig, EncoderConfig
from lmscale.model.initialize import Linear, RMSNorm
from lmscale.model.rotary import rotate
from lmscale.model.varlen import Packed, attend_packed

MOST_COMPILES = 64  # of a function, for all shapes of a run; torch's own limit is 8


class KeyValueCache:
    """One block's keys and values of the tokens so far: a new token costs one token's work."""

    def __init__(self, keys_BKCV: Tensor, values_BKCV: Tensor) -> None:
        self.keys_BKCV = keys_BKCV
        self.values_BKCV = values_BKCV
        self.length = 0
        self.num_prefix = 0  # tokens that are seen by all, whatever follows what

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

    def __init__(self, config: DecoderConfig | EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.resolved_kv_heads
        self.head_width = config.resolved_head_width
        self.dropout = config.dropout
        self.softcap = config.attention_softcap
        self.scale = config.attention_scale
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        parts = (queries, keys, keys)
        has_bias = config.bias or config.qkv_bias
        self.qkv = Linear(config.width, parts, bias=has_bias, std=config.init_std)
        self.out = Linear(queries, config.width, bias=config.bias, std=config.residual_std)
        self.query_norm, self.key_norm = (
            RMSNorm(self.head_width, config.norm_eps) if config.qk_norm else nn.Identity()
            for _ in range(2)
        )

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Tensor | None,
        mask: Tensor | BlockMask | Packed | None,
        cache: KeyValueCache | None = None,
        num_remembered: int = 0,
    ) -> Tensor:
        """The first ``num_remembered`` tokens are looked at and do not look: they get no output."""
        batch, length, _ = x_BTD.shape
        heads_BTXV = self.qkv(x_BTD).view(batch, length, -1, self.head_width)
        q_BTHV, k_BTKV, v_BTKV = heads_BTXV.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        q_BTHV, k_BTKV = self.query_norm(q_BTHV), self.key_norm(k_BTKV)
        if rotation is not None:
            q_BTHV, k_BTKV = rotate(q_BTHV, rotation), rotate(k_BTKV, rotation)
        q_BTHV = q_BTHV[:, num_remembered:]
        q_BHTV, k_BKTV, v_BKTV = (x.transpose(1, 2) for x in (q_BTHV, k_BTKV, v_BTKV))
        if cache is not None:
            k_BKTV, v_BKTV = cache.extend(k_BKTV, v_BKTV)
        dropout = self.dropout if self.training else 0.0
        if self.scale is not None:  # all ways to attend divide by √V, as most models do
            q_BHTV = q_BHTV * (self.scale * self.head_width**0.5)
        y_BHTV = attend(q_BHTV, k_BKTV, v_BKTV, mask, dropout=dropout, softcap=self.softcap)
        return self.out(y_BHTV.transpose(1, 2).flatten(2))


def attend(
    q_BHTV: Tensor,
    k_BKSV: Tensor,
    v_BKSV: Tensor,
    mask: Tensor | BlockMask | Packed | None,
    *,
    dropout: float = 0.0,
    softcap: float = 0.0,
) -> Tensor:
    """softmax(q kᵀ / √V) v under the mask, [B, H, T, V]; no mask means causal.

    Without a mask a single query sees every key: it is the newest token. ``softcap``: see
    ``cap_softly``.
    """
    if isinstance(mask, Packed):
        assert not softcap and not dropout, "attention_backend gives no such layout"
        return attend_packed(q_BHTV, k_BKSV, v_BKSV, mask)
    is_grouped = q_BHTV.shape[1] != k_BKSV.shape[1]
    if isinstance(mask, BlockMask):
        attention = compiled_flex_attention() if q_BHTV.is_cuda else flex_attention
        return attention(
            q_BHTV,
            k_BKSV,
            v_BKSV,
            score_mod=_cap_score(softcap) if softcap else None,
            block_mask=mask,
            enable_gqa=is_grouped,
        )
    if is_grouped and (mask is not None or softcap):
        # CUDA's kernels that take a mask know no groups, and the fallback would hold [B, H, T, S]
        # scores.
        group = q_BHTV.shape[1] // k_BKSV.shape[1]
        k_BKSV, v_BKSV = (x.repeat_interleave(group, dim=1) for x in (k_BKSV, v_BKSV))
        is_grouped = False
    if softcap:
        return _attend_capped(q_BHTV, k_BKSV, v_BKSV, mask, dropout=dropout, softcap=softcap)
    return F.scaled_dot_product_attention(
        q_BHTV,
        k_BKSV,
        v_BKSV,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and q_BHTV.shape[2] > 1,
        enable_gqa=is_grouped,
    )


def cap_softly(x: Tensor, softcap: float) -> Tensor:
    """softcap · tanh(x / softcap), which keeps x within ±softcap (Gemma 2, section 2); 0: x."""
    return softcap * torch.tanh(x / softcap) if softcap else x


def _attend_capped(
    q_BHTV: Tensor,
    k_BHSV: Tensor,
    v_BHSV: Tensor,
    mask: Tensor | None,
    *,
    dropout: float,
    softcap: float,
) -> Tensor:
    """``attend`` with all the scores [B, H, T, S] at hand, as SDPA's kernels cap none."""
    scores_BHTS = q_BHTV @ k_BHSV.mT * q_BHTV.shape[-1] ** -0.5
    if mask is None:
        queries, keys = scores_BHTS.shape[-2:]
        mask = torch.ones_like(scores_BHTS[0, 0], dtype=torch.bool).tril(keys - queries)
    scores_BHTS = cap_softly(scores_BHTS, softcap).masked_fill(~mask, -torch.inf)
    share_BHTS = scores_BHTS.softmax(-1, dtype=torch.float32).to(q_BHTV.dtype)
    return F.dropout(share_BHTS, dropout) @ v_BHSV


@functools.cache  # one function a cap, since FlexAttention is compiled anew for every other one
def _cap_score(softcap: float) -> Callable[..., Tensor]:
    return lambda score, b, h, q_index, kv_index: cap_softly(score, softcap)


@functools.cache
def compiled_flex_attention(backend: str = "inductor") -> Callable[..., Tensor]:
    """FlexAttention is a kernel only when compiled; uncompiled it would hold all the scores: so
    an error where there are more shapes than torch may compile it for.
    """
    if not torch.compiler.is_compiling():
        allow_compiles()
    return torch.compile(flex_attention, dynamic=False, fullgraph=True, backend=backend)


def allow_compiles() -> None:
    """Let torch compile a function as often as a run has shapes of batches for it: of the steps of
    ``batch.warmup``, evaluation and the probe, in a model and its teacher.
    """
    import torch._dynamo.config as dynamo  # a second, which a run that compiles nothing is spared

    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_COMPILES)
