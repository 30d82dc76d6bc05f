"""One dataset, local or remote, as windows of T + 1 tokens in stored order.

What best fit has found is kept on disk: window counts of the dataset, and the plan of each shard.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.config.data import ShardCacheConfig, StreamConfig
from lmscale.errors import DataError, LmscaleError, TransientError
from lmscale.files.atomic import write_bytes
from lmscale.files.cache import CachedFile, NodeCache
from lmscale.files.locations import join_location, protocol_of
from lmscale.files.remote import MissingFileError, read_bytes
from lmscale.files.shard_files import find_wrong_files
from lmscale.shards.manifest import Manifest, ShardEntry, load_manifest
from lmscale.shards.reader import MappedShard, open_shard
from lmscale.stream.batches import Rows
from lmscale.stream.packing import count_concat, plan_best_fit
from lmscale.stream.shard_windows import ShardWindows, document_lengths, read_rows

VERSION = 1  # of what is kept of best fit
MAX_SHOWN = 10  # problems of one kind in a message


class Dataset:
    """The windows of a folder of shards.

    Opens shards as they are read and keeps the last ``keep_open`` of them open. Picklable: a copy
    in another process opens its own.
    """

    def __init__(
        self, location: str, manifest: Manifest, config: StreamConfig, cache: NodeCache
    ) -> None:
        self.location = location
        self.manifest = manifest
        self.config = config
        self.counts = np.array(
            [count_concat(entry.tokens, config.sequence_length) for entry in manifest.shards],
            dtype=np.int64,
        )
        """Windows per shard, int64 [shards]."""
        self.keep_open = 2
        self._cache = cache
        self._open: OrderedDict[int, tuple[ShardWindows, ExitStack]] = OrderedDict()

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

    def read(self, indices: Sequence[int]) -> Rows:
        """Windows by their index in stored order: shard after shard as the manifest has them."""
        numbers, ends = np.array(indices, dtype=np.int64), np.cumsum(self.counts)
        shards = np.searchsorted(ends, numbers, side="right")
        within = numbers - (ends - self.counts)[shards]
        return read_rows(
            numbers,
            (
                (row, self.shard(int(shard)), int(window))
                for row, (shard, window) in enumerate(zip(shards, within, strict=True))
            ),
            row_tokens=self.config.sequence_length + 1,
            dtype=self.dtype,
            pad_id=self.manifest.pad_id,
        )

    def shard(self, number: int) -> ShardWindows:
        """Shard ``number``, opened (fetched, checked) if it is not open. Raises ``DataError``."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number][0]
        while len(self._open) >= self.keep_open:
            self._open.popitem(last=False)[1][1].close()
        shard, files = self._open_shard(number)
        if shard.num_windows != self.counts[number]:
            location = join_location(self.location, self.manifest.shards[number].name)
            raise DataError(
                f"{location}: it has {shard.num_windows} windows, but the manifest or the counts "
                f"beside it say {self.counts[number]}. Run `lmscale shards verify` on the folder."
            )
        self._open[number] = shard, files
        return shard

    def fetch(self, number: int) -> None:
        """Bring shard ``number`` to this node, or hash a local one, without opening it."""
        entry = self.manifest.shards[number]
        if self.is_remote:
            self._download(entry).close()
        else:
            self._verify(entry)

    def pack(self, number: int) -> int:
        """Windows of shard ``number``, found by packing it."""
        shard, files = self._open_shard(number)
        files.close()
        return shard.num_windows

    def load_counts(self, advance: Callable[[float], None]) -> np.ndarray:
        """Windows per shard by best fit, int64 [shards].

        From ``windows-best_fit-T.json`` beside the manifest or in the cache. If neither is there,
        every shard is packed, and the result is left in both places. Raises ``DataError`` where the
        file may be there but cannot be read.
        """
        length, fingerprint = self.config.sequence_length, self.manifest.fingerprint
        name = f"windows-best_fit-{length}.json"
        numbers = range(len(self.manifest.shards))
        head = {"version": VERSION, "manifest": fingerprint, "sequence_length": length}
        beside = join_location(self.location, name)
        with suppress(MissingFileError):  # nobody has packed this dataset at this length yet
            content = read_bytes(beside, retries=self.config.cache.retries)
            counts = _parse_counts(content, head, len(numbers))
            if counts is not None:
                return counts

        def count_all(path: Path) -> None:
            counted = []
            for number in numbers:
                counted.append(self.pack(number))
                advance(1)
            path.write_text(json.dumps(head | {"counts": counted}) + "\n")

        key = f"best_fit counts\0{VERSION}\0{fingerprint}\0{length}"
        size = 32 * len(numbers) + 256
        with self._cache.make(key, name=name, size=size, write=count_all) as file:
            content = file.path.read_bytes()
        if not self.is_remote:
            with suppress(OSError):  # a read-only dataset: the copy in the cache serves this node
                write_bytes(beside, content)
        counts = _parse_counts(content, head, len(numbers))
        if counts is None:
            raise DataError(f"{file.path}: the window counts in it are damaged; delete this file.")
        return counts

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1][1].close()

    def _open_shard(self, number: int) -> tuple[ShardWindows, ExitStack]:
        """The shard, and the cached files that it is read from."""
        entry, length = self.manifest.shards[number], self.config.sequence_length
        with ExitStack() as files:
            mapped = self._map(entry, files)
            pieces = None
            if self.config.packing == "best_fit":
                pieces, file = load_pieces(self._cache, entry, mapped, length)
                files.enter_context(file)
            return ShardWindows(mapped, entry.blocks, length, pieces), files.pop_all()

    def _map(self, entry: ShardEntry, files: ExitStack) -> MappedShard:
        if self.is_remote:
            file = files.enter_context(self._download(entry))
            return open_shard(file.path, entry, self.manifest.dtype)
        # Opened first: a wrong size is found before the hash.
        shard = open_shard(join_location(self.location, entry.name), entry, self.manifest.dtype)
        self._verify(entry)
        return shard

    def _download(self, entry: ShardEntry) -> CachedFile:
        url = join_location(self.location, entry.name)
        return self._cache.fetch(url, size=entry.bytes, sha256=entry.sha256)

    def _verify(self, entry: ShardEntry) -> None:
        if self.config.verify_hashes:
            path = Path(join_location(self.location, entry.name))
            self._cache.verify_once(path, size=entry.bytes, sha256=entry.sha256)


