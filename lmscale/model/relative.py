# Shape letters: T time of queries, S of keys, H heads.
"""T5's relative positions (Raffel et al. 2020, arXiv 1910.10683, section 2.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lmscale.config.model import EncoderDecoderConfig
from lmscale.model.initialize import Embedding


class RelativeBias(nn.Module):
    """A bias of each head's scores by the bucket of the distance (Raffel et al. 2020, 2.1)."""

    def __init__(self, config: EncoderDecoderConfig, *, looks_ahead: bool) -> None:
        super().__init__()
        self.farthest, self.looks_ahead = config.relative_distance, looks_ahead
        std = config.init_std or config.width**-0.5
        self.table = Embedding(config.relative_buckets, config.heads, std=std)

    def forward(self, length: int, offset: int = 0) -> Tensor:
        """[1, H, T, S]: of every query (row) from ``offset`` on and each of ``length`` keys."""
        columns_S = torch.arange(length, device=self.table.weight.device)
        bucket_TS = distance_bucket(
            columns_S[None] - columns_S[offset:, None],
            buckets=self.table.num_embeddings,
            farthest=self.farthest,
            looks_ahead=self.looks_ahead,
        )
        return self.table(bucket_TS).permute(2, 0, 1)[None]


def distance_bucket(distance: Tensor, *, buckets: int, farthest: int, looks_ahead: bool) -> Tensor:
    """The bucket of the key's position minus the query's, int64: half of them hold one distance
    each, the other half grow by its logarithm up to ``farthest``.

    ``looks_ahead``: the first half of all is for keys at or before the query, the second for those
    behind it; else those behind it are in bucket 0.
    """
    first = torch.zeros_like(distance)
    if looks_ahead:
        buckets //= 2
        first = torch.where(distance > 0, buckets, 0)
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(farthest / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return first + torch.where(distance < exact, distance, far)
