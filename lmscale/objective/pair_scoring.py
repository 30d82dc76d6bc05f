# Shape letters: B batch, S time of what is read, T time of what is written, D model width, N = B·T.
"""Pairs of sequences, the half with torch: how what is written is scored."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from lmscale.config.denoiser import MODES
from lmscale.config.objective import DenoisersConfig
from lmscale.config.objective_base import NextTokenConfig
from lmscale.model.family import CrossModel, Model
from lmscale.model.layout import mark_starts
from lmscale.objective.scores import LossSum, Scores, Scoring
from lmscale.objective.target_scoring import score_targets, spread_parts, sum_rows


def build_pair_scoring(model: Model, config: NextTokenConfig, *, start: int) -> Scoring:
    """``start``: the id before what is written."""
    assert isinstance(model, CrossModel)  # the objective's section needs Ability.CROSS
    return Scoring(model, partial(score_pairs, config=config, start=start))


def score_pairs(
    model: CrossModel,
    *,
    source: Tensor,
    source_lengths: Tensor,
    labels: Tensor,
    source_starts: Tensor | None = None,
    label_starts: Tensor | None = None,
    modes: Tensor | None = None,
    parts: Tensor | None = None,
    config: NextTokenConfig,
    start: int,
) -> Scores:
    """Score the labels [B, T] by what was read, ``source`` [B, S], and by those before them.

    ``source_lengths`` [B]: what follows in a row is padding; so is what is labelled ``IGNORED``,
    behind a row's targets. ``source_starts`` and ``label_starts``: flat places of the texts of a
    row, if it has several, which do not see each other. ``modes`` [B]: of a mixture of denoisers,
    each row's place among ``MODES``, if it has one; ``parts`` [B]: of one of objectives, the part
    that each row is of.
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
    scores, nll_N = score_targets(
        *(model, hidden_BTD.flatten(0, 1), labels_BT.flatten(), config),
        counts_hits=True,
        parts_N=spread_parts(parts, labels_BT.shape[1]),
    )
    rows = sum_rows(nll_N, labels_BT)
    if isinstance(config, DenoisersConfig):
        assert modes is not None
        for number, name in enumerate(MODES):
            is_its_B = modes == number
            mode = LossSum((rows.total * is_its_B).sum(), (rows.targets * is_its_B).sum())
            scores.figures[f"loss_{name}"] = mode
    return scores._replace(rows=rows)
