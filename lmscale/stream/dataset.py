"""One dataset, local or remote, as windows of tokens in stored order.

What best fit has found is kept on disk, each with its hash: window counts of the dataset, and the
plan of each shard.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.config.data import OnOverlong, ShardCacheConfig, StreamConfig, WindowShape
from lmscale.config.labels import find_not_carried
from lmscale.errors import DataError, LmscaleError, TransientError
from lmscale.files import fault_points
from lmscale.files.arrays import map_columns, to_npy
from lmscale.files.atomic import write_bytes
from lmscale.files.cache import NodeCache, check_hash
from lmscale.files.locations import join_location, protocol_of
from lmscale.files.reading import read_plain, reading, seal
from lmscale.files.remote import MissingFileError, read_bytes
from lmscale.files.shard_files import describe_wrong_files
from lmscale.shards.contents import check_shard
from lmscale.shards.manifest import Manifest, ShardEntry, load_manifest
from lmscale.shards.reader import MappedShard, open_shard
from lmscale.stream.batches import Rows
from lmscale.stream.packing import count_concat, find_plan_problem
from lmscale.stream.shard_plans import parse_counts, plan_shard
from lmscale.stream.shard_windows import ShardWindows, document_lengths, read_rows
from lmscale.stream.whole_documents import (
    Counted,
    LongDocumentsError,
    choose_overlong,
    count_windows,
    describe_empty,
)

VERSION = 2  # of what is kept of best fit
DIGEST_BYTES = 32  # behind a plan
MISSING = "the shard is listed in the manifest and missing."
RESTORE = "Restore it, or run `lmscale shards build` again."


class Dataset:
    """The windows of a folder of shards.

    Opens shards as they are read and keeps the last ``keep_open`` of them open. Picklable: a copy
    in another process opens its own.
    """

    def __init__(
        self,
        location: str,
        manifest: Manifest,
        config: StreamConfig,
        cache: NodeCache,
        *,
        shape: WindowShape,
    ) -> None:
        self.location = location
        self.manifest = manifest
        self.config = config
        self.shape = shape
        self.counts = np.array(
            [count_concat(entry.tokens, shape) for entry in manifest.shards],
            dtype=np.int64,
        )
        """Windows per shard, int64 [shards]."""
        self.num_overlong = 0
        """Whole documents longer than a window, which are left out or cut."""
        self.keep_open = 2
        self._cache = cache
        self._open: OrderedDict[int, tuple[ShardWindows, ExitStack]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    @property
    def num_windows(self) -> int:
        return int(self.counts.sum())

    @property
    def _shape_key(self) -> str:
        """Of what is kept by shape; for next-token windows as before there were others."""
        stride, overlap = self.shape.stride, self.shape.overlap
        key = f"{stride}" if overlap == 1 else f"{stride}-{overlap}"
        if not self.shape.is_whole:
            return key
        return f"{key}-whole" if self._on_overlong == "refuse" else f"{key}-{self._on_overlong}"

    @property
    def _on_overlong(self) -> OnOverlong:
        return choose_overlong(self.config, self.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.manifest.dtype).newbyteorder("<")

    @property
    def is_remote(self) -> bool:
        return protocol_of(self.location) is not None

    def read(self, indices: Sequence[int] | np.ndarray, *, partners: bool = False) -> Rows:
        """Windows by their index in stored order: shard after shard as the manifest has them.

        ``partners``: with the windows half a set away, as neighbours are often of one document. Of
        an odd number the last has none, which is one without tokens.
        """
        numbers, ends = np.array(indices, dtype=np.int64), np.cumsum(self.counts)
        if partners:
            half = self.num_windows // 2
            others = np.where(numbers < half, numbers + half, numbers - half)
            alone = numbers == 2 * half
            others[alone] = numbers[alone]
            read = self.read(others)
            read.lengths[alone] = 0
            return replace(self.read(numbers), partners=read)
        shards = np.searchsorted(ends, numbers, side="right")
        within = numbers - (ends - self.counts)[shards]
        return read_rows(
            numbers,
            (
                (row, self.shard(int(shard)), int(window))
                for row, (shard, window) in enumerate(zip(shards, within, strict=True))
            ),
            row_tokens=self.shape.tokens,
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

    @contextmanager
    def mapped(self, number: int) -> Iterator[MappedShard]:
        """Shard ``number`` as it lies on the disk: fetched and checked, and not kept open."""
        entry = self.manifest.shards[number]
        with ExitStack() as files:
            yield self._map(self._bring(entry, files), entry)

    def fetch(self, number: int) -> None:
        """Bring shard ``number`` to this node, and look at all of it, without keeping it open."""
        with ExitStack() as files:
            self._bring(self.manifest.shards[number], files)

    def pack(self, number: int) -> Counted:
        """What shard ``number`` holds, found by packing it."""
        shard, files = self._open_shard(number)
        may_be_longer = self.shape.is_whole and self._on_overlong != "refuse"
        with files:  # so that no cache lets go of the shard before it has been looked at
            if not may_be_longer:
                return Counted(windows=shard.num_windows)
            with self.mapped(number) as mapped:
                lengths = document_lengths(mapped, self.manifest.shards[number].blocks)
        overlong = int((lengths > self.shape.tokens).sum())
        return Counted(windows=shard.num_windows, overlong=overlong)

    def load_counts(self, advance: Callable[[float], None]) -> None:
        """Find ``counts`` and ``num_overlong`` by best fit.

        From ``windows-best_fit-….json`` beside the manifest or in the cache. If neither is there
        and sound, every shard is packed, and the result is left in both places. An opened shard has
        to have its count. Raises ``DataError`` where the file may be there but cannot be read.
        """
        fingerprint, shape = self.manifest.fingerprint, self._shape_key
        num_shards = len(self.manifest.shards)
        name = f"windows-best_fit-{shape}.json"
        head = {"version": VERSION, "manifest": fingerprint, "sequence_length": self.shape.stride}
        if self.shape.overlap != 1:
            head["overlap"] = self.shape.overlap
        if self.shape.is_whole:
            head["is_whole"] = True
            if self._on_overlong != "refuse":
                head["on_overlong"] = self._on_overlong
        parse = partial(parse_counts, head=head, shards=self.manifest.shards)

        beside = join_location(self.location, name)
        with suppress(MissingFileError):  # nobody has packed this dataset at this length yet
            content = read_bytes(beside, retries=self.config.cache.retries)
            counts = parse(content)
            if counts is not None:
                self.counts, self.num_overlong = counts
                return
        with self._cache.make(
            f"best_fit counts\0{VERSION}\0{fingerprint}\0{shape}",
            name=name,
            size=32 * num_shards + 512,
            write=lambda path: _write(path, seal(head | self._count(num_shards, advance))),
            is_sound=lambda path: parse(read_plain(path)) is not None,
        ) as file:
            content = read_plain(file.path)
        if not self.is_remote:
            with suppress(OSError):  # a read-only dataset: the copy in the cache serves this node
                write_bytes(beside, content)
        counts = parse(content)
        if counts is None:
            raise DataError(f"{file.path}: the window counts in it are damaged; delete this file.")
        self.counts, self.num_overlong = counts

    def _count(self, num_shards: int, advance: Callable[[float], None]) -> dict[str, Any]:
        counted = count_windows(self.pack, num_shards, advance)
        overlong = sum(each.overlong for each in counted)
        counts = {"counts": [each.windows for each in counted]}
        return counts | ({"overlong": overlong} if overlong else {})

    def find_wrong_shards(self) -> list[str]:
        """Local shards that are not there or not of the manifest's size; one problem each."""
        if self.is_remote:
            return []
        sizes = {entry.name: entry.bytes for entry in self.manifest.shards}
        return describe_wrong_files(self.location, sizes)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1][1].close()

    def _open_shard(self, number: int) -> tuple[ShardWindows, ExitStack]:
        """The shard, and the cached files that it is read from."""
        entry = self.manifest.shards[number]
        with ExitStack() as files:
            with reading(entry.name, RESTORE, missing=MISSING):
                fault_points.hit("read.shard")
            mapped = self._map(self._bring(entry, files), entry)
            pieces = None
            if self.config.packing == "best_fit":
                pieces = self._load_pieces(entry, mapped, files)
            return ShardWindows(mapped, entry.blocks, self.shape, pieces), files.pop_all()

    def _map(self, path: Path, entry: ShardEntry) -> MappedShard:
        return open_shard(path, entry, self.manifest.dtype, self.manifest.members)

    def _bring(self, entry: ShardEntry, files: ExitStack) -> Path:
        """Where the shard lies on this node, once all of it has been looked at."""
        place = join_location(self.location, entry.name)
        if self.is_remote:
            cached = self._cache.fetch(place, size=entry.bytes, sha256=entry.sha256)
            path = files.enter_context(cached).path
        else:
            path = Path(place)
        if not self.config.verify_hashes:
            return path

        def check() -> None:
            self._map(path, entry)  # first, so that a cut file is told as one
            if not self.is_remote:  # else the cache has done so
                check_hash(path, entry.sha256)
            check_shard(path, entry, self.manifest)

        with reading(path, RESTORE, missing=MISSING):
            self._cache.once(path, f"{entry.sha256} {self.manifest.fingerprint}", check)
        return path

    def _load_pieces(self, entry: ShardEntry, shard: MappedShard, files: ExitStack) -> np.ndarray:
        """The shard's plan of ``plan_best_fit``, memory-mapped; packed once per node.

        Packing takes about 0.2 s per 100,000 documents.
        """

        def pack() -> np.ndarray:
            where = join_location(self.location, entry.name)
            return plan_shard(shard, entry.blocks, self.shape, self._on_overlong, where=where)

        def write(path: Path) -> None:
            content = to_npy(pack())
            _write(path, content + hashlib.sha256(content).digest())

        def is_sound(path: Path) -> bool:
            content = read_plain(path)
            plan, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
            return hashlib.sha256(plan).digest() == digest

        if self._cache.look:
            return pack()
        key = f"best_fit plan\0{VERSION}\0{entry.sha256}\0{self._shape_key}"
        # A piece is a document, or a full window that was cut from one.
        most_pieces = entry.documents + entry.tokens // self.shape.stride
        size = 24 * most_pieces + 128 + DIGEST_BYTES
        file = self._cache.make(key, name="pieces.npy", size=size, write=write, is_sound=is_sound)
        path = files.enter_context(file).path
        with reading(path, "Delete this file."):
            pieces = map_columns(path, np.dtype("<i8"), 3, tail=DIGEST_BYTES)
            if problem := find_plan_problem(pieces, entry.tokens, self.shape):
                raise ValueError(problem)
            return pieces


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def cache_folder(cache: ShardCacheConfig) -> Path:
    """Folder of this node's copies of shards; one per user, as users may not share it."""
    default = Path(tempfile.gettempdir()) / f"lmscale-shards-{os.getuid()}"
    return Path(cache.folder).expanduser() if cache.folder else default


