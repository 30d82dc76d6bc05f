# Shape letters: B batch, T time, D model width, V vocabulary, N = B·T.
"""Token ids and a label for each: what every objective that predicts tokens comes down to."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from lmscale.model.family import Model
from lmscale.objective.cross_entropy import IGNORED, CrossEntropySums, chunked_cross_entropy
from lmscale.objective.scores import LossSum, Scores


def score_labels(
    model: Model,
    ids_BT: Tensor,
    begins_BT: Tensor,
    labels_BT: Tensor,
    *,
    mask_documents: bool,
    chunk_tokens: int,
    z_loss: float = 0.0,
) -> Scores:
    """The cross-entropy of int64 labels; positions labelled ``IGNORED`` count nothing.

    ``begins_BT`` is True where a document begins. Figures: ``loss`` and ``z_loss``.
    """
    layout = model.lay_out(begins_BT, mask_documents=mask_documents)
    hidden_BTD = model(ids_BT, layout)
    score = partial(_score, labels_N=labels_BT.flatten(), chunk_tokens=chunk_tokens, z_loss=z_loss)
    sums = model.head(hidden_BTD.flatten(0, 1), score)
    targets = (labels_BT != IGNORED).sum()
    return Scores(
        loss=LossSum(sums.loss, targets),
        figures={"loss": LossSum(sums.nll, targets), "z_loss": LossSum(sums.z, targets)},
    )


def _score(
    hidden_ND: Tensor, weight_VD: Tensor, *, labels_N: Tensor, chunk_tokens: int, z_loss: float
) -> CrossEntropySums:
    return chunked_cross_entropy(
        hidden_ND, weight_VD, labels_N, chunk_tokens=chunk_tokens, z_loss=z_loss
    )
