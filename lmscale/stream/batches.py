"""What a step is made of: raw rows of tokens, and the arrays by name that an objective scores.

    Rows ──cut──▶ Rows of a micro-batch ──Preparation──▶ Batch(arrays by name) ──▶ device

A preparation says by ``Field``s what its arrays are: so much memory do the loader's workers share
with their rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from lmscale.errors import ConfigError
from lmscale.ranks.limbs import DIGEST_BITS

TOKENS = "tokens"
MAX_POSITIONS = 2**31 - 1  # of int32


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some samples as they are read, R windows of W tokens."""

    numbers: np.ndarray
    """int64 [R]: each sample's global number; of a held-out set, the window's index."""
    tokens: np.ndarray
    """uint16 or uint32 [R, W]; the pad id from each row's length on"""
    lengths: np.ndarray
    """int32 [R]: tokens that are not padding"""
    starts: np.ndarray
    """int32 [N]: flat positions into R × W where a document begins, each row's 0 too; int64
    where there are more positions than int32 has, before they are split into micro-batches"""
    digests: np.ndarray
    """uint64 [R]: xxh64 of each sample"""
    members: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the objective reads beside the tokens, by the names of ``plan_members``: [N], of the
    document at each start, or [R, W], of each token"""
    partners: Rows | None = None
    """Where they were asked for, the R samples that these are prepared with, row by row"""


class Field(NamedTuple):
    """One array of every micro-batch, by name.

    A letter of ``shape`` stands for a number that the run settles: ``B`` rows of the micro-batch,
    ``T`` the sequence length, ``W`` the raw tokens of a window. ``N``, only as the first letter of
    a ragged field, is another one in every micro-batch, at most B × the larger of W and T.
    """

    name: str
    dtype: str  # numpy's name; ``TOKENS``: that of the shards' tokens, uint16 or uint32
    shape: tuple[str | int, ...]


class Prepared(NamedTuple):
    """What a preparation makes of the rows of one micro-batch."""

    arrays: Mapping[str, np.ndarray]
    targets: int  # positions that count: over all ranks, what the step's loss is divided by
    more_targets: tuple[int, ...] = ()  # of the further terms of the loss, if the objective has any


class Preparation(Protocol):
    """Rows → the arrays of an objective: the half of it that runs in the loader's workers.

    Pure: a function of its settings, the samples' numbers and their tokens, so that the same sample
    is prepared alike on any number of ranks and after any restart. Picklable; its module loads
    no torch. One that prepares a sample with its partner says so by ``reads_partners = True``.
    """

    @property
    def fields(self) -> Sequence[Field]:
        """Every array that ``prepare`` returns."""
        ...

    def prepare(self, rows: Rows) -> Prepared: ...

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The token ids that have to be predicted, [targets]: for the bytes that they stand for."""
        ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B windows for one forward pass."""

    arrays: Mapping[str, np.ndarray]  # as the preparation's fields say
    first_n: int  # global number of the first row's sample; the others follow
    digest: int  # the sum of ``digest_rows`` of the raw rows, whatever was made of them
    targets: int  # target positions that count
    more_targets: tuple[int, ...] = ()  # of each further term of the loss


def sum_terms(targets: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Targets by the loss's terms, over several batches."""
    return tuple(map(sum, zip(*targets, strict=True)))


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """A rank's share of a step."""

    first_n: int  # global number of the step's first sample, over all ranks
    samples: int  # samples in the step, over all ranks
    micro_batches: tuple[Batch, ...]
    wait_seconds: float = 0.0  # how long the rank waited for it

    @property
    def targets(self) -> int:
        """This rank's target positions."""
        return sum(batch.targets for batch in self.micro_batches)

    @property
    def more_targets(self) -> tuple[int, ...]:
        """This rank's targets of each further term of the loss."""
        return sum_terms(batch.more_targets for batch in self.micro_batches)

    @property
    def digest(self) -> int:
        """This rank's part of the step's digest; the ranks' parts are added modulo 2^63."""
        return add_digests(batch.digest for batch in self.micro_batches)