def open_datasets(
    config: StreamConfig,
    locations: Mapping[str, str],
    *,
    shape: WindowShape | None = None,
    section: str = "stream.sources",
    check: Callable[[Dataset], None] = lambda dataset: None,
    check_files: bool = True,
    look: str = "",
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
                location,
                config,
                shape=shape,
                check_files=check_files,
                look=look,
                advance=advance,
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
    shape: WindowShape | None = None,
    check_files: bool = True,
    look: str = "",
    advance: Callable[[float], None] = lambda shards: None,
) -> Dataset:
    """The dataset in a folder or at a URL, in windows of ``shape``; by default in those of
    next-token prediction.

    ``check_files``: look whether all local shards are there and whole; of the ranks of a run, one
    has to. ``look``: as ``NodeCache`` has it, for an audit. ``advance`` is called with 1 for each
    shard that must be packed first. Raises ``DataError`` with every missing or cut local shard;
    remote ones show when they are fetched.
    """
    location, settings = str(location), config.cache
    cache = NodeCache(
        folder=cache_folder(settings),
        max_bytes=settings.max_bytes,
        retries=settings.retries,
        look=look,
    )
    manifest = load_manifest(location, retries=settings.retries)
    shape = shape or WindowShape(stride=config.sequence_length, overlap=1)
    dataset = Dataset(location, manifest, config, cache, shape=shape)
    problems = find_not_carried(manifest, shape, where=location)
    problems += dataset.find_wrong_shards() if check_files else []
    if problems:
        raise DataError(problems)
    if config.packing == "best_fit":
        dataset.load_counts(advance)
    if dataset.num_windows == 0:
        kind = LongDocumentsError if dataset.num_overlong else DataError
        raise kind(f"{location}: {describe_empty(manifest, shape, dataset.num_overlong)}")
    return dataset
