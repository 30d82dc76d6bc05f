# Shape letters: B batch, T time, D model width, N targets of the micro-batch.
"""Masked language modelling, the half with torch: how hidden tokens are scored."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from lmscale.config.masked import MaskedConfig
from lmscale.config.objective import MixtureConfig
from lmscale.model.family import Model
from lmscale.model.layout import mark_starts
from lmscale.objective.scores import Scores, Scoring
from lmscale.objective.target_scoring import score_targets


def build_masked_scoring(
    model: Model, config: MaskedConfig | MixtureConfig, *, mask_documents: bool = True
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
    parts: Tensor | None = None,
    config: MaskedConfig | MixtureConfig,
    mask_documents: bool,
) -> Scores:
    """Score ``labels``, int32 [N], at the flat ``positions`` of ``ids``, uint32 [B, T].

    ``starts``: flat positions where documents begin. ``lengths`` [B]: what follows is padding.
    ``parts`` [B]: of a mixture, the part that each row is of.
    """
    batch, length = ids.shape
    begins_BT = mark_starts(starts, batch=batch, length=length)
    layout = model.lay_out_packed(
        begins_BT,
        most_documents=len(starts) + batch,
        mask_documents=mask_documents,
        lengths_B=lengths,
    )
    hidden_BTD = model(ids.long(), layout)
    return score_hidden(model, hidden_BTD, positions, labels, config, parts=parts)


def score_hidden(
    model: Model,
    hidden_BTD: Tensor,
    positions: Tensor,
    labels: Tensor,
    config: MaskedConfig | MixtureConfig,
    *,
    parts: Tensor | None = None,
) -> Scores:
    """The same of hidden states. The output matrix is multiplied with those of the targets alone,
    about a seventh of all.
    """
    places_N = positions.long()
    scores, _ = score_targets(
        *(model, hidden_BTD.flatten(0, 1)[places_N], labels.long(), config),
        counts_hits=True,
        parts_N=None if parts is None else parts.long()[places_N // hidden_BTD.shape[1]],
    )
    return scores
