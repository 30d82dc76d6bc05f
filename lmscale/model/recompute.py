"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): blocks whose inside is computed
again in the backward pass instead of being kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmscale.config.model import DecoderConfig, EncoderConfig, EncoderDecoderConfig


def run_block(
    config: DecoderConfig | EncoderConfig | EncoderDecoderConfig,
    number: int,
    block: nn.Module,
    *inputs: Any,
) -> Tensor:
    """``block(*inputs)``; ``number`` is its place in its stack."""
    if not is_recomputed(number, config.activation_checkpoint_every, is_training=block.training):
        return block(*inputs)
    has_dropout = config.dropout > 0
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=has_dropout)


def is_recomputed(number: int, every: int, *, is_training: bool) -> bool:
    """Of the block of that number, every ``every``-th being chosen; 0 chooses none."""
    is_chosen = every > 0 and number % every == every - 1
    return is_chosen and is_training and torch.is_grad_enabled()
