# Shape letters: B batch, K key/value heads, T new tokens, S tokens so far, C capacity, V head
# width.
"""Keys and values of the tokens so far, so that a new token costs one token's work."""

from __future__ import annotations

import torch
from torch import Tensor

from lmscale.config.model import DecoderConfig


class KeyValueCache:
    """One block's keys and values, allocated once for ``capacity`` tokens."""

    def __init__(
        self,
        *,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (batch, kv_heads, capacity, head_width)
        self.keys_BKCV = torch.empty(shape, dtype=dtype, device=device)
        self.values_BKCV = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def extend(self, k_BKTV: Tensor, v_BKTV: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new tokens; the keys and values of all so far, as views [B, K, S, V]."""
        end = self.length + k_BKTV.shape[2]
        assert end <= self.keys_BKCV.shape[2], "the caller allocates for the longest sequence"
        self.keys_BKCV[:, :, self.length : end] = k_BKTV
        self.values_BKCV[:, :, self.length : end] = v_BKTV
        self.length = end
        return self.keys_BKCV[:, :, :end], self.values_BKCV[:, :, :end]


def build_caches(
    config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
) -> list[KeyValueCache]:
    """An empty cache for every block."""
    return [
        KeyValueCache(
            batch=batch,
            kv_heads=config.resolved_kv_heads,
            capacity=capacity,
            head_width=config.resolved_head_width,
            dtype=dtype,
            device=device,
        )
        for _ in range(config.layers)
    ]
