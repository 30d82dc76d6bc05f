"""One dataset, local or remote, as windows of T + 1 tokens in stored order."""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmscale.config.data import ShardCacheConfig
from lmscale.errors import DataError
from lmscale.files.cache import CachedFile, NodeCache
from lmscale.files.locations import join_location, protocol_of
from lmscale.files.shard_files import find_wrong_files
from lmscale.shards.manifest import Manifest, ShardEntry, load_manifest
from lmscale.shards.reader import MappedShard, open_shard
from lmscale.stream.packed import count_pieces_windows, load_counts, load_pieces
from lmscale.stream.packing import count_concat
from lmscale.stream.shard_windows import ShardWindows

Packing = Literal["concat", "best_fit"]
MAX_SHOWN = 10  # problems of one kind in a message


@dataclass(frozen=True, kw_only=True)
class Window:
    """One sample."""

    tokens: np.ndarray
    """uint16 or uint32 [T + 1], the manifest's pad_id from ``length`` on."""
    starts: np.ndarray
    """int32: positions at which a document begins; the first is 0."""
    length: int


class Dataset:
    """The windows of a folder of shards.

    Opens shards as they are read and keeps the last ``keep_open`` of them open. Picklable: a copy
    in another process opens its own.
    """

    def __init__(
        self,
        *,
        location: str,
        manifest: Manifest,
        counts: np.ndarray,
        sequence_length: int,
        packing: Packing,
        cache: NodeCache,
        verify_hashes: bool,
    ) -> None:
        self.location = location
        self.manifest = manifest
        self.set_counts(counts)
        self.sequence_length = sequence_length
        self.packing = packing
        self.keep_open = 2
        self._cache = cache
        self._verify_hashes = verify_hashes
        self._open: OrderedDict[int, tuple[ShardWindows, list[CachedFile]]] = OrderedDict()

    def set_counts(self, counts: np.ndarray) -> None:
        """Windows per shard, int64 [shards]."""
        self.counts = counts
        self._ends = np.cumsum(counts)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    @property
    def num_windows(self) -> int:
        return int(self.counts.sum())

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.manifest.dtype).newbyteorder("<")

    @property
    def is_remote(self) -> bool:
        return protocol_of(self.location) is not None

    def window(self, index: int) -> Window:
        """Window ``index`` in stored order: shard after shard as the manifest has them."""
        if not 0 <= index < self.num_windows:
            raise IndexError(
                f"window {index} of {self.location}, which has {self.num_windows} windows"
            )
        number = int(np.searchsorted(self._ends, index, side="right"))
        within = index - int(self._ends[number] - self.counts[number])
        shard = self.shard(number)
        tokens = np.full(self.sequence_length + 1, self.manifest.pad_id, dtype=self.dtype)
        length = shard.copy(within, tokens)
        begin, end = shard.first_start[within], shard.last_start[within]
        later = shard.starts[begin:end] - shard.starts_from[within]
        return Window(
            tokens=tokens,
            starts=np.concatenate([[0], later]).astype(np.int32),
            length=length,
        )

    def shard(self, number: int) -> ShardWindows:
        """Shard ``number``, opened (fetched, checked) if it is not open. Raises ``DataError``."""
        opened = self._open.get(number)
        if opened is None:
            while len(self._open) >= self.keep_open:
                self._close(*self._open.popitem(last=False)[1])
            opened = self._open[number] = self._open_shard(number)
        else:
            self._open.move_to_end(number)
        return opened[0]

    def fetch(self, number: int) -> None:
        """Bring shard ``number`` to this node, or hash a local one, without opening it."""
        entry = self.manifest.shards[number]
        if self.is_remote:
            self._locate(entry)[1].close()
        elif self._verify_hashes:
            path = Path(join_location(self.location, entry.name))
            self._cache.verify_once(path, size=entry.bytes, sha256=entry.sha256)

    def close(self) -> None:
        while self._open:
            self._close(*self._open.popitem()[1])

    def _close(self, shard: ShardWindows, cached: list[CachedFile]) -> None:
        for file in cached:
            file.close()

    def _open_shard(self, number: int) -> tuple[ShardWindows, list[CachedFile]]:
        entry = self.manifest.shards[number]
        mapped, cached = self._map(entry)
        pieces = None
        if self.packing == "best_fit":
            pieces, file = load_pieces(
                self._cache, self.manifest, entry, mapped, self.sequence_length
            )
            cached.append(file)
        shard = ShardWindows(mapped, entry.blocks, self.sequence_length, pieces)
        if shard.num_windows != self.counts[number]:
            raise DataError(
                f"{join_location(self.location, entry.name)}: it has {shard.num_windows} windows, "
                f"but the manifest or the counts beside it say {self.counts[number]}. Run "
                f"`lmscale shards verify` on the folder."
            )
        return shard, cached

    def _map(self, entry: ShardEntry) -> tuple[MappedShard, list[CachedFile]]:
        if self.is_remote:
            path, file = self._locate(entry)
            return open_shard(path, entry, self.manifest.dtype), [file]
        path = Path(join_location(self.location, entry.name))
        # Opened first: a wrong size is found before the hash.
        shard = open_shard(path, entry, self.manifest.dtype)
        if self._verify_hashes:
            self._cache.verify_once(path, size=entry.bytes, sha256=entry.sha256)
        return shard, []

    def _locate(self, entry: ShardEntry) -> tuple[Path, CachedFile]:
        url = join_location(self.location, entry.name)
        file = self._cache.fetch(url, size=entry.bytes, sha256=entry.sha256)
        return file.path, file

    def pack(self, number: int) -> int:
        """Windows of shard ``number`` by best fit, found by packing it."""
        entry = self.manifest.shards[number]
        mapped, cached = self._map(entry)
        try:
            plan, file = load_pieces(
                self._cache, self.manifest, entry, mapped, self.sequence_length
            )
            cached.append(file)
            return count_pieces_windows(plan)
        finally:
            for file in cached:
                file.close()


