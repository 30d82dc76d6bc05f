# Shape letters: B batch, T time, D model width, C classes.
"""Masked tokens and what two parts are to each other, the half with torch: two terms of a loss."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lmscale.config.masked import MaskedPartsConfig
from lmscale.model.encoder import Encoder
from lmscale.model.family import Model
from lmscale.objective.cross_entropy import IGNORED
from lmscale.objective.masked_scoring import score_hidden
from lmscale.objective.scores import LossSum, Scores, Scoring


def build_masked_parts_scoring(model: Model, config: MaskedPartsConfig) -> Scoring:
    return Scoring(model, partial(score_masked_parts, config=config))


def score_masked_parts(
    model: Encoder,
    *,
    ids: Tensor,
    types: Tensor,
    lengths: Tensor,
    positions: Tensor,
    labels: Tensor,
    order: Tensor,
    config: MaskedPartsConfig,
) -> Scores:
    """Score the hidden tokens as ``score_masked`` does, and ``order``, int32 [B], by the state of
    the first token. A row is one text: its two parts see each other.
    """
    begins_BT = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    layout = model.lay_out(begins_BT, mask_documents=False, lengths_B=lengths)
    hidden_BTD = model(ids.long(), layout, types.long())
    scores = score_hidden(model, hidden_BTD, positions, labels, config)
    logits_BC, order_B = model.classify(hidden_BTD[:, 0]).float(), order.long()
    nll = F.cross_entropy(logits_BC, order_B, reduction="sum", ignore_index=IGNORED)
    count = (order_B != IGNORED).sum()
    hits = (logits_BC.argmax(-1) == order_B).sum()
    (term,) = config.more_terms
    figures = {
        f"{term}_loss": LossSum(nll.detach(), count),
        f"{term}_accuracy": LossSum(hits.float(), count),
    }
    return scores._replace(figures=scores.figures | figures, more_losses=(LossSum(nll, count),))
