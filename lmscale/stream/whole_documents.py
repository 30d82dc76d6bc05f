"""Whether the documents of a dataset fit whole into windows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lmscale.config.data import WindowShape
from lmscale.errors import DataError
from lmscale.shards.manifest import MAX_NAMED


class LongDocumentsError(DataError):
    """A document that may not be cut is longer than a window."""


def count_windows(
    pack: Callable[[int], int], num_shards: int, advance: Callable[[float], None]
) -> list[int]:
    """Windows of each shard. Raises ``LongDocumentsError`` for all shards together, and at once
    where so many hold long documents that reading on would tell no more.
    """
    counts: list[int] = []
    problems: list[str] = []
    for number in range(num_shards):
        try:
            counts.append(pack(number))
        except LongDocumentsError as error:
            problems += error.problems
            if len(problems) >= MAX_NAMED and number + 1 < num_shards:
                seen = f"{number + 1:,} of {num_shards:,} shards"
                problems.append(f"Looking stopped there, after {seen}: others may be like them.")
                break
        advance(1)
    if problems:
        raise LongDocumentsError(problems)
    return counts


def check_fit(lengths: np.ndarray, shape: WindowShape, *, where: str) -> None:
    """Raise ``LongDocumentsError`` where a document of ``lengths``, int64 [documents], does not
    fit into a window.
    """
    num_long = int((lengths > shape.tokens).sum())
    if num_long:
        raise LongDocumentsError(
            f"{where}: {num_long:,} of its {len(lengths):,} documents are longer than a window of "
            f"{shape.tokens:,} tokens, the longest has {lengths.max():,}; what is said of a whole "
            "document is of no part of it. Raise stream.sequence_length, or build corpus and "
            "shards with a smaller corpus.max_chars (and on_overlong: truncate, or drop: a "
            "dialogue is cut behind an answer)."
        )