def cache_folder(cache: ShardCacheConfig) -> Path:
    """Folder of this node's copies of shards; one per user, as users may not share it."""
    default = Path(tempfile.gettempdir()) / f"lmscale-shards-{os.getuid()}"
    return Path(cache.folder).expanduser() if cache.folder else default


def open_dataset(
    location: str | Path,
    *,
    sequence_length: int,
    packing: Packing,
    cache: ShardCacheConfig,
    verify_hashes: bool = True,
    check_files: bool = True,
    advance: Callable[[float], None] = lambda shards: None,
) -> Dataset:
    """The dataset in a folder or at a URL.

    ``check_files``: look whether all local shards are there and whole; of the ranks of a run, one
    has to. ``advance`` is called with 1 for each shard that must be packed first. Raises
    ``DataError`` with every missing or cut local shard; remote ones show when they are fetched.
    """
    location = str(location)
    node_cache = NodeCache(
        folder=cache_folder(cache), max_bytes=cache.max_bytes, retries=cache.retries
    )
    manifest = load_manifest(location, retries=cache.retries)
    problems = find_missing_shards(location, manifest) if check_files else []
    if problems:
        raise DataError(problems)
    concat = [count_concat(entry.tokens, sequence_length) for entry in manifest.shards]
    dataset = Dataset(
        location=location,
        manifest=manifest,
        counts=np.array(concat, dtype=np.int64),
        sequence_length=sequence_length,
        packing=packing,
        cache=node_cache,
        verify_hashes=verify_hashes,
    )
    if packing == "best_fit":
        dataset.set_counts(
            load_counts(
                manifest,
                sequence_length,
                location=location,
                cache=node_cache,
                count=dataset.pack,
                advance=advance,
            )
        )
    if dataset.num_windows == 0:
        raise DataError(
            f"{location}: the dataset is empty: its manifest lists {len(manifest.shards)} shards "
            f"and not one token to predict. Check the corpus it was built from (`lmscale shards "
            f"show {location}`)."
        )
    return dataset


def write_window_counts(
    location: str | Path,
    *,
    sequence_length: int,
    cache: ShardCacheConfig,
    advance: Callable[[float], None] = lambda shards: None,
) -> None:
    """Pack a dataset that was just built, and leave its window counts beside its manifest.

    Starts of runs then find the counts. Existing counts are left as they are. Raises ``DataError``.
    """
    open_dataset(
        location,
        sequence_length=sequence_length,
        packing="best_fit",
        cache=cache,
        verify_hashes=False,
        check_files=False,
        advance=advance,
    ).close()


def find_missing_shards(location: str, manifest: Manifest) -> list[str]:
    """Local shards that are not there or not of the manifest's size; one problem each."""
    if protocol_of(location) is not None:
        return []
    problems: list[str] = []
    for file in find_wrong_files(location, {entry.name: entry.bytes for entry in manifest.shards}):
        if file.size is None:
            problems.append(
                f"{file.path}: the shard is missing ({file.reason}); the manifest lists it. "
                f"Restore it, or run `lmscale shards build` again."
            )
        else:
            what = "cut" if file.size < file.wanted else "too long"
            problems.append(
                f"{file.path}: the shard is {what}: {file.size} bytes, the manifest says "
                f"{file.wanted}. Restore it, or delete it and run `lmscale shards build` again."
            )
    if len(problems) > MAX_SHOWN:
        more = len(problems) - MAX_SHOWN
        problems[MAX_SHOWN:] = [f"{location}: {more} more shards are missing or of a wrong size."]
    return problems
