# Shape letters: B batch, T time, W window (T + 1), D model width, N = B·T.
"""Causal language modelling, the half with torch: how the next token is scored."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from lmscale.config.objective import CausalConfig
from lmscale.model.family import Model
from lmscale.model.layout import mark_starts
from lmscale.objective.cross_entropy import IGNORED, CrossEntropySums, chunked_cross_entropy
from lmscale.objective.scores import LossSum, Scores


class CausalScoring(nn.Module):
    """A model with its loss, so that a training engine wraps and calls one module.

    The model's parameters appear here as ``model.…``.
    """

    def __init__(self, model: Model, config: CausalConfig, *, mask_documents: bool = True) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.mask_documents = mask_documents

    def forward(self, tokens: Tensor, starts: Tensor, lengths: Tensor) -> Scores:
        """Score windows of T + 1 tokens, on the model's device.

        ``tokens`` [B, W]: uint16, uint32 or int64. ``starts``: flat positions into [B, W] where
        documents begin. ``lengths`` [B]: valid tokens of each row; what follows is padding. A
        window of length 0 or 1 has no targets.
        """
        ids_BW = tokens.long()
        begins_BW = mark_starts(starts, batch=ids_BW.shape[0], length=ids_BW.shape[1])
        labels_BT = build_targets(ids_BW, begins_BW, lengths, mask_documents=self.mask_documents)
        model = self.model
        layout = model.lay_out(begins_BW[:, :-1], mask_documents=self.mask_documents)
        hidden_BTD = model(ids_BW[:, :-1], layout)
        score = partial(
            _score_labels,
            labels_N=labels_BT.flatten(),
            chunk_tokens=self.config.chunk_tokens,
            z_loss=self.config.z_loss,
        )
        sums = model.head(hidden_BTD.flatten(0, 1), score)
        targets = (labels_BT != IGNORED).sum()
        return Scores(
            loss=LossSum(sums.loss, targets),
            figures={"loss": LossSum(sums.nll, targets), "z_loss": LossSum(sums.z, targets)},
        )


def build_targets(
    ids_BW: Tensor, begins_BW: Tensor, lengths_B: Tensor, *, mask_documents: bool
) -> Tensor:
    """Labels, int64 [B, T]: the next token; ``IGNORED`` for padding and another document's."""
    columns_T = torch.arange(1, ids_BW.shape[1], device=ids_BW.device)
    is_target_BT = columns_T < lengths_B.long()[:, None]
    if mask_documents:
        is_target_BT &= ~begins_BW[:, 1:]
    return torch.where(is_target_BT, ids_BW[:, 1:], IGNORED)


def _score_labels(
    hidden_ND: Tensor, weight_VD: Tensor, *, labels_N: Tensor, chunk_tokens: int, z_loss: float
) -> CrossEntropySums:
    return chunked_cross_entropy(
        hidden_ND, weight_VD, labels_N, chunk_tokens=chunk_tokens, z_loss=z_loss
    )
