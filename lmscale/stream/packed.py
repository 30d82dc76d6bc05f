"""What best fit has found, kept on disk: window counts of a dataset, and the plan of each shard."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.errors import DataError
from lmscale.files.atomic import write_bytes
from lmscale.files.cache import CachedFile, NodeCache
from lmscale.files.locations import join_location, protocol_of
from lmscale.files.remote import MissingFileError, read_bytes
from lmscale.shards.manifest import Manifest, ShardEntry
from lmscale.shards.reader import MappedShard
from lmscale.stream.packing import plan_best_fit
from lmscale.stream.shard_windows import document_lengths

VERSION = 1


def load_counts(
    manifest: Manifest,
    sequence_length: int,
    *,
    location: str,
    cache: NodeCache,
    count: Callable[[int], int],
    advance: Callable[[float], None],
) -> np.ndarray:
    """Windows per shard by best fit, int64 [shards].

    From ``windows-best_fit-T.json`` beside the manifest or in the cache. If neither is there, every
    shard is packed (``count``), and the result is left in both places. Raises ``DataError`` where
    the file may be there but cannot be read.
    """
    name = f"windows-best_fit-{sequence_length}.json"
    numbers = range(len(manifest.shards))
    fingerprint = manifest.fingerprint
    head = {"version": VERSION, "manifest": fingerprint, "sequence_length": sequence_length}
    beside = join_location(location, name)
    with suppress(MissingFileError):  # nobody has packed this dataset at this length yet
        counts = _parse_counts(read_bytes(beside, retries=cache.retries), head, len(numbers))
        if counts is not None:
            return counts

    def count_all(path: Path) -> None:
        counted = []
        for number in numbers:
            counted.append(count(number))
            advance(1)
        path.write_text(json.dumps(head | {"counts": counted}) + "\n")

    key = f"best_fit counts\0{VERSION}\0{fingerprint}\0{sequence_length}"
    with cache.make(key, name=name, size=32 * len(numbers) + 256, write=count_all) as file:
        content = file.path.read_bytes()
    if protocol_of(location) is None:
        with suppress(OSError):  # a read-only dataset: the copy in the cache serves this node
            write_bytes(beside, content)
    counts = _parse_counts(content, head, len(numbers))
    if counts is None:
        raise DataError(f"{file.path}: the window counts in it are damaged; delete this file.")
    return counts


def load_pieces(
    cache: NodeCache, entry: ShardEntry, shard: MappedShard, sequence_length: int
) -> tuple[np.ndarray, CachedFile]:
    """The shard's plan of ``plan_best_fit``, memory-mapped; packed once per node.

    Packing takes about 0.2 s per 100,000 documents.
    """

    def pack(path: Path) -> None:
        plan = plan_best_fit(document_lengths(shard, entry.blocks), sequence_length)
        with open(path, "wb") as file:
            np.save(file, plan, allow_pickle=False)

    key = f"best_fit plan\0{VERSION}\0{entry.sha256}\0{sequence_length}"
    # A piece is a document, or a full window that was cut from one.
    most_pieces = entry.documents + entry.tokens // sequence_length
    file = cache.make(key, name="pieces.npy", size=24 * most_pieces + 128, write=pack)
    try:
        return np.load(file.path, mmap_mode="r", allow_pickle=False), file
    except (ValueError, EOFError) as error:
        raise DataError(f"{file.path}: damaged: {error}. Delete this file.") from None


def _parse_counts(content: bytes, head: dict[str, Any], num_shards: int) -> np.ndarray | None:
    """The counts, or None where they are of another dataset, length or version."""
    try:
        tree = json.loads(content)
        counts = np.array(tree["counts"], dtype=np.int64)
        is_ours = {key: tree[key] for key in head} == head
    except (ValueError, KeyError, TypeError):
        return None
    return counts if is_ours and counts.shape == (num_shards,) else None