class Layout:
    """The fields of a preparation with the letters of their shapes filled in."""

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        rows: int,
        sequence_length: int,
        row_tokens: int,
        token_dtype: np.dtype,
    ) -> None:
        self._most = rows * max(row_tokens, sequence_length)
        if self._most > MAX_POSITIONS:
            raise ConfigError(
                f"batch.micro_windows: {rows:,} windows of stream.sequence_length = "
                f"{sequence_length:,} are more positions than a forward pass can count "
                f"({MAX_POSITIONS:,}). Lower it."
            )
        self.rows = rows
        self._letters = {"B": rows, "T": sequence_length, "W": row_tokens}
        self._fields = {
            name: (token_dtype if dtype == TOKENS else np.dtype(dtype), shape)
            for name, dtype, shape in fields
        }

    @property
    def max_bytes(self) -> int:
        """Bytes of a micro-batch's arrays with the most values in the ragged ones."""
        return sum(
            dtype.itemsize * math.prod(self._fill_in(shape, self._most))
            for dtype, shape in self._fields.values()
        )

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises ``ValueError`` for arrays that are not what the fields say."""
        if arrays.keys() != self._fields.keys():
            raise ValueError(f"prepared {sorted(arrays)}, but declared {sorted(self._fields)}")
        for name, array in arrays.items():
            dtype, shape = self._fields[name]
            ragged = min(len(array) if array.ndim else 0, self._most)
            if (array.dtype, array.shape) != (dtype, self._fill_in(shape, ragged)):
                raise ValueError(
                    f"{name} is {array.dtype} {array.shape}, but was declared as {dtype} "
                    f"{shape} with {self._letters}"
                )

    def _fill_in(self, shape: tuple[str | int, ...], ragged: int) -> tuple[int, ...]:
        letters = {**self._letters, "N": ragged}
        return tuple(letters[part] if isinstance(part, str) else part for part in shape)


def reads_partners(preparation: Preparation) -> bool:
    """Whether the rows that it prepares have to come with their partners."""
    return getattr(preparation, "reads_partners", False)


def prepare_batches(rows: Rows, preparation: Preparation, layout: Layout) -> tuple[Batch, ...]:
    """Cut rows into micro-batches and prepare each."""
    batches = []
    for part in split_rows(rows, layout.rows):
        prepared = preparation.prepare(part)
        layout.check(prepared.arrays)
        # In C order, so that a worker hands them over in the shared memory.
        arrays = {
            name: np.require(made, requirements="C") for name, made in prepared.arrays.items()
        }
        batches.append(
            Batch(
                arrays=arrays,
                first_n=int(part.numbers[0]),
                digest=add_digests(part.digests.tolist()),
                targets=prepared.targets,
                more_targets=prepared.more_targets,
            )
        )
    return tuple(batches)


def split_rows(rows: Rows, micro_windows: int) -> Iterator[Rows]:
    """Cut rows into groups of ``micro_windows``; arrays are views where they can be."""
    row_tokens = rows.tokens.shape[1]
    others = None if rows.partners is None else split_rows(rows.partners, micro_windows)
    for begin in range(0, len(rows.tokens), micro_windows):
        part = slice(begin, begin + micro_windows)
        edges = (begin * row_tokens, part.stop * row_tokens)
        first, last = np.searchsorted(rows.starts, edges)
        yield Rows(
            numbers=rows.numbers[part],
            tokens=rows.tokens[part],
            lengths=rows.lengths[part],
            starts=(rows.starts[first:last] - edges[0]).astype(np.int32),
            digests=rows.digests[part],
            members={
                name: values[part] if values.ndim == 2 else values[first:last]
                for name, values in rows.members.items()
            },
            partners=None if others is None else next(others),
        )


def take_rows(rows: Rows, places: np.ndarray) -> Rows:
    """The rows at these places, int64 [P], in that order and without partners."""
    row_tokens = rows.tokens.shape[1]
    edges = np.searchsorted(rows.starts, np.arange(len(rows.tokens) + 1) * row_tokens)
    first, counts = edges[places], edges[places + 1] - edges[places]
    before = counts.cumsum() - counts  # starts of the rows taken so far
    starts = np.arange(counts.sum()) + np.repeat(first - before, counts)
    moved = np.repeat((np.arange(len(places)) - places) * row_tokens, counts)
    return Rows(
        numbers=rows.numbers[places],
        tokens=rows.tokens[places],
        lengths=rows.lengths[places],
        starts=(rows.starts[starts] + moved).astype(rows.starts.dtype),
        digests=rows.digests[places],
        members={
            name: values[places] if values.ndim == 2 else values[starts]
            for name, values in rows.members.items()
        },
    )


def digest_rows(
    numbers: np.ndarray, tokens: np.ndarray, members: Sequence[Mapping[str, np.ndarray]] = ()
) -> np.ndarray:
    """xxh64 of each row's sample, uint64 [R].

    Of the bytes: the sample's global number as 8 little-endian bytes, then its window's tokens,
    padding included, as little-endian uint16 or uint32, then the row's ``members``, which the
    objective reads beside them, by the alphabet.
    """
    digests = np.empty(len(tokens), dtype=np.uint64)
    heads = numbers.astype("<u8").tobytes()
    for row in range(len(tokens)):
        state = xxhash.xxh64(heads[8 * row : 8 * row + 8])
        state.update(tokens[row])
        for _, values in sorted(members[row].items()) if members else ():
            state.update(values.tobytes())
        digests[row] = state.intdigest()
    return digests


def add_digests(digests: Iterable[int]) -> int:
    """The sum modulo 2^63: independent of the order and of who adds."""
    return sum(int(digest) for digest in digests) % 2**DIGEST_BITS
