# Shape letters: B batch, T time, D model width, N documents of the micro-batch, C = 1 + T places
# among which an answer is sought: none, and the tokens of a context.
"""Answers that stand in a context, the half with torch (Devlin et al. 2019, sections 4.2, 4.3)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lmscale.model.encoder import Encoder
from lmscale.model.family import Model
from lmscale.model.layout import mark_starts
from lmscale.objective.labelled_scoring import freeze_token_head
from lmscale.objective.scores import LossSum, Scores, Scoring


class BestSpans(NamedTuple):
    """Of each document the likeliest answer, or that it has none."""

    first: Tensor  # i64 [N], a place of C; 0: none
    last: Tensor  # i64 [N]
    score: Tensor  # f32 [N], the sum of its two log-probabilities


def build_answers_scoring(model: Model, *, longest: int) -> Scoring:
    """The head that predicts tokens has no part in it, and stays as it is."""
    assert isinstance(model, Encoder)  # the objective's section needs its keys
    freeze_token_head(model)
    return Scoring(model, partial(score_answers, longest=longest))


def score_answers(
    model: Encoder,
    *,
    ids: Tensor,
    starts: Tensor,
    lengths: Tensor,
    types: Tensor,
    documents: Tensor,
    contexts: Tensor,
    context_lengths: Tensor,
    first: Tensor,
    last: Tensor,
    longest: int,
) -> Scores:
    """The mean of the two cross-entropies, of where an answer begins and of where it ends.

    ``documents``, ``contexts`` [N]: flat positions of ``ids`` [B, T] where each document, and its
    context of ``context_lengths`` tokens, begins. ``first``, ``last`` [N]: the answer among its
    places. ``types`` [B, T]: 1 for tokens of contexts. Exact match and F1 are of the tokens of the
    likeliest answer of at most ``longest`` tokens.
    """
    begins_BT = mark_starts(starts, batch=ids.shape[0], length=ids.shape[1])
    layout = model.lay_out_packed(
        begins_BT,
        most_documents=len(starts) + len(ids),
        mask_documents=True,
        lengths_B=lengths,
    )
    hidden_BTD = model(ids.long(), layout, types.long())
    logits_2NC = place_logits(model, hidden_BTD, documents, contexts, context_lengths)
    log_p_2NC = logits_2NC.log_softmax(-1)
    wanted_2N = torch.stack([first, last]).long()
    loss = -log_p_2NC.gather(-1, wanted_2N[..., None]).sum() / 2
    targets = documents.new_tensor(len(documents)).long()
    found = find_best_spans(log_p_2NC.detach(), longest)
    is_exact_N = (found.first == wanted_2N[0]) & (found.last == wanted_2N[1])
    overlap_N = score_overlap(found.first, found.last, *wanted_2N)
    figures = {
        "loss": LossSum(loss.detach(), targets),
        "exact_match": LossSum(is_exact_N.sum().float(), targets),
        "f1": LossSum(overlap_N.sum(), targets),
    }
    return Scores(loss=LossSum(loss, targets), figures=figures)


def place_logits(
    model: Encoder, hidden_BTD: Tensor, documents: Tensor, contexts: Tensor, lengths: Tensor
) -> Tensor:
    """Logits, f32 [2, N, C], that an answer begins, and that it ends, at each place of each
    document; -inf behind its context's ``lengths`` [N] tokens.
    """
    width = hidden_BTD.shape[1]
    logits_M2 = model.classify_tokens(hidden_BTD.flatten(0, 1), drops=False).float()
    within_T = torch.arange(width, device=hidden_BTD.device)
    is_there_NT = within_T < lengths[:, None]
    places_NT = torch.where(is_there_NT, contexts[:, None] + within_T, documents[:, None])
    places_NC = torch.cat([documents[:, None], places_NT], dim=1).long()
    is_none_NC = F.pad(~is_there_NT, (1, 0), value=False)
    logits_NC2 = logits_M2[places_NC].masked_fill(is_none_NC[..., None], -torch.inf)
    return logits_NC2.movedim(-1, 0)


def find_best_spans(log_p_2NC: Tensor, longest: int) -> BestSpans:
    """The likeliest span of at most ``longest`` tokens that ends no sooner than it begins; or none,
    where that is as likely.
    """
    begin_NC, end_NC = log_p_2NC[0, :, 1:], log_p_2NC[1, :, 1:]
    longest = min(longest, begin_NC.shape[-1])
    # Of each beginning the best end among the next places; the first of those that are as good.
    padded_NC = F.pad(end_NC, (0, longest - 1), value=-torch.inf)
    ends_NC, where_NC = F.max_pool1d(padded_NC[:, None], longest, 1, return_indices=True)
    total_NC, where_NC = begin_NC + ends_NC[:, 0], where_NC[:, 0]
    score_N, first_N = total_NC.max(-1)
    last_N = where_NC.gather(-1, first_N[:, None])[:, 0]
    none_N = log_p_2NC[:, :, 0].sum(0)
    has_answer_N = score_N > none_N
    return BestSpans(
        first=torch.where(has_answer_N, first_N + 1, 0),
        last=torch.where(has_answer_N, last_N + 1, 0),
        score=torch.where(has_answer_N, score_N, none_N),
    )


def score_overlap(first_N: Tensor, last_N: Tensor, begin_N: Tensor, end_N: Tensor) -> Tensor:
    """F1, f32 [N], of the tokens ``first`` to ``last`` and those from ``begin`` to ``end``: twice
    what they share, by what both have. None and none are alike, none and some share nothing.
    """
    shared_N = torch.minimum(last_N, end_N) - torch.maximum(first_N, begin_N) + 1
    both_N = (last_N - first_N + 1) + (end_N - begin_N + 1)
    return 2 * shared_N.clamp_min(0).float() / both_N
