"""muP: a model whose best learning rate does not move as its width grows (Yang et al. 2022, Tensor
Programs V, arXiv 2203.03466), as their table 8 has it for Adam.

With m = width / ``model.mup.base_width`` a model differs from the usual one, which it is at m = 1:

==================================== ================= ============= =====================
parameters                           standard          learning rate what they multiply
                                     deviation
==================================== ================= ============= =====================
matrices of the blocks               × 1 / sqrt(m)     × 1 / m
head, or the tied embeddings as one                                  the logits × 1 / m
embeddings, norms, biases
==================================== ================= ============= =====================

Scores of attention are divided by V instead of sqrt(V), V being a head's width, and multiplied by
the square root of ``base_head_width``. A matrix's weight_decay is multiplied by m, as in the
authors' package ``mup``. So what decays of it in a step, lr · weight_decay, is the same for every m
with optimizers that shrink the weights themselves; ``adam``, which adds the decay to the gradient
before it divides by the root of its mean square, weighs it m times as much against the gradient.
"""

from __future__ import annotations

import math

from torch import nn

from lmscale.model.initialize import Linear


def scale_matrices(blocks: nn.Module, ratio: float) -> None:
    """Let the matrices of ``blocks`` begin, and be trained, as those of a model that is ``ratio``
    times as wide as its base. Their inputs are as many times as wide.
    """
    for module in blocks.modules():
        if isinstance(module, Linear):
            module.std /= math.sqrt(ratio)
            module.lr_ratio /= ratio
