# Shape letters: B batch, T time, D model width, N what is scored of the micro-batch, C classes.
"""Labelled documents and tagged words, the half with torch."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lmscale.model.decoder import Decoder
from lmscale.model.encoder import Encoder
from lmscale.model.family import Model
from lmscale.model.layout import mark_starts
from lmscale.objective.scores import Choices, LossSum, Scores, Scoring

Kind = Literal["classes", "numbers", "tags"]


class LabelledScoring(Scoring):
    """Scores as ``score_labelled`` does, in training with weights of the classes."""

    def __init__(self, model: Model, kind: Kind, *, label_smoothing: float = 0.0) -> None:
        super().__init__(model, partial(score_labelled, kind=kind))
        self.label_smoothing = label_smoothing
        self.class_weights: Tensor | None = None
        """f32 [C] on the model's device; no buffer, since a run's checkpoints keep what they are of
        by name (train/class_weights.py)."""

    def forward(self, **arrays: Tensor) -> Scores:
        if not self.training:
            return super().forward(**arrays)
        trained = {"weights_C": self.class_weights, "label_smoothing": self.label_smoothing}
        return self.score(self.model, **arrays, **trained)


def build_labelled_scoring(
    model: Model, kind: Kind, *, label_smoothing: float = 0.0
) -> LabelledScoring:
    """The head that predicts tokens has no part in it, and stays as it is."""
    assert isinstance(model, Encoder | Decoder)  # the objective's section needs their keys
    freeze_token_head(model)
    return LabelledScoring(model, kind, label_smoothing=label_smoothing)


def freeze_token_head(model: Encoder | Decoder) -> None:
    """Its tied matrix goes by the embedding's name, and is trained."""
    for name, parameter in model.named_parameters():
        if name.startswith("head."):
            parameter.requires_grad_(False)


def score_labelled(
    model: Encoder | Decoder,
    *,
    ids: Tensor,
    starts: Tensor,
    lengths: Tensor,
    positions: Tensor,
    labels: Tensor,
    types: Tensor | None = None,
    kind: Kind,
    weights_C: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Scores:
    """Score ``labels`` [N] by the states at the flat ``positions`` of ``ids`` [B, T].

    ``starts``: flat positions where documents begin. ``lengths`` [B]: what follows is padding.
    ``types`` [B, T]: 1 for tokens of the second text of a pair. Classes and tags are scored by
    cross-entropy, numbers by the squared error. ``weights_C`` and ``label_smoothing`` are of
    what is backpropagated, and of no figure.
    """
    begins_BT = mark_starts(starts, batch=ids.shape[0], length=ids.shape[1])
    layout = model.lay_out_packed(
        begins_BT,
        most_documents=len(starts) + len(ids),
        mask_documents=True,
        lengths_B=lengths,
    )
    more = () if types is None else (types.long(),)
    hidden_ND = model(ids.long(), layout, *more).flatten(0, 1)[positions.long()]
    logits_NC = _classify(model, hidden_ND, kind).float()
    targets = positions.new_tensor(len(positions)).long()
    choices = None
    if kind == "numbers":
        error_N = logits_NC[:, 0] - labels
        nll = loss = error_N.square().sum()
        name, other = "absolute_error", error_N.detach().abs().sum()
    else:
        labels_N, predicted_N = labels.long(), logits_NC.argmax(-1)
        nll = loss = F.cross_entropy(logits_NC, labels_N, reduction="sum")
        if weights_C is not None or label_smoothing:
            how = {"weight": weights_C, "label_smoothing": label_smoothing}
            loss = F.cross_entropy(logits_NC, labels_N, reduction="sum", **how)
        name, other = "accuracy", (predicted_N == labels_N).sum().float()
        if not model.training:
            choices = Choices(predicted_N, logits_NC.softmax(-1).amax(-1))
    figures = {"loss": LossSum(nll.detach(), targets), name: LossSum(other, targets)}
    return Scores(loss=LossSum(loss, targets), figures=figures, choices=choices)


def _classify(model: Encoder | Decoder, hidden_ND: Tensor, kind: str) -> Tensor:
    """Logits [N, C] of states."""
    if isinstance(model, Decoder):  # whose classifiers elsewhere drop nothing before it
        return model.classify(hidden_ND)
    return (
        model.classify_tokens(hidden_ND)
        if kind == "tags"
        else model.classify(hidden_ND, drops=True)
    )
