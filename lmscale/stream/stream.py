"""The stream: the sample at any global number, as a function of (seed, manifests, segments, n)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter

from lmscale.config.data import StreamConfig, WindowShape
from lmscale.errors import CheckpointError, ConfigError, DataError, RefusedError
from lmscale.files.strangers import EXACT, Count, ImplausibleError, Tree, checked
from lmscale.runs.continuation import STREAM_KEYS
from lmscale.stream.batches import Rows, take_rows
from lmscale.stream.dataset import Dataset, open_datasets
from lmscale.stream.mixture import (
    Jump,
    Mixture,
    Segment,
    append_segment,
    jump_window,
    plan_quotas,
)
from lmscale.stream.mixture_changes import shares_of
from lmscale.stream.order import SourceOrder
from lmscale.stream.shard_windows import ShardWindows, read_rows

FETCH_THREADS = 4  # downloads (or hashes) at once per process
VERSION = 2  # of the state
FINGERPRINT_DIGITS = 16  # 64 bits tell datasets apart, and keep the state small


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """Enough to go on at sample ``n`` without replaying one: it follows from this and the shards.

    Under 1 kB for a few sources; it grows with them and with each change of the mixture or jump.
    """

    __pydantic_config__ = EXACT
    version: Count = VERSION
    seed: Count
    n: Count
    geometry: Tree
    segments: Annotated[tuple[Segment, ...], Field(min_length=1)]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(tree: Any) -> StreamState:
        """Raises ``CheckpointError`` for what is not a stream's state, or of another version."""
        try:
            state = checked(_STATE, tree)
        except ImplausibleError as error:
            raise CheckpointError(
                f"The stream's state cannot be read ({error}). The file that holds it is damaged; "
                "resume from another checkpoint."
            ) from None
        if state.version != VERSION:
            kind = RefusedError if state.version > VERSION else CheckpointError
            raise kind(
                f"The stream's state has version {state.version}; this lmscale reads {VERSION}. "
                "Resume with the lmscale that wrote it."
            )
        return state


_STATE = TypeAdapter(StreamState)


def geometry_of(config: StreamConfig, shape: WindowShape) -> dict[str, Any]:
    """What the order rests on beside the seed and the segments."""
    settings = {key: getattr(config, key) for key in STREAM_KEYS}
    return settings | {"stride": shape.stride, "overlap": shape.overlap}


