# Shape letters: B batch, S time of what is read, T time of what is written, D model width, N = B·T.
"""Pairs of sequences, the half with torch: how what is written is scored."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from lmscale.config.objective_base import NextTokenConfig
from lmscale.model.family import CrossModel, Model
from lmscale.model.layout import mark_starts
from lmscale.objective.cross_entropy import chunked_cross_entropy
from lmscale.objective.objective import IGNORED
from lmscale.objective.scores import LossSum, Scores, Scoring


def build_pair_scoring(
    model: Model, config: NextTokenConfig, *, start: int, modes: tuple[str, ...] = ()
) -> Scoring:
    """``start``: the id before what is written. ``modes``: those whose loss is reported apart."""
    assert isinstance(model, CrossModel)  # the objective's section needs Ability.CROSS
    return Scoring(model, partial(score_pairs, config=config, start=start, mode_names=modes))


def score_pairs(
    model: CrossModel,
    *,
    source: Tensor,
    source_lengths: Tensor,
    labels: Tensor,
    source_starts: Tensor | None = None,
    label_starts: Tensor | None = None,
    modes: Tensor | None = None,
    config: NextTokenConfig,
    start: int,
    mode_names: tuple[str, ...],
) -> Scores:
    """Score the labels [B, T] by what was read, ``source`` [B, S], and by those before them.

    ``source_lengths`` [B]: what follows in a row is padding; so is what is labelled ``IGNORED``,
    behind a row's targets. ``source_starts`` and ``label_starts``: flat places of the texts of a
    row, if it has several, which do not see each other. ``modes`` [B]: each row's place among
    ``mode_names``, if it has one.
    """
    labels_BT = labels.long()
    begins_BS, begins_BT = (
        mark_starts(source_lengths.new_zeros(0) if starts is None else starts, batch=B, length=T)
        for (B, T), starts in ((source.shape, source_starts), (labels.shape, label_starts))
    )
    has_several = source_starts is not None
    read = model.lay_out(begins_BS, mask_documents=has_several, lengths_B=source_lengths)
    layout = model.lay_out_target(begins_BT, source.long(), read)
    before_BT = labels_BT.roll(1, dims=1).masked_fill(begins_BT, start)
    hidden_BTD = model(before_BT.clamp(min=0), layout)
    score = partial(
        chunked_cross_entropy,
        labels_N=labels_BT.flatten(),
        chunk_tokens=config.chunk_tokens,
        z_loss=config.z_loss,
        label_smoothing=config.label_smoothing,
        counts_hits=True,
    )
    sums = model.head(hidden_BTD.flatten(0, 1), score)
    is_target_BT = labels_BT != IGNORED
    targets = is_target_BT.sum()
    figures = {
        "loss": LossSum(sums.nll, targets),
        "z_loss": LossSum(sums.z, targets),
        "accuracy": LossSum(sums.hits, targets),
    }
    for number, name in enumerate(mode_names):
        assert modes is not None
        is_its_B = modes == number
        nll_B, targets_B = sums.nlls.view_as(labels_BT).sum(1), is_target_BT.sum(1)
        figures[f"loss_{name}"] = LossSum((nll_B * is_its_B).sum(), (targets_B * is_its_B).sum())
    return Scores(loss=LossSum(sums.loss, targets), figures=figures)
