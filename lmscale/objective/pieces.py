# Shape letters: R rows (samples), W tokens of a row, N pieces of all rows, K words of a sample.
"""The pieces of rows that objectives treat each by itself: documents, or the parts in a window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmscale.objective.draws import draw_words
from lmscale.stream.batches import Rows


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Runs of tokens of a micro-batch, in their order."""

    starts: np.ndarray
    """int32 [N]: flat positions into R × W"""
    lengths: np.ndarray
    """int32 [N]; 0 for a row that is all padding"""


def find_pieces(rows: Rows, *, mask_documents: bool) -> Pieces:
    """The documents in the rows; where they may see each other, the rows."""
    width = rows.tokens.shape[1]
    row_starts = np.arange(len(rows.tokens), dtype=np.int32) * width
    starts = rows.starts if mask_documents else row_starts
    row_ends = (row_starts + rows.lengths)[starts // width]
    ends = np.minimum(np.append(starts[1:], len(row_starts) * width), row_ends)
    return Pieces(starts=starts, lengths=np.maximum(ends - starts, 0).astype(np.int32))


def draw_by_place(key: np.ndarray, rows: Rows) -> np.ndarray:
    """uint64 [R × W], a word for every place of the rows, that of its sample: a piece has as many
    as it has tokens.
    """
    return draw_words(key, rows.numbers, rows.tokens.shape[1]).reshape(-1)


def scale_words(words: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Whole numbers, int64, from 0 to bound - 1, all alike likely up to a bias of 2^-21."""
    return (words >> np.uint64(32)).astype(np.int64) * bounds >> 32