class Stream:
    """Reads samples by their global number. Picklable; close it, or use it in a ``with`` block."""

    def __init__(
        self,
        config: StreamConfig,
        *,
        seed: int,
        datasets: Mapping[str, Dataset],
        segments: tuple[Segment, ...],
    ) -> None:
        self.config = config
        self.seed = seed
        self.datasets = dict(datasets)
        self.mixture = Mixture(segments, seed=seed)
        self.orders = {
            name: SourceOrder(
                dataset.counts, seed=seed, source=name, window_shards=config.window_shards
            )
            for name, dataset in self.datasets.items()
        }
        for dataset in self.datasets.values():
            dataset.keep_open = config.window_shards + 1
        first = next(iter(self.datasets.values()))
        self.shape = first.shape
        self.dtype = first.dtype
        self.pad_id = first.manifest.pad_id
        self.bos_id = first.manifest.bos_id  # None: documents begin with their text
        self._fetcher: ThreadPoolExecutor | None = None
        self._fetched: dict[str, list[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fetcher": None, "_fetched": {}}

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.mixture.segments

    @property
    def in_one_process(self) -> bool:
        """Whether only this process can read it: ``memory://`` is nowhere else."""
        return any(dataset.location.startswith("memory://") for dataset in self.datasets.values())

    def state_at(self, n: int) -> StreamState:
        """The state to save once the first ``n`` samples are used; jumps to come are in it."""
        geometry = geometry_of(self.config, self.shape) | {"bos_id": self.bos_id}
        return StreamState(seed=self.seed, n=n, geometry=geometry, segments=self.segments)

    def shares_at(self, n: int) -> dict[str, float]:
        """The share of each source in the mixture that sample ``n`` is drawn by; together 1."""
        in_force = next(segment for segment in reversed(self.segments) if segment.start <= n)
        return dict.fromkeys(self.mixture.names, 0.0) | shares_of(in_force)

    def epochs_at(self, n: int) -> dict[str, float]:
        """How often each source has been read after ``n`` samples."""
        counts = self.mixture.counts_at(n)
        return {name: counts.get(name, 0) / order.total for name, order in self.orders.items()}

    def read_rows(self, first_n: int, count: int, *, partners: bool = False) -> Rows:
        """Samples first_n … first_n + count - 1. Raises ``DataError`` for a damaged shard.

        ``partners``: with those of other numbers by one bit, n ^ 1, of each sample n.
        """
        if first_n < 0 or count < 0:
            raise ConfigError(f"{count} samples from {first_n} on: they are numbered from 0 on.")
        if partners:
            begin = first_n - first_n % 2
            ahead = first_n + count - begin
            both = self.read_rows(begin, ahead + ahead % 2)
            own = np.arange(first_n - begin, ahead)
            return replace(take_rows(both, own), partners=take_rows(both, own ^ 1))
        return read_rows(
            np.arange(first_n, first_n + count),
            self._find_windows(first_n, count),
            row_tokens=self.shape.tokens,
            dtype=self.dtype,
            pad_id=self.pad_id,
        )

    def _find_windows(self, first_n: int, count: int) -> Iterator[tuple[int, ShardWindows, int]]:
        """Of every row its open shard and the window in it, source by source."""
        sources, indices = self.mixture.locate(first_n, count)
        for source, rows in _split_runs(sources, indices):
            name, first = self.mixture.names[source], int(indices[rows[0]])
            if name not in self.datasets:
                raise DataError(
                    f"stream.sources.{name}: it has left the mixture since; what the run read from "
                    "it can be read by `lmscale runs audit` only."
                )
            self._fetch_ahead(name, first)
            dataset = self.datasets[name]
            shards, windows = self.orders[name].locate(first, len(rows))
            for row, shard, window in zip(
                rows.tolist(), shards.tolist(), windows.tolist(), strict=True
            ):
                yield row, dataset.shard(shard), window

    def close(self) -> None:
        if self._fetcher is not None:
            self._fetcher.shutdown(wait=False, cancel_futures=True)
            self._fetcher = None
        for dataset in self.datasets.values():
            dataset.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fetch_ahead(self, name: str, index: int) -> None:
        """Fetch and hash the shards of this group and of the next one in the background."""
        dataset = self.datasets[name]
        ahead = self.orders[name].shards_ahead(index)
        before = self._fetched.get(name, [])
        if ahead == before:
            return
        self._fetched[name] = ahead
        if self._fetcher is None:
            self._fetcher = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch-shards")
        for number in ahead:
            if number not in before:
                # What fails here fails again, with its message, when the shard is read.
                self._fetcher.submit(dataset.fetch, number)


def open_stream(
    config: StreamConfig,
    *,
    seed: int,
    shape: WindowShape | None = None,
    state: StreamState | None = None,
    jumps: Sequence[Jump] = (),
    tokenizer_fingerprint: str | None = None,
    check_files: bool = True,
    advance: Callable[[float], None] = lambda shards: None,
) -> Stream:
    """The stream of a run that begins (``state`` None) or goes on at ``state.n``.

    ``shape``: of its windows; by default those of next-token prediction. ``jumps`` are windows to
    leave out that the state does not know yet; one without segments is numbered as the samples are
    once those before it are left out. Where the mixture differs from the one at the end of the
    segments, a segment begins at ``state.n``. Raises ``ConfigError`` for settings a run cannot
    change and ``DataError`` for damaged, changed or foreign data: all sources' problems at once.
    ``check_files``: look whether all local shards are there and whole; of the ranks of a run, one
    has to. ``advance`` is called with 1 per shard that has to be packed first (best_fit, once per
    dataset).
    """
    if not config.sources:
        raise ConfigError(
            "stream.sources is empty: name at least one folder of shards to train on."
        )
    shape = shape or WindowShape(stride=config.sequence_length, overlap=1)
    if state is not None:
        check_unchanged(state, config, shape, seed=seed)
    weights = {name: source.weight for name, source in config.sources.items()}
    quotas = plan_quotas(weights, config.mixture_block)
    locations = {name: config.sources[name].shards for name in quotas}
    datasets = open_datasets(
        config, locations, shape=shape, check_files=check_files, advance=advance
    )
    recorded = state.segments if state else ()
    undone = (segment for jump in jumps for segment in jump.segments)
    problems = _find_foreign(datasets, tokenizer_fingerprint)
    problems += _find_other_beginnings(datasets, state)
    problems += find_changed_data(datasets, (*recorded, *undone))
    if problems:
        raise DataError(problems)
    n = state.n if state else 0
    fingerprints = {name: _short_fingerprint(dataset) for name, dataset in datasets.items()}
    mixture = partial(append_segment, n=n, seed=seed, quotas=quotas, fingerprints=fingerprints)
    # First the jumps, each in the order of samples in which it was decided; then the mixture that
    # is. The state's own order may lack mixtures that began between it and the jump.
    segments = recorded or mixture(())
    for jump in jumps:
        assert jump.start >= n, f"a jump at sample {jump.start}, before the next sample, {n}"
        segments = jump_window(jump.segments or segments, start=jump.start, samples=jump.samples)
    return Stream(config, seed=seed, datasets=datasets, segments=mixture(segments))


def check_unchanged(
    state: StreamState, config: StreamConfig, shape: WindowShape, *, seed: int
) -> None:
    """Raise ``ConfigError`` with every setting that a run cannot change once it has begun."""
    length = state.geometry.get("sequence_length")
    # A state that says no shape is of a run that predicts the next token: there was nothing else.
    geometry = {"stride": length, "overlap": 1, **state.geometry}
    names = {key: f"stream.{key}" for key in STREAM_KEYS}
    if config.sequence_length == length:  # else they differ for that reason
        names |= {key: f"the {key} of the objective's windows" for key in ("stride", "overlap")}
    before = {name: geometry.get(key) for key, name in names.items()}
    now = {name: geometry_of(config, shape)[key] for key, name in names.items()}
    before["run.seed"], now["run.seed"] = state.seed, seed
    problems = [
        f"{key} = {now[key]!r}, but the run began with {before.get(key)!r}; samples already used "
        f"would come again or never. Set it back, or start a new run."
        for key in now
        if before.get(key) != now[key]
    ]
    if problems:
        raise ConfigError(problems)


def find_changed_data(datasets: Mapping[str, Dataset], segments: Iterable[Segment]) -> list[str]:
    """Sources whose shards are not those that the run has read under this name."""
    read_before: dict[str, str] = {}
    for segment in segments:
        read_before |= segment.fingerprints
    return [
        f"stream.sources.{name}: the dataset in {dataset.location} (fingerprint "
        f"{_short_fingerprint(dataset)}) is not the one that the run has read so far "
        f"({read_before[name]}). Restore it, or add the new shards as a source under another name."
        for name, dataset in datasets.items()
        if read_before.get(name, _short_fingerprint(dataset)) != _short_fingerprint(dataset)
    ]


def _find_foreign(datasets: Mapping[str, Dataset], tokenizer_fingerprint: str | None) -> list[str]:
    """Sources whose tokens are not of the expected tokenizer (by default the first source's)."""
    expected, whose = tokenizer_fingerprint, "tokenizer.folder holds"
    if expected is None:
        name, dataset = next(iter(datasets.items()))
        expected, whose = dataset.manifest.tokenizer_fingerprint, f"stream.sources.{name} has"
    return [
        f"stream.sources.{name}: its shards were made with another tokenizer "
        f"({dataset.manifest.tokenizer_fingerprint[:16]}) than {whose} ({expected[:16]}). Build "
        f"the shards again, or give the folder of the tokenizer they were made with."
        for name, dataset in datasets.items()
        if dataset.manifest.tokenizer_fingerprint != expected
    ]


def _find_other_beginnings(datasets: Mapping[str, Dataset], state: StreamState | None) -> list[str]:
    """Sources whose documents begin otherwise (with or without bos) than those that the run has
    read, or than those of the first source.
    """
    whose, bos_id = next((f"of {name}", data.manifest.bos_id) for name, data in datasets.items())
    if state is not None:  # one that does not say is of a run before there was bos
        whose, bos_id = "that the run has read", state.geometry.get("bos_id")
    return [
        f"stream.sources.{name}: its documents begin with bos = {dataset.manifest.bos_id}, those "
        f"{whose} with {bos_id}. Build its shards again, with shards.bos: "
        f"{str(bos_id is not None).lower()}."
        for name, dataset in datasets.items()
        if dataset.manifest.bos_id != bos_id
    ]


def _short_fingerprint(dataset: Dataset) -> str:
    return dataset.manifest.fingerprint[:FINGERPRINT_DIGITS]


def _split_runs(sources: np.ndarray, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Source and rows of every stretch in which a source is read without a gap: jumps leave one."""
    for source in np.unique(sources):
        rows = np.flatnonzero(sources == source)
        cuts = np.flatnonzero(np.diff(indices[rows]) != 1) + 1
        yield from ((int(source), part) for part in np.split(rows, cuts))
