# Shape letters: B batch, T time, D model width, V vocabulary.
"""The decoder: embeddings, blocks, final norm, and a head that others score with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmscale.config.model import ModelConfig
from lmscale.model.block import Block
from lmscale.model.cache import KeyValueCache
from lmscale.model.layout import Layout
from lmscale.model.linear import Embedding
from lmscale.model.norm import build_norm
from lmscale.model.rope import plan_rotation


class Head(nn.Module):
    """Owns the output matrix, [V, D], and hands it to whoever scores the hidden states.

    ZeRO-3 gathers a module's parameters around its forward and backward: a loss that uses the
    matrix has to run inside this forward, not beside it.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: Tensor, score: Callable[[Tensor, Tensor], Any] = F.linear) -> Any:
        """``score(hidden, weight)``; by default the logits."""
        return score(hidden, self.weight)


class Transformer(nn.Module):
    """Ids → hidden states after the final norm. ``init_weights`` gives the parameters values."""

    def __init__(self, config: ModelConfig, *, vocab_size: int, max_positions: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        self.embedding = Embedding(vocab_size, config.width)
        self.position_embedding = (
            Embedding(max_positions, config.width) if config.positions == "learned" else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = build_norm(config.norm, config.width, config.norm_eps, bias=config.bias)
        self.head = Head(
            self.embedding.weight
            if config.tied_embeddings
            else nn.Parameter(torch.empty(vocab_size, config.width))
        )

    def forward(
        self, ids_BT: Tensor, layout: Layout, caches: Sequence[KeyValueCache] | None = None
    ) -> Tensor:
        """Hidden states [B, T, D] of int64 ids; ``self.head`` turns them into logits or a loss."""
        x_BTD = self.embedding(ids_BT)
        if self.position_embedding is not None:
            x_BTD = x_BTD + self.position_embedding(layout.positions)
            rotation = None
        else:
            rotation = plan_rotation(
                layout.positions,
                head_width=self.config.resolved_head_width,
                theta=self.config.rope_theta,
            )
        x_BTD = self.dropout(x_BTD)
        for number, block in enumerate(self.blocks):
            if self._is_recomputed(number):
                x_BTD = checkpoint(
                    block,
                    x_BTD,
                    rotation,
                    layout.mask,
                    use_reentrant=False,
                    preserve_rng_state=self.config.dropout > 0,
                )
            else:
                cache = caches[number] if caches is not None else None
                x_BTD = block(x_BTD, rotation, layout.mask, cache)
        return self.norm(x_BTD)

    def _is_recomputed(self, number: int) -> bool:
        every = self.config.activation_checkpoint_every
        is_chosen = every > 0 and number % every == every - 1
        return is_chosen and self.training and torch.is_grad_enabled()


def build_model(config: ModelConfig, *, vocab_size: int, max_positions: int) -> Transformer:
    """The module of a configuration, on torch's current default device and dtype.

    Its matrices hold whatever the memory held, until ``init_weights`` or a checkpoint fills them.
    """
    return Transformer(config, vocab_size=vocab_size, max_positions=max_positions)
