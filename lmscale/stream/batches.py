"""What the loader hands over: compact arrays, and the digest that proves what they hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash

from lmscale.ranks.limbs import DIGEST_BITS


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """B windows for one forward pass."""

    tokens: np.ndarray
    """uint16 or uint32 [B, T + 1]; pad_id from each row's length on."""
    starts: np.ndarray
    """int32 [N]: flat positions into B × (T + 1) at which a document begins, each row's 0 too."""
    lengths: np.ndarray
    """int32 [B]: tokens that are not padding."""
    first_n: int
    """Global number of the first row's sample; the others follow."""
    digest: int
    """``digest_rows`` of the rows."""
    targets: int
    """Target positions that count."""


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One rank's share of one step."""

    first_n: int
    """Global number of the step's first sample, over all ranks."""
    samples: int
    """Samples in the step, over all ranks."""
    micro_batches: tuple[MicroBatch, ...]
    wait_seconds: float = 0.0
    """How long the rank waited for it."""

    @property
    def targets(self) -> int:
        """This rank's target positions."""
        return sum(batch.targets for batch in self.micro_batches)

    @property
    def digest(self) -> int:
        """This rank's part of the step's digest; the ranks' parts are added modulo 2^63."""
        return add_digests(batch.digest for batch in self.micro_batches)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Consecutive samples as they are read: arrays over R windows."""

    first_n: int
    tokens: np.ndarray
    """uint16 or uint32 [R, T + 1]"""
    lengths: np.ndarray
    """int32 [R]"""
    starts: np.ndarray
    """int32 [N]: flat positions into R × (T + 1)"""
    start_ends: np.ndarray
    """int64 [R]: how many of ``starts`` lie in the rows up to and with this one"""
    digests: np.ndarray
    """uint64 [R]: xxh64 of each sample"""


def digest_rows(first_n: int, tokens: np.ndarray) -> np.ndarray:
    """xxh64 of each row's sample, uint64 [R].

    Of the bytes: the sample's global number as 8 little-endian bytes, then the T + 1 tokens,
    padding included, as little-endian uint16 or uint32.
    """
    numbers = np.arange(first_n, first_n + len(tokens), dtype="<u8").tobytes()
    digests = np.empty(len(tokens), dtype=np.uint64)
    for row in range(len(tokens)):
        state = xxhash.xxh64(numbers[8 * row : 8 * row + 8])
        state.update(tokens[row])
        digests[row] = state.intdigest()
    return digests


def add_digests(digests) -> int:
    """The sum modulo 2^63: independent of the order and of who adds."""
    return sum(int(digest) for digest in digests) % 2**DIGEST_BITS


def count_targets(lengths: np.ndarray, num_starts: int, *, mask_documents: bool) -> int:
    """Target positions of some rows: all but the first token of a document (unmasked: of a row)."""
    return int(lengths.sum()) - (num_starts if mask_documents else len(lengths))


def split_rows(rows: Rows, micro_windows: int, *, mask_documents: bool) -> tuple[MicroBatch, ...]:
    """Cut rows into micro-batches of ``micro_windows``; arrays are views."""
    batches = []
    row_tokens = rows.tokens.shape[1]
    for begin in range(0, len(rows.tokens), micro_windows):
        end = min(begin + micro_windows, len(rows.tokens))
        first_start = int(rows.start_ends[begin - 1]) if begin else 0
        starts = rows.starts[first_start : rows.start_ends[end - 1]] - np.int32(begin * row_tokens)
        lengths = rows.lengths[begin:end]
        batches.append(
            MicroBatch(
                tokens=rows.tokens[begin:end],
                starts=starts,
                lengths=lengths,
                first_n=rows.first_n + begin,
                digest=add_digests(rows.digests[begin:end].tolist()),
                targets=count_targets(lengths, len(starts), mask_documents=mask_documents),
            )
        )
    return tuple(batches)