def _parse_counts(content: bytes, head: dict[str, Any], num_shards: int) -> np.ndarray | None:
    """The counts, or None where they are of another dataset, length or version."""
    try:
        tree = json.loads(content)
        counts = np.array(tree["counts"], dtype=np.int64)
        is_ours = {key: tree[key] for key in head} == head
    except (ValueError, KeyError, TypeError):
        return None
    return counts if is_ours and counts.shape == (num_shards,) else None


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


def cache_folder(cache: ShardCacheConfig) -> Path:
    """Folder of this node's copies of shards; one per user, as users may not share it."""
    default = Path(tempfile.gettempdir()) / f"lmscale-shards-{os.getuid()}"
    return Path(cache.folder).expanduser() if cache.folder else default


def open_datasets(
    config: StreamConfig,
    locations: Mapping[str, str],
    *,
    section: str = "stream.sources",
    check: Callable[[Dataset], None] = lambda dataset: None,
    check_files: bool = True,
    advance: Callable[[float], None] = lambda shards: None,
) -> dict[str, Dataset]:
    """The datasets by name, as ``open_dataset`` opens them; ``check`` may refuse one of them.

    Raises all problems at once; ``section`` is where the configuration names the locations.
    """
    datasets: dict[str, Dataset] = {}
    errors: dict[str, LmscaleError] = {}
    for name, location in locations.items():
        try:
            datasets[name] = open_dataset(
                location, config, check_files=check_files, advance=advance
            )
            check(datasets[name])
        except LmscaleError as error:
            errors[name] = error
    if errors:
        may_pass = all(isinstance(error, TransientError) for error in errors.values())
        raise (TransientError if may_pass else DataError)(
            [
                f"{section}.{name}: {problem}"
                for name, error in errors.items()
                for problem in error.problems
            ]
        )
    return datasets


def open_dataset(
    location: str | Path,
    config: StreamConfig,
    *,
    check_files: bool = True,
    advance: Callable[[float], None] = lambda shards: None,
) -> Dataset:
    """The dataset in a folder or at a URL.

    ``check_files``: look whether all local shards are there and whole; of the ranks of a run, one
    has to. ``advance`` is called with 1 for each shard that must be packed first. Raises
    ``DataError`` with every missing or cut local shard; remote ones show when they are fetched.
    """
    location, settings = str(location), config.cache
    cache = NodeCache(
        folder=cache_folder(settings), max_bytes=settings.max_bytes, retries=settings.retries
    )
    manifest = load_manifest(location, retries=settings.retries)
    problems = _find_missing_shards(location, manifest) if check_files else []
    if problems:
        raise DataError(problems)
    dataset = Dataset(location, manifest, config, cache)
    if config.packing == "best_fit":
        dataset.counts = dataset.load_counts(advance)
    if dataset.num_windows == 0:
        raise DataError(
            f"{location}: the dataset is empty: its manifest lists {len(manifest.shards)} shards "
            f"and not one token to predict. Check the corpus it was built from (`lmscale shards "
            f"show {location}`)."
        )
    return dataset


def _find_missing_shards(location: str, manifest: Manifest) -> list[str]:
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
