# Shape letters: B rows, T positions of a row, N positions of a micro-batch, D model width.
"""Hidden states and the ids that belong to them → sums: what all scorings share, and the parts of a
mixture.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from lmscale.config.masked import MaskedConfig
from lmscale.config.objective import MixtureConfig, NextTokenConfig
from lmscale.model.family import Model
from lmscale.objective.cross_entropy import IGNORED, CrossEntropySums, chunked_cross_entropy
from lmscale.objective.scores import LossSum, Scores


def score_targets(
    model: Model,
    hidden_ND: Tensor,
    labels_N: Tensor,
    config: NextTokenConfig | MaskedConfig,
    *,
    counts_hits: bool,
    parts_N: Tensor | None = None,
) -> tuple[Scores, Tensor]:
    """The scores of labels, int64, and the nll of each, f32 [N]; ``IGNORED`` is no target.

    ``parts_N``: of a mixture, int64, the number of the part that a position is of.
    """
    settings: dict[str, Any] = {"chunk_tokens": config.chunk_tokens, "counts_hits": counts_hits}
    if isinstance(config, NextTokenConfig):
        settings |= {"z_loss": config.z_loss, "label_smoothing": config.label_smoothing}
    if isinstance(config, MixtureConfig):
        settings |= {"parts_N": parts_N, "num_parts": len(config.parts)}
    score = partial(chunked_cross_entropy, labels_N=labels_N, **settings)
    sums = model.head(hidden_ND, score)
    targets = (labels_N != IGNORED).sum()
    figures = {"loss": LossSum(sums.nll, targets), "z_loss": LossSum(sums.z, targets)}
    if counts_hits:
        figures["accuracy"] = LossSum(sums.hits, targets)
    scores = Scores(loss=LossSum(sums.loss, targets), figures=figures)
    if isinstance(config, MixtureConfig):
        assert parts_N is not None
        scores = _split(scores, sums, config, labels_N, parts_N)
    return scores, sums.nlls


def sum_rows(nlls_N: Tensor, labels_BT: Tensor) -> LossSum:
    """The nll of each row, f32 [B], and its targets, from that of every position."""
    return LossSum(nlls_N.view_as(labels_BT).sum(1), (labels_BT != IGNORED).sum(1))


def spread_parts(parts_B: Tensor | None, length: int) -> Tensor | None:
    """Of each position of rows of this length the part, int64 [B · length]."""
    return None if parts_B is None else parts_B.long().repeat_interleave(length)


def _split(
    scores: Scores,
    sums: CrossEntropySums,
    config: MixtureConfig,
    labels_N: Tensor,
    parts_N: Tensor,
) -> Scores:
    """The same with a figure and a term of the loss for each part: its share, of its own mean.

    The first term keeps all targets, which the ledger counts, and has no loss.
    """
    figures, terms = dict(scores.figures), []
    for number, (name, share) in enumerate(zip(config.parts, config.shares, strict=True)):
        is_its_N = (parts_N == number) & (labels_N != IGNORED)
        targets = is_its_N.sum()
        figures[f"loss/{name}"] = LossSum((sums.nlls * is_its_N).sum(), targets)
        terms.append(LossSum(share * sums.loss[number], targets))
    all_targets = LossSum(sums.nll.new_zeros(()), scores.loss.targets)
    return Scores(loss=all_targets, figures=figures, more_losses=tuple(terms))
