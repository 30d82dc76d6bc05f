"""What best fit makes of a shard, and the counts of windows that are kept of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lmscale.config.data import OnOverlong, WindowShape
from lmscale.files.reading import unseal
from lmscale.files.strangers import is_count
from lmscale.shards.manifest import ShardEntry
from lmscale.shards.members import REPLIES
from lmscale.shards.reader import MappedShard
from lmscale.stream.packing import plan_best_fit
from lmscale.stream.shard_windows import document_lengths
from lmscale.stream.whole_documents import check_fit, cut_overlong


class Counts(NamedTuple):
    """Of all shards of a dataset."""

    windows: np.ndarray  # int64 [shards]
    overlong: int  # whole documents that are longer than a window


def plan_shard(
    shard: MappedShard, num_blocks: int, shape: WindowShape, on_overlong: OnOverlong, *, where: str
) -> np.ndarray:
    """``plan_best_fit`` of the shard's documents. Raises ``LongDocumentsError`` where whole ones
    that are longer than a window are refused; ``where`` names the shard.
    """
    lengths = document_lengths(shard, num_blocks)
    if not shape.is_whole:
        return plan_best_fit(lengths, shape)
    if on_overlong == "refuse":
        check_fit(lengths, shape, where=where)
    cuts = on_overlong == "truncate" and shape.has_turns
    replies = partial(_find_replies, shard, num_blocks) if cuts else None
    return plan_best_fit(lengths, shape, cut_overlong(lengths, shape.tokens, replies))


def _find_replies(shard: MappedShard, num_blocks: int, number: int) -> np.ndarray:
    """Which tokens of a document of the shard are an answer's, bool [tokens]."""
    for block in range(num_blocks):
        docs = shard.docs(block)
        if number < len(docs) - 1:
            return shard.values(REPLIES, block)[docs[number] : docs[number + 1]].astype(bool)
        number -= len(docs) - 1
    raise AssertionError("the shard has as many documents as lengths")


def parse_counts(
    content: bytes, head: Mapping[str, Any], shards: Sequence[ShardEntry]
) -> Counts | None:
    """The counts that were kept under ``head``, or None where they are damaged or of another
    dataset, length or version.
    """
    try:
        tree = unseal(content)
    except ValueError:
        return None
    counts, overlong = tree.pop("counts", None), tree.pop("overlong", 0)
    is_ours = tree == head and isinstance(counts, list) and len(counts) == len(shards)
    if not is_ours or not all(map(is_count, [*counts, overlong])):
        return None
    # A window has a token of its own at least.
    is_full = all(c <= entry.tokens for c, entry in zip(counts, shards, strict=True))
    return Counts(np.array(counts, dtype=np.int64), overlong) if is_full else None
