# Shape letters: R rows (samples), W raw tokens of a row, T tokens with the three that are added.
"""Masked tokens, and what two parts are to each other: in their order or not (Lan et al. 2020,
arXiv 1909.11942, section 3.1), or of two windows (Devlin et al. 2019; Wang et al. 2019, arXiv
1908.04577, section 2.3), the half without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.masked import MaskedNextConfig, MaskedPartsConfig
from lmscale.objective.draws import draw_words
from lmscale.objective.masked import MaskedPreparation, prepare_masked
from lmscale.objective.objective import IGNORED, Objective
from lmscale.stream.batches import Field, Prepared, Rows
from lmscale.stream.order import philox_key

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model


class Parts(NamedTuple):
    """The two parts of each row, in the order in which they stand."""

    begins: np.ndarray
    """int64 [R, 2]: columns of the row; from W on, of the row's partner"""
    lengths: np.ndarray
    """int64 [R, 2]: tokens; 0 and 0 of a row without any"""
    label: np.ndarray
    """int32 [R]: what they are to each other; IGNORED where there are no two"""


Arrange = Callable[[Rows, np.ndarray, int], Parts]
"""Of rows, by a table of the ids that end a sentence, bool [V], and a seed."""


def order_parts(rows: Rows, ends_sentence: np.ndarray, seed: int) -> Parts:
    """The parts of each row itself: as in the text, 0, or swapped, 1."""
    words_R2 = draw_words(philox_key(seed, "sentence order"), rows.numbers, 2)
    has_two_R = rows.lengths >= 2
    lengths_R = rows.lengths.astype(np.int64)
    cut_R = np.minimum(cut_rows(rows, words_R2[:, 0], ends_sentence), lengths_R)
    is_swapped_R = has_two_R & (words_R2[:, 1] >> np.uint64(63) == 1)
    own = Parts(
        begins=np.stack([np.zeros_like(cut_R), cut_R], axis=1),
        lengths=np.stack([cut_R, lengths_R - cut_R], axis=1),
        label=np.where(has_two_R, is_swapped_R, IGNORED).astype(np.int32),
    )
    return swap_parts(own, is_swapped_R)


def pair_parts(
    rows: Rows, ends_sentence: np.ndarray, seed: int, *, previous: bool = False
) -> Parts:
    """A row's first part with its second one, 0, or with that of its partner; the partner has the
    other one then. Half of all pairs of rows exchange them. With ``previous`` a third does, which
    is 2; of the other rows half stand swapped, which is 1.

    Both second parts are as long as the shorter one, exchanged or not: no length tells which.
    """
    others = rows.partners
    assert others is not None, "the rows came without their partners"
    pair_R = np.minimum(rows.numbers, others.numbers)  # whose words are both rows'
    numbers = np.unique([rows.numbers, others.numbers])  # of a stream in a row, so one call
    words = draw_words(philox_key(seed, "next sentence"), numbers, 4)
    words_R4 = words[np.searchsorted(numbers, pair_R)]
    has_two_R = (rows.lengths >= 2) & (others.lengths >= 2)
    cut_R, other_R = (
        np.minimum(cut_rows(each, words_R4[:, 0], ends_sentence), each.lengths.astype(np.int64))
        for each in (rows, others)
    )
    rest_R, other_rest_R = rows.lengths - cut_R, others.lengths - other_R
    share = 2**64 // 3 if previous else 2**63
    is_other_R = has_two_R & (words_R4[:, 1] < share)
    second_R = np.where(is_other_R, rows.tokens.shape[1] + other_R, cut_R)
    parts = Parts(
        begins=np.stack([np.zeros_like(cut_R), second_R], axis=1),
        lengths=np.stack([cut_R, np.where(has_two_R, np.minimum(rest_R, other_rest_R), rest_R)], 1),
        label=np.where(has_two_R, is_other_R * (1 + previous), IGNORED).astype(np.int32),
    )
    if not previous:
        return parts
    coin_R = np.where(rows.numbers == pair_R, words_R4[:, 2], words_R4[:, 3])
    is_swapped_R = (parts.label == 0) & (coin_R >> np.uint64(63) == 1)
    label_R = np.where(is_swapped_R, 1, parts.label).astype(np.int32)
    return swap_parts(parts._replace(label=label_R), is_swapped_R)


