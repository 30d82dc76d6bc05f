# Shape letters: B batch, T time, W window (T + 1), D model width, N = B·T.
"""The half with torch of all that predict the next token: causal and prefix language modelling, and
fill-in-the-middle.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lmscale.config.objective import NextTokenConfig
from lmscale.model.family import Model
from lmscale.model.layout import mark_starts
from lmscale.objective.cross_entropy import IGNORED
from lmscale.objective.scores import Scores, Scoring
from lmscale.objective.target_scoring import score_targets, spread_parts, sum_rows


def build_causal_scoring(
    model: Model, config: NextTokenConfig, *, mask_documents: bool = True
) -> Scoring:
    return Scoring(model, partial(score_windows, config=config, mask_documents=mask_documents))


def score_windows(
    model: Model,
    *,
    tokens: Tensor,
    starts: Tensor,
    lengths: Tensor,
    prefixes: Tensor | None = None,
    chosen: Tensor | None = None,
    parts: Tensor | None = None,
    config: NextTokenConfig,
    mask_documents: bool,
) -> Scores:
    """Score windows of T + 1 tokens, on the model's device.

    ``tokens`` [B, W]: uint16, uint32 or int64. ``starts``: flat positions into [B, W] where
    documents begin. ``lengths`` [B]: valid tokens of each row; what follows is padding. A window of
    length 0 or 1 has no targets. ``prefixes``: of the document at each start, the first tokens,
    which are no targets, and see each other where ``config.shows_prefixes``. ``chosen``
    [B, W]: uint8, 0 for tokens that are no targets. ``parts`` [B]: of a mixture, the part that each
    row is of.
    """
    ids_BW = tokens.long()
    begins_BW = mark_starts(starts, batch=ids_BW.shape[0], length=ids_BW.shape[1])
    labels_BT = build_targets(ids_BW, begins_BW, lengths, mask_documents=mask_documents)
    is_prefix_BW = None
    if prefixes is not None:
        is_prefix_BW = mark_prefixes(starts, prefixes, like_BW=begins_BW)
        labels_BT = labels_BT.masked_fill(is_prefix_BW[:, 1:], IGNORED)
    if chosen is not None:
        labels_BT = labels_BT.masked_fill(chosen[:, 1:] == 0, IGNORED)
    if is_prefix_BW is not None and config.shows_prefixes:
        layout = model.lay_out_prefixes(begins_BW[:, :-1], is_prefix_BW[:, :-1])
    else:
        layout = model.lay_out_packed(
            begins_BW[:, :-1],
            most_documents=len(starts) + len(ids_BW),
            mask_documents=mask_documents,
        )
    hidden_BTD = model(ids_BW[:, :-1], layout)
    scores, nlls_N = score_targets(
        *(model, hidden_BTD.flatten(0, 1), labels_BT.flatten(), config),
        counts_hits=False,
        parts_N=spread_parts(parts, labels_BT.shape[1]),
    )
    return scores._replace(rows=sum_rows(nlls_N, labels_BT))


def build_targets(
    ids_BW: Tensor, begins_BW: Tensor, lengths_B: Tensor, *, mask_documents: bool
) -> Tensor:
    """Labels, int64 [B, T]: the next token; ``IGNORED`` for padding and another document's."""
    columns_T = torch.arange(1, ids_BW.shape[1], device=ids_BW.device)
    is_target_BT = columns_T < lengths_B.long()[:, None]
    if mask_documents:
        is_target_BT &= ~begins_BW[:, 1:]
    return torch.where(is_target_BT, ids_BW[:, 1:], IGNORED)


def mark_prefixes(starts_N: Tensor, prefixes_N: Tensor, *, like_BW: Tensor) -> Tensor:
    """bool [B, W], True for the first ``prefixes_N`` tokens from each flat start on."""
    steps = torch.zeros(like_BW.numel() + 1, dtype=torch.int32, device=like_BW.device)
    one_N = torch.ones_like(starts_N)
    steps.index_add_(0, starts_N, one_N).index_add_(0, starts_N + prefixes_N, -one_N)
    return (steps[:-1].cumsum(0) > 0).view_as(like_BW)
