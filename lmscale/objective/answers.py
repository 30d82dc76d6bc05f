# Shape letters: B rows (samples), W tokens of a row, N documents of all rows.
"""Answers that stand in a context, the half without torch (Devlin et al. 2019, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.supervised import AnswersConfig
from lmscale.objective.labelled import mark_second_texts
from lmscale.objective.objective import Objective
from lmscale.objective.pieces import find_pieces
from lmscale.shards.members import PARTS, SPANS
from lmscale.stream.batches import TOKENS, Field, Prepared, Rows

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model


@dataclass(frozen=True, kw_only=True)
class AnswersPreparation:
    """Finds the places among which an answer is sought: a document's first token, which stands for
    none, and the tokens of its context. ``first`` and ``last`` count them from 0.
    """

    fields: tuple[Field, ...] = (
        Field("ids", TOKENS, ("B", "W")),
        Field("starts", "int32", ("N",)),
        Field("lengths", "int32", ("B",)),
        Field("types", "uint8", ("B", "W")),
        Field("documents", "int32", ("N",)),  # flat, where each begins
        Field("contexts", "int32", ("N",)),  # and its context
        Field("context_lengths", "int32", ("N",)),
        Field("first", "int32", ("N",)),
        Field("last", "int32", ("N",)),
    )

    def prepare(self, rows: Rows) -> Prepared:
        pieces = find_pieces(rows, mask_documents=True)
        is_there_N = pieces.lengths > 0
        starts_N, lengths_N, parts_N, first_N, last_N = (
            values[is_there_N]
            for values in (
                *(pieces.starts, pieces.lengths, rows.members[PARTS]),
                *(rows.members[name] for name in SPANS),
            )
        )
        has_answer_N = first_N > 0
        arrays = {
            "ids": rows.tokens,
            "starts": rows.starts,
            "lengths": rows.lengths,
            "types": mark_second_texts(rows),
            "documents": starts_N,
            "contexts": starts_N + parts_N,
            "context_lengths": lengths_N - parts_N - 1,  # without eos
            "first": np.where(has_answer_N, first_N - parts_N + 1, 0),
            "last": np.where(has_answer_N, last_N - parts_N + 1, 0),
        }
        for field in self.fields[4:]:
            arrays[field.name] = arrays[field.name].astype(field.dtype)
        return Prepared(arrays, targets=len(starts_N))

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """None: no text is predicted."""
        return arrays["ids"][:0, 0]


def _prepare(config: RunConfig) -> AnswersPreparation:
    return AnswersPreparation()


def _build(model: Model, config: RunConfig) -> nn.Module:
    from lmscale.objective.answers_scoring import build_answers_scoring

    settings = config.objective
    assert isinstance(settings, AnswersConfig)
    return build_answers_scoring(model, longest=settings.longest_answer)


ANSWERS = Objective(prepare=_prepare, build=_build)