def swap_parts(parts: Parts, is_swapped_R: np.ndarray) -> Parts:
    """The same with the parts of some rows in the other order."""

    def swap(array_R2: np.ndarray) -> np.ndarray:
        return np.where(is_swapped_R[:, None], array_R2[:, ::-1], array_R2)

    return parts._replace(begins=swap(parts.begins), lengths=swap(parts.lengths))


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedPartsPreparation:
    """Lays two parts in each row, and hides tokens."""

    masked: MaskedPreparation
    cls_id: int
    sep_id: int
    arrange: Arrange = order_parts
    reads_partners: bool = False
    fields: tuple[Field, ...] = (
        Field("ids", "uint32", ("B", "T")),
        Field("types", "uint8", ("B", "T")),  # 1: of the second part
        Field("lengths", "int32", ("B",)),
        Field("positions", "int32", ("N",)),  # flat, of the hidden tokens
        Field("labels", "int32", ("N",)),  # what stood there
        Field("order", "int32", ("B",)),  # what the parts are to each other; IGNORED: no two
    )

    def prepare(self, rows: Rows) -> Prepared:
        parts = self.arrange(rows, self.masked.kinds.ends_sentence, self.masked.seed)
        source_RT, types_RT = frame_parts(parts, rows.tokens.shape[1])
        is_text_RT = source_RT >= 0
        sources = [each for each in (rows, rows.partners) if each is not None]
        may_RW, begins_RW = zip(*map(self.masked.find_units, sources), strict=True)

        def frame(arrays_RW: Sequence[np.ndarray]) -> np.ndarray:
            return np.take_along_axis(np.hstack(arrays_RW), np.maximum(source_RT, 0), axis=1)

        ids_RW = [each.tokens for each in sources]
        ids_RT = np.where(is_text_RT, frame(ids_RW), self.sep_id).astype(np.uint32)
        ids_RT[:, 0] = self.cls_id
        # A part's first token goes on with nothing before it.
        begins_RT = frame(begins_RW) | ~is_text_RT | ~np.roll(is_text_RT, 1, axis=1)
        may_RT = frame(may_RW) & is_text_RT
        corrupted_RT, chosen_RT = self.masked.hide(rows.numbers, ids_RT, may_RT, begins_RT)
        labels = ids_RT[chosen_RT].astype(np.int32)
        lengths_R = parts.lengths.sum(axis=1)
        arrays = {
            "ids": corrupted_RT,
            "types": types_RT,
            "lengths": np.where(lengths_R, lengths_R + 3, 0).astype(np.int32),
            "positions": np.flatnonzero(chosen_RT).astype(np.int32),
            "labels": labels,
            "order": parts.label,
        }
        num_pairs = int((parts.label != IGNORED).sum())
        return Prepared(arrays, targets=len(labels), more_targets=(num_pairs,))

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


def frame_parts(parts: Parts, raw_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Which column of a row, and of its partner behind it, stands in each place, int64 [R, T] with
    -1 for none, and types, uint8 [R, T].

    [CLS] one part [SEP] other part [SEP].
    """
    columns_T = np.arange(raw_tokens + 3)
    (first_R1, second_R1), (one_R1, other_R1) = (
        (array_R2[:, :1], array_R2[:, 1:]) for array_R2 in (parts.lengths, parts.begins)
    )
    is_first_RT = (columns_T >= 1) & (columns_T <= first_R1)
    is_second_RT = (columns_T >= first_R1 + 2) & (columns_T <= first_R1 + second_R1 + 1)
    source_RT = np.where(is_first_RT, one_R1 + columns_T - 1, -1)
    source_RT = np.where(is_second_RT, other_R1 + columns_T - first_R1 - 2, source_RT)
    return source_RT, (columns_T > first_R1 + 1).astype(np.uint8)


def _prepare(config: RunConfig) -> MaskedPartsPreparation:
    settings = config.objective
    preparation = MaskedPartsPreparation(
        masked=prepare_masked(config),
        cls_id=config.objective_ids["cls"],
        sep_id=config.objective_ids["sep"],
    )
    if not isinstance(settings, MaskedNextConfig):
        return preparation
    arrange = partial(pair_parts, previous=settings.previous)
    return replace(preparation, arrange=arrange, reads_partners=True)


def _build(model: Model, config: RunConfig) -> nn.Module:
    from lmscale.objective.masked_parts_scoring import build_masked_parts_scoring

    settings = config.objective
    assert isinstance(settings, MaskedPartsConfig)
    return build_masked_parts_scoring(model, settings)


MASKED_PARTS = Objective(prepare=_prepare, build=_build)
