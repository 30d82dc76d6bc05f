# Shape letters: B batch, T time, D model width, N targets of the micro-batch.
"""Masked language modelling, the half with torch: how hidden tokens are scored."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from lmscale.config.objective import MaskedConfig
from lmscale.model.family import Model
from lmscale.model.layout import mark_starts
from lmscale.objective.cross_entropy import chunked_cross_entropy
from lmscale.objective.scores import LossSum, Scores, Scoring


def build_masked_scoring(
    model: Model, config: MaskedConfig, *, mask_documents: bool = True
) -> Scoring:
    return Scoring(model, partial(score_masked, config=config, mask_documents=mask_documents))


def score_masked(
    model: Model,
    *,
    ids: Tensor,
    starts: Tensor,
    lengths: Tensor,
    positions: Tensor,
    labels: Tensor,
    config: MaskedConfig,
    mask_documents: bool,
) -> Scores:
    """Score ``labels``, int32 [N], at the flat ``positions`` of ``ids``, uint32 [B, T].

    ``starts``: flat positions where documents begin. ``lengths`` [B]: what follows is padding.
    """
    batch, length = ids.shape
    begins_BT = mark_starts(starts, batch=batch, length=length)
    layout = model.lay_out(begins_BT, mask_documents=mask_documents, lengths_B=lengths)
    return score_hidden(model, model(ids.long(), layout), positions, labels, config)


def score_hidden(
    model: Model, hidden_BTD: Tensor, positions: Tensor, labels: Tensor, config: MaskedConfig
) -> Scores:
    """The same of hidden states. The output matrix is multiplied with those of the targets alone,
    about a seventh of all.
    """
    score = partial(
        chunked_cross_entropy,
        labels_N=labels.long(),
        chunk_tokens=config.chunk_tokens,
        counts_hits=True,
    )
    sums = model.head(hidden_BTD.flatten(0, 1)[positions.long()], score)
    targets = positions.new_tensor(len(positions)).long()
    return Scores(
        loss=LossSum(sums.loss, targets),
        figures={"loss": LossSum(sums.nll, targets), "accuracy": LossSum(sums.hits, targets)},
    )
