"""Zeros that stay: elements of matrices that are 0 when a run begins are 0 after every update.

So the sparsity of a pruned model outlasts its retraining (Han et al. 2015, arXiv 1506.02626). Which
elements they are is one more of ``Engine.kept_elements``: checkpoints have it at every stage and
world size, and an element that becomes 0 by chance later is not held.

Around every step of the optimizer, inside whatever DeepSpeed does with its result:

- before it the elements' gradients become 0, so that no state (a moment, a momentum, a factor of
  Adafactor's) learns of them;
- after it the elements are 0 again. Most optimizers would leave them so; the update of Muon, which
  is orthogonalised as a whole, would not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmscale.config.training import ZEROS
from lmscale.engine.engine import Engine, whole_shape
from lmscale.engine.masters import base_optimizer, held_slices, master_groups
from lmscale.ranks.collectives import sum_float64


def keep_zeros(engine: Engine) -> None:
    """Hold the elements that are 0 now, of matrices that are not 0 as a whole. A collective.

    Where a checkpoint is loaded afterwards, it says which ones they are.
    """
    marks = {
        master: torch.zeros_like(master, dtype=torch.bool) for master, _ in master_groups(engine)
    }
    engine.kept_elements[ZEROS] = marks
    mark_zeros(engine)
    optimizer = base_optimizer(engine)
    optimizer.register_step_pre_hook(partial(_around, marks, _clear_gradient))
    optimizer.register_step_post_hook(partial(_around, marks, _clear_weight))


@torch.no_grad()
def mark_zeros(engine: Engine) -> None:
    """Let the elements that are held be those that are 0 now. A collective."""
    marks = engine.kept_elements[ZEROS]
    shapes = {name: whole_shape(each) for name, each in engine.trained_parameters()}
    held = [piece for piece in held_slices(engine) if len(shapes[piece.parameter]) >= 2]
    zeros = [piece.of(piece.master) == 0 for piece in held]
    others = dict.fromkeys(shapes, 0.0)  # of each parameter, elements that are not 0
    for piece, is_zero in zip(held, zeros, strict=True):
        others[piece.parameter] += float((~is_zero).sum())
    others = dict(zip(others, sum_float64([*others.values()]), strict=True))
    for piece, is_zero in zip(held, zeros, strict=True):
        if others[piece.parameter]:
            piece.of(marks[piece.master]).copy_(is_zero)


@torch.no_grad()
def _around(
    marks: dict[Tensor, Tensor],
    clear: Callable[[Tensor, Tensor], object],
    optimizer: torch.optim.Optimizer,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
) -> None:
    """At ZeRO 3 DeepSpeed lets the optimizer step with one of its masters at a time."""
    for group in optimizer.param_groups:
        for master in group["params"]:
            clear(master, marks[master])


def _clear_gradient(master: Tensor, mark: Tensor) -> None:
    if master.grad is not None:
        master.grad.masked_fill_(mark, 0)


def _clear_weight(master: Tensor, mark: Tensor) -> None:
    master.masked_fill_(mark, 0)
