"""Documents that may not be cut, and the windows that they fit into or do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lmscale.config.data import OnOverlong, StreamConfig, WindowShape
from lmscale.errors import DataError
from lmscale.shards.manifest import MAX_NAMED, Manifest


class LongDocumentsError(DataError):
    """A document that may not be cut is longer than a window."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What best fit has made of a shard."""

    windows: int
    overlong: int = 0
    """Its whole documents that are longer than a window: left out or cut."""


def choose_overlong(config: StreamConfig, shape: WindowShape) -> OnOverlong:
    """What becomes of whole documents that are longer than a window of ``shape``."""
    return config.on_overlong or ("drop" if shape.has_turns else "refuse")


def count_windows(
    pack: Callable[[int], Counted], num_shards: int, advance: Callable[[float], None]
) -> list[Counted]:
    """Windows of each shard. Raises ``LongDocumentsError`` for all shards together, and at once
    where so many hold long documents that reading on would tell no more.
    """
    counts: list[Counted] = []
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
            "document is of no part of it. Raise stream.sequence_length, leave them out with "
            "stream.on_overlong: drop, or build corpus and shards with a smaller corpus.max_chars."
        )


def cut_overlong(
    lengths: np.ndarray, tokens: int, find_replies: Callable[[int], np.ndarray] | None
) -> np.ndarray:
    """How many tokens of each document stay, int64 [documents]: all that a window of ``tokens``
    holds, and of a longer one none; or, of a dialogue, those up to its last answer that fits.

    ``find_replies``: document → which of its tokens are the answers', bool [tokens]; None: none of
    a longer one stays.
    """
    kept = np.where(lengths > tokens, 0, lengths)
    if find_replies is not None:
        for number in np.flatnonzero(lengths > tokens).tolist():
            kept[number] = _end_of_last_answer(find_replies(number), tokens)
    return kept


def _end_of_last_answer(is_reply: np.ndarray, tokens: int) -> int:
    """Tokens up to the end of the last answer that ends within the first ``tokens``; 0: none."""
    ends = np.flatnonzero(is_reply[:-1] & ~is_reply[1:]) + 1
    fitting = ends[ends <= tokens]
    return int(fitting[-1]) if len(fitting) else 0


def describe_empty(manifest: Manifest, shape: WindowShape, num_overlong: int) -> str:
    """Why a dataset has no window."""
    if num_overlong:
        return (
            f"all its {num_overlong:,} documents are longer than a window of {shape.tokens:,} "
            "tokens, and were left out. Raise stream.sequence_length."
        )
    return (
        f"the dataset is empty: its manifest lists {len(manifest.shards)} shards and not one token "
        "to predict. Check the corpus it was built from (`lmscale shards show` on the folder)."
    )
