# Shape letters: B rows (samples), W tokens of a row, N documents, or tagged tokens, of all rows.
"""Labelled documents and tagged words, the half without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.supervised import LabelledConfig
from lmscale.objective.objective import Objective
from lmscale.objective.pieces import find_pieces
from lmscale.shards.members import LABELS, TAGS
from lmscale.stream.batches import TOKENS, Field, Prepared, Rows

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model


@dataclass(frozen=True, kw_only=True)
class LabelledPreparation:
    """Finds the places that are scored, and their labels: of a document its first token, of a
    tagged word the token that has its tag.
    """

    member: str  # LABELS or TAGS
    label_dtype: str

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            Field("ids", TOKENS, ("B", "W")),
            Field("starts", "int32", ("N",)),
            Field("lengths", "int32", ("B",)),
            Field("positions", "int32", ("N",)),  # flat, of what is scored
            Field("labels", self.label_dtype, ("N",)),
        )

    def prepare(self, rows: Rows) -> Prepared:
        values = rows.said[self.member]
        if self.member == TAGS:
            is_there_BW = np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
            positions = np.flatnonzero((values >= 0) & is_there_BW)
            labels = values.reshape(-1)[positions]
        else:
            pieces = find_pieces(rows, mask_documents=True)
            is_there_N = pieces.lengths > 0
            positions, labels = pieces.starts[is_there_N], values[is_there_N]
        arrays = {
            "ids": rows.tokens,
            "starts": rows.starts,
            "lengths": rows.lengths,
            "positions": positions.astype(np.int32),
            "labels": labels.astype(self.label_dtype),
        }
        return Prepared(arrays, targets=len(labels))

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """None: no text is predicted."""
        return arrays["ids"][:0, 0]


def _prepare(config: RunConfig) -> LabelledPreparation:
    settings = config.objective
    assert isinstance(settings, LabelledConfig)
    kind = settings.labels.kind
    return LabelledPreparation(
        member=TAGS if kind == "tags" else LABELS,
        label_dtype="float32" if kind == "numbers" else "int32",
    )


def _build(model: Model, config: RunConfig) -> nn.Module:
    from lmscale.objective.labelled_scoring import build_labelled_scoring

    settings = config.objective
    assert isinstance(settings, LabelledConfig)
    return build_labelled_scoring(model, settings.labels.kind)


LABELLED = Objective(prepare=_prepare, build=_build)
