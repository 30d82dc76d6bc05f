"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): blocks whose inside is computed
again in the backward pass instead of being kept, or all of it but what is dear to compute.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from lmscale.config.model import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from lmscale.config.model_base import Saves

# By their names: a torch may lack some. Of attention those that autograd goes back through.
_ATTENTION = (
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_fused_attention_overrideable",
    "torch_attn._varlen_attn",
    "flex_attention",
)
_PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm")


def run_block(
    config: DecoderConfig | EncoderConfig | EncoderDecoderConfig,
    number: int,
    block: nn.Module,
    *inputs: Any,
) -> Tensor:
    """``block(*inputs)``; ``number`` is its place in its stack."""
    if not is_recomputed(number, config.activation_checkpoint_every, is_training=block.training):
        return block(*inputs)
    has_dropout, saves = config.dropout > 0, config.activation_checkpoint_saves
    more: dict[str, Any] = {} if saves == "nothing" else {"context_fn": partial(_select, saves)}
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=has_dropout, **more)


def is_recomputed(number: int, every: int, *, is_training: bool) -> bool:
    """Of the block of that number, every ``every``-th being chosen; 0 chooses none."""
    is_chosen = every > 0 and number % every == every - 1
    return is_chosen and is_training and torch.is_grad_enabled()


def _select(saves: Saves) -> tuple[Any, Any]:
    """The contexts of a block's pass and of its recomputation."""
    return create_selective_checkpoint_contexts(partial(_judge, saves))


def _judge(saves: Saves, context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    is_saved = _name_of(operation) in _saved_names(saves)
    return CheckpointPolicy.MUST_SAVE if is_saved else CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _saved_names(saves: Saves) -> frozenset[str]:
    return frozenset(_ATTENTION + (_PRODUCTS if saves == "products" else ()))


@functools.cache
def _name_of(operation: Any) -> str:
    """``aten.mm`` of every overload."""
    return ".".join(str(operation).split(".")[:2])


def set_memory_budget(budget: float) -> None:
    """What torch.compile keeps from here on of what a backward pass wants, 0 to 1."""
    import torch._functorch.config as functorch

    functorch.activation_memory_budget = budget
