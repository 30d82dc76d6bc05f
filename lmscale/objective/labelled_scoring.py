# Shape letters: B batch, T time, D model width, N what is scored of the micro-batch, C classes.
"""Labelled documents and tagged words, the half with torch."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lmscale.model.encoder import Encoder
from lmscale.model.family import Model
from lmscale.model.layout import mark_starts
from lmscale.objective.scores import Choices, LossSum, Scores, Scoring


def build_labelled_scoring(model: Model, kind: Literal["classes", "numbers", "tags"]) -> Scoring:
    """The head that predicts tokens has no part in it, and stays as it is."""
    assert isinstance(model, Encoder)  # the objective's section needs its keys
    freeze_token_head(model)
    return Scoring(model, partial(score_labelled, kind=kind))


def freeze_token_head(model: Encoder) -> None:
    """Its tied matrix goes by the embedding's name, and is trained."""
    for name, parameter in model.named_parameters():
        if name.startswith("head."):
            parameter.requires_grad_(False)


def score_labelled(
    model: Encoder,
    *,
    ids: Tensor,
    starts: Tensor,
    lengths: Tensor,
    positions: Tensor,
    labels: Tensor,
    types: Tensor | None = None,
    kind: Literal["classes", "numbers", "tags"],
) -> Scores:
    """Score ``labels`` [N] by the states at the flat ``positions`` of ``ids`` [B, T].

    ``starts``: flat positions where documents begin. ``lengths`` [B]: what follows is padding.
    ``types`` [B, T]: 1 for tokens of the second text of a pair. Classes and tags are scored by
    cross-entropy, numbers by the squared error.
    """
    begins_BT = mark_starts(starts, batch=ids.shape[0], length=ids.shape[1])
    layout = model.lay_out(begins_BT, mask_documents=True, lengths_B=lengths)
    types_BT = None if types is None else types.long()
    hidden_ND = model(ids.long(), layout, types_BT).flatten(0, 1)[positions.long()]
    classify = model.classify_tokens if kind == "tags" else partial(model.classify, drops=True)
    logits_NC, targets = classify(hidden_ND).float(), positions.new_tensor(len(positions)).long()
    choices = None
    if kind == "numbers":
        error_N = logits_NC[:, 0] - labels
        loss, name, other = error_N.square().sum(), "absolute_error", error_N.detach().abs().sum()
    else:
        labels_N, predicted_N = labels.long(), logits_NC.argmax(-1)
        loss = F.cross_entropy(logits_NC, labels_N, reduction="sum")
        name, other = "accuracy", (predicted_N == labels_N).sum().float()
        if not model.training:
            choices = Choices(predicted_N, logits_NC.softmax(-1).amax(-1))
    figures = {"loss": LossSum(loss.detach(), targets), name: LossSum(other, targets)}
    return Scores(loss=LossSum(loss, targets), figures=figures, choices=choices)
