# Shape letters: R rows (samples), L places of a row, N pairs of all rows, M = R·L.
"""Pairs of texts (translation, summaries), the half without torch: several of them in a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.supervised import PairsConfig
from lmscale.objective.objective import IGNORED, Objective
from lmscale.objective.pairs import PairIds, pair_fields, pair_ids
from lmscale.objective.pieces import find_pieces
from lmscale.shards.members import PARTS
from lmscale.stream.batches import Field, Prepared, Rows
from lmscale.tokenizer.codec import load_kept_tokenizer

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model


@dataclass(frozen=True, kw_only=True)
class PairsPreparation:
    """Lays the first texts of a row's documents one behind the other, each with an end, and so the
    second ones: text k of what is written belongs to text k of what is read.

    The document's bos and eos are left out: the objective's ids stand in their places.
    """

    length: int  # of a row of either
    ids: PairIds
    bos_id: int | None

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            *pair_fields((self.length, self.length)),
            Field("source_starts", "int32", ("N",)),  # flat, where a text begins
            Field("label_starts", "int32", ("N",)),
        )

    def prepare(self, rows: Rows) -> Prepared:
        pieces, num_rows = find_pieces(rows, mask_documents=True), len(rows.tokens)
        tokens_M = rows.tokens.reshape(-1)
        is_there = pieces.lengths > 0
        starts_N, lengths_N, parts_N = (
            values[is_there].astype(np.int64)
            for values in (pieces.starts, pieces.lengths, rows.members[PARTS])
        )
        row_N = starts_N // rows.tokens.shape[1]
        num_bos_N = (tokens_M[starts_N] == self.bos_id).astype(np.int64)

        def lay(begins_N: np.ndarray, sizes_N: np.ndarray, fill: int) -> tuple[np.ndarray, ...]:
            places_N, totals_R = place_in_rows(row_N, sizes_N + 1, num_rows, self.length)
            laid_M = np.full(num_rows * self.length, fill, dtype=np.int32)
            laid_M[expand(places_N, sizes_N)] = tokens_M[expand(begins_N, sizes_N)]
            laid_M[places_N + sizes_N] = self.ids.end
            return laid_M.reshape(num_rows, self.length), places_N.astype(np.int32), totals_R

        source, source_starts, source_lengths = lay(starts_N + num_bos_N, parts_N - num_bos_N, 0)
        labels, label_starts, totals_R = lay(starts_N + parts_N, lengths_N - parts_N - 1, IGNORED)
        arrays = {
            "source": source,
            "source_lengths": source_lengths.astype(np.int32),
            "labels": labels,
            "source_starts": source_starts,
            "label_starts": label_starts,
        }
        return Prepared(arrays, targets=int(totals_R.sum()))

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.ids.of_text(arrays["labels"])


def place_in_rows(
    row_N: np.ndarray, sizes_N: np.ndarray, num_rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where in R × L runs of these sizes begin, one behind the other in their rows, which ascend;
    and how much each row then holds, int64 [R].
    """
    totals_R = np.bincount(row_N, weights=sizes_N, minlength=num_rows).astype(np.int64)
    before_R = totals_R.cumsum() - totals_R
    return row_N * length + sizes_N.cumsum() - sizes_N - before_R[row_N], totals_R


def expand(begins_N: np.ndarray, sizes_N: np.ndarray) -> np.ndarray:
    """The places of all runs, int64: begin, begin + 1, … of each."""
    within = np.arange(sizes_N.sum()) - np.repeat(sizes_N.cumsum() - sizes_N, sizes_N)
    return np.repeat(begins_N, sizes_N) + within


def _prepare(config: RunConfig) -> PairsPreparation:
    tokenizer = load_kept_tokenizer(config.folder, config.tokenizer.folder)
    return PairsPreparation(
        length=config.stream.sequence_length, ids=pair_ids(config), bos_id=tokenizer.bos_id
    )


def _build(model: Model, config: RunConfig) -> nn.Module:
    from lmscale.objective.pair_scoring import build_pair_scoring

    settings = config.objective
    assert isinstance(settings, PairsConfig)
    return build_pair_scoring(model, settings, start=pair_ids(config).start)


PAIRS = Objective(prepare=_prepare, build=_build)
