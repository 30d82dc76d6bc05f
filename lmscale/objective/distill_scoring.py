# Shape letters: B batch, T time, W window (T + 1), D model width, N = B·T.
"""Distillation, the half with torch: the next token's loss, and how far the model is from another
one that learns nothing.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from lmscale.config.objective import DistillConfig
from lmscale.model.family import Model
from lmscale.model.layout import mark_starts
from lmscale.objective.causal_scoring import build_targets, score_windows
from lmscale.objective.cross_entropy import IGNORED, Teacher, chunked_cross_entropy
from lmscale.objective.scores import LossSum, Scores
from lmscale.objective.target_scoring import sum_rows


class DistillScoring(nn.Module):
    """Scores windows as ``score_windows`` does, and in training asks the teacher, which
    ``set_teacher`` has to bring before the first step.
    """

    def __init__(self, model: Model, config: DistillConfig, *, mask_documents: bool) -> None:
        super().__init__()
        self.model, self.config, self.mask_documents = model, config, mask_documents
        # In a list, which makes it no module of this one: no engine casts, shards or trains it, and
        # no checkpoint holds it.
        self._teachers: list[Model] = []

    def set_teacher(self, teacher: Model) -> None:
        self._teachers = [teacher.requires_grad_(False).eval()]

    def forward(self, tokens: Tensor, starts: Tensor, lengths: Tensor) -> Scores:
        config, mask_documents = self.config, self.mask_documents
        if not self.training:
            arrays = {"tokens": tokens, "starts": starts, "lengths": lengths}
            return score_windows(self.model, **arrays, config=config, mask_documents=mask_documents)
        ids_BW = tokens.long()
        begins_BW = mark_starts(starts, batch=ids_BW.shape[0], length=ids_BW.shape[1])
        labels_BT = build_targets(ids_BW, begins_BW, lengths, mask_documents=mask_documents)

        def read(model: Model) -> Tensor:
            layout = model.lay_out_packed(
                begins_BW[:, :-1],
                most_documents=len(starts) + len(ids_BW),
                mask_documents=mask_documents,
            )
            return model(ids_BW[:, :-1], layout).flatten(0, 1)

        (teacher,) = self._teachers
        with torch.no_grad():
            seen = teacher.head(read(teacher), Teacher)
        score = partial(
            chunked_cross_entropy,
            labels_N=labels_BT.flatten(),
            chunk_tokens=config.chunk_tokens,
            z_loss=config.z_loss,
            label_smoothing=config.label_smoothing,
            teacher=seen,
            teacher_share=config.teacher_share,
            temperature=config.temperature,
        )
        sums = self.model.head(read(self.model), score)
        targets = (labels_BT != IGNORED).sum()
        figures = {"loss": sums.nll, "z_loss": sums.z, "teacher_kl": sums.divergence}
        return Scores(
            loss=LossSum(sums.loss, targets),
            figures={name: LossSum(total, targets) for name, total in figures.items()},
            rows=sum_rows(sums.nlls, labels_BT),
        )
