# Shape letters: R rows (samples), W raw tokens of a row, T tokens with the three that are added.
"""Masked tokens and the order of a window's two parts (Lan et al. 2020, arXiv 1909.11942, section
3.1), the half without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.objective import MaskedOrderConfig
from lmscale.objective.draws import draw_words
from lmscale.objective.masked import MaskedPreparation, prepare_masked
from lmscale.objective.objective import IGNORED, Objective
from lmscale.stream.batches import Field, Prepared, Rows
from lmscale.stream.order import philox_key

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class SentenceOrderPreparation:
    """Cuts each sample in two, swaps the parts of about half of them, and hides tokens."""

    masked: MaskedPreparation
    cls_id: int
    sep_id: int
    fields: tuple[Field, ...] = (
        Field("ids", "uint32", ("B", "T")),
        Field("types", "uint8", ("B", "T")),  # 1: of the second part
        Field("lengths", "int32", ("B",)),
        Field("positions", "int32", ("N",)),  # flat, of the hidden tokens
        Field("labels", "int32", ("N",)),  # what stood there
        Field("order", "int32", ("B",)),  # 0: as in the text, 1: swapped, IGNORED: no two parts
    )

    def prepare(self, rows: Rows) -> Prepared:
        words_R2 = draw_words(philox_key(self.masked.seed, "sentence order"), rows.numbers, 2)
        has_order_R = rows.lengths >= 2
        cut_R = cut_rows(rows, words_R2[:, 0], self.masked.kinds.ends_sentence)
        is_swapped_R = has_order_R & (words_R2[:, 1] >> np.uint64(63) == 1)
        source_RT, types_RT = frame_parts(rows.lengths, cut_R, is_swapped_R, rows.tokens.shape[1])
        is_text_RT = source_RT >= 0

        def frame(array_RW: np.ndarray) -> np.ndarray:
            return np.take_along_axis(array_RW, np.maximum(source_RT, 0), axis=1)

        may_RW, begins_RW = self.masked.find_units(rows)
        ids_RT = np.where(is_text_RT, frame(rows.tokens), self.sep_id).astype(np.uint32)
        ids_RT[:, 0] = self.cls_id
        # A part's first token goes on with nothing before it.
        begins_RT = frame(begins_RW) | ~is_text_RT | ~np.roll(is_text_RT, 1, axis=1)
        may_RT = frame(may_RW) & is_text_RT
        corrupted_RT, chosen_RT = self.masked.hide(rows.numbers, ids_RT, may_RT, begins_RT)
        labels = ids_RT[chosen_RT].astype(np.int32)
        arrays = {
            "ids": corrupted_RT,
            "types": types_RT,
            "lengths": np.where(rows.lengths, rows.lengths + 3, 0).astype(np.int32),
            "positions": np.flatnonzero(chosen_RT).astype(np.int32),
            "labels": labels,
            "order": np.where(has_order_R, is_swapped_R, IGNORED).astype(np.int32),
        }
        return Prepared(arrays, targets=len(labels), more_targets=(int(has_order_R.sum()),))

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return arrays["labels"]


def cut_rows(rows: Rows, words_R: np.ndarray, ends_sentence: np.ndarray) -> np.ndarray:
    """int64 [R]: where each row's second part begins, at least 1.

    Behind the sentence end that is nearest to a place drawn from the middle half of the row, or at
    that place where none lies within a quarter.
    """
    lengths_R = rows.lengths.astype(np.int64)
    half_R = np.maximum(lengths_R // 2, 1)
    wanted_R = lengths_R // 4 + (words_R % half_R.astype(np.uint64)).astype(np.int64)
    places_W = np.arange(rows.tokens.shape[1])  # the second part begins here
    is_end_RW = np.zeros(rows.tokens.shape, dtype=bool)
    is_end_RW[:, 1:] = ends_sentence[rows.tokens[:, :-1]]
    is_end_RW &= places_W < lengths_R[:, None]
    distance_RW = np.where(is_end_RW, np.abs(places_W - wanted_R[:, None]), len(places_W))
    is_near_R = distance_RW.min(axis=1) <= lengths_R // 4
    return np.maximum(np.where(is_near_R, distance_RW.argmin(axis=1), wanted_R), 1)


def frame_parts(
    lengths_R: np.ndarray, cut_R: np.ndarray, is_swapped_R: np.ndarray, raw_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which raw token stands in each place, int64 [R, T] with -1 for none, and types, uint8 [R, T].

    [CLS] one part [SEP] other part [SEP], each part behind the other where the row is swapped.
    """
    length_R1, columns_T = lengths_R.astype(np.int64)[:, None], np.arange(raw_tokens + 3)
    cut_R1, is_swapped_R1 = np.minimum(cut_R[:, None], length_R1), is_swapped_R[:, None]
    first_R1 = np.where(is_swapped_R1, length_R1 - cut_R1, cut_R1)  # tokens of the part in front
    begin_R1 = np.where(is_swapped_R1, cut_R1, 0)
    is_first_RT = (columns_T >= 1) & (columns_T <= first_R1)
    is_second_RT = (columns_T >= first_R1 + 2) & (columns_T <= length_R1 + 1)
    source_RT = np.where(is_first_RT, begin_R1 + columns_T - 1, -1)
    second_RT = np.where(is_swapped_R1, 0, cut_R1) + columns_T - first_R1 - 2
    source_RT = np.where(is_second_RT, second_RT, source_RT)
    return source_RT, (columns_T > first_R1 + 1).astype(np.uint8)


def _prepare(config: RunConfig) -> SentenceOrderPreparation:
    return SentenceOrderPreparation(
        masked=prepare_masked(config),
        cls_id=config.added_ids["cls"],
        sep_id=config.added_ids["sep"],
    )


def _build(model: Model, config: RunConfig) -> nn.Module:
    from lmscale.objective.sentence_order_scoring import build_sentence_order_scoring

    settings = config.objective
    assert isinstance(settings, MaskedOrderConfig)
    return build_sentence_order_scoring(model, settings)


MASKED_ORDER = Objective(prepare=_prepare, build=_build)
