"""The order of a source's windows: pure arithmetic on counts, the same everywhere and for ever.

Per epoch the shards are permuted and taken in groups of ``window_shards``; the windows of a group
are permuted together. A group is both the shuffle's quality and the number of shards open at once.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict

import numpy as np

KEPT_PERMUTATIONS = 3  # the current group's, and its neighbours' while a read crosses over


def philox_key(*parts: int | str) -> np.ndarray:
    """A 128-bit Philox key (uint64 [2]) that is a function of ``parts`` and of nothing else.

    Hashed from unambiguous JSON, so ("a", 12, 3) and ("a", 1, 23) have nothing in common, which
    adding or shifting numbers together would not give.
    """
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.blake2b(text.encode(), digest_size=16, person=b"lmscale-order").digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def permute(count: int, *parts: int | str) -> np.ndarray:
    """A permutation of range(count), int64 [count], drawn by the key made of ``parts``.

    The stable argsort of raw Philox words: numpy promises to keep the raw stream, not what its
    ``Generator.permutation`` does with it.
    """
    words = np.random.Philox(key=philox_key(*parts)).random_raw(count)
    order = np.argsort(words)  # 4 times faster than stable, and the same where no two are equal
    ranked = words[order]
    if (ranked[1:] == ranked[:-1]).any():
        order = np.argsort(words, kind="stable")
    return order


class SourceOrder:
    """Where the i-th window of one source lies, for any i: no state but caches.

    ``counts``: windows per shard, int64 [shards], in the manifest's order.
    """

    def __init__(self, counts: np.ndarray, *, seed: int, source: str, window_shards: int) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.total = int(self.counts.sum())  # windows in an epoch
        if self.total < 1:
            raise ValueError(f"source {source!r} has no windows")
        self._seed = seed
        self._source = source
        self._window_shards = window_shards
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def locate(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Shard and window in the shard, int64 [count] each, of samples first, first + 1, …"""
        shards = np.empty(count, dtype=np.int64)
        windows = np.empty(count, dtype=np.int64)
        filled = 0
        while filled < count:
            epoch, position = divmod(first + filled, self.total)
            order, ends = self._epoch(epoch)
            group = int(np.searchsorted(ends, position, side="right"))
            begin = int(ends[group - 1]) if group else 0
            take = min(count - filled, int(ends[group]) - position)
            chosen = order[group * self._window_shards : (group + 1) * self._window_shards]
            offset = position - begin
            picks = self._group(epoch, group, int(ends[group]) - begin)[offset : offset + take]
            shard_ends = np.cumsum(self.counts[chosen])
            which = np.searchsorted(shard_ends, picks, side="right")
            shards[filled : filled + take] = chosen[which]
            windows[filled : filled + take] = picks - (shard_ends - self.counts[chosen])[which]
            filled += take
        return shards, windows

    def shards_ahead(self, index: int) -> list[int]:
        """Shards of the group of window ``index`` and of the next one, in order of use."""
        epoch, position = divmod(index, self.total)
        order, ends = self._epoch(epoch)
        group = int(np.searchsorted(ends, position, side="right"))
        chosen = order[group * self._window_shards : (group + 2) * self._window_shards]
        if group + 1 == len(ends):
            chosen = np.concatenate([chosen, self._epoch(epoch + 1)[0][: self._window_shards]])
        return [int(shard) for shard in chosen if self.counts[shard]]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of shards, and the position at which each group ends."""
        if epoch not in self._epochs:
            order = permute(len(self.counts), self._seed, "shards", self._source, epoch)
            starts = np.arange(0, len(order), self._window_shards)
            ends = np.cumsum(np.add.reduceat(self.counts[order], starts))
            _remember(self._epochs, epoch, (order, ends))
        return self._epochs[epoch]

    def _group(self, epoch: int, group: int, size: int) -> np.ndarray:
        if (epoch, group) not in self._groups:
            drawn = permute(size, self._seed, "windows", self._source, epoch, group)
            _remember(self._groups, (epoch, group), drawn)
        return self._groups[epoch, group]


def _remember(cache: OrderedDict, key, value) -> None:
    cache[key] = value
    if len(cache) > KEPT_PERMUTATIONS:
        cache.popitem(last=False)
