"""The windows of open shards: memory-mapped tokens, and where documents begin in each window."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lmscale.config.data import WindowShape
from lmscale.shards.members import OF_TOKENS, plan_members
from lmscale.shards.reader import MappedShard
from lmscale.stream.batches import MAX_POSITIONS, Rows, digest_rows
from lmscale.stream.packing import count_concat

_NONE = np.empty(0, dtype=np.int64)


class ShardWindows:
    """Random access to a shard's windows under one packing.

    ``pieces`` is the plan of ``plan_best_fit``, or None for ``concat``. Positions are in the
    shard's flat run of tokens, all blocks in order.
    """

    def __init__(
        self, shard: MappedShard, num_blocks: int, shape: WindowShape, pieces: np.ndarray | None
    ) -> None:
        self._blocks = [shard.tokens(block) for block in range(num_blocks)]
        self._block_starts = [0, *np.cumsum([len(block) for block in self._blocks]).tolist()]
        if pieces is None:  # of every window one
            num_tokens = self._block_starts[-1]
            begins = np.arange(count_concat(num_tokens, shape)) * shape.stride
            sizes = np.minimum(shape.tokens, num_tokens - begins)
            bounds = np.arange(len(begins) + 1)
            lengths = document_lengths(shard, num_blocks)
            self._starts = np.cumsum(lengths) - lengths
            first = np.searchsorted(self._starts, begins, side="right")
            last = np.searchsorted(self._starts, begins + shape.tokens, side="left")
            origins = begins
        else:
            begins, sizes, windows = pieces
            num_windows = int(windows[-1]) + 1 if len(windows) else 0
            bounds = np.searchsorted(windows, np.arange(num_windows + 1))
            before = np.cumsum(sizes) - sizes
            self._starts = before - before[bounds[windows]]
            first, last = bounds[:-1] + 1, bounds[1:]
            origins = np.zeros(num_windows, dtype=np.int64)
        self._of_pieces: dict[str, np.ndarray] = {}  # every piece is a document
        self._of_tokens: dict[str, tuple[int, list[np.ndarray]]] = {}
        for name, _, is_of_tokens, padding in plan_members(
            has_pairs=shape.has_pairs, labels=shape.labels, has_turns=shape.has_turns
        ):
            values = [shard.values(name, block) for block in range(num_blocks)]
            if is_of_tokens:
                self._of_tokens[name] = padding, values
            else:
                ends = np.cumsum(document_lengths(shard, num_blocks))
                documents = np.searchsorted(ends, begins, side="right")
                self._of_pieces[name] = np.concatenate(values)[documents]
        self.has_members = shape.is_whole
        # Of a memoryview, unlike an array, an element is a number of Python's, and sooner there.
        self._begins, self._sizes, self._bounds = begins.data, sizes.data, bounds.data
        self._first, self._last, self._origins = first.data, last.data, origins.data

    @property
    def num_windows(self) -> int:
        return len(self._origins)

    def starts(self, window: int) -> tuple[np.ndarray, int]:
        """Where, beyond the window's own 0, a document (or the rest of one that was cut) begins,
        and which of these numbers the window's 0 is.
        """
        return self._starts[self._first[window] : self._last[window]], self._origins[window]

    def members(self, window: int, row_tokens: int) -> dict[str, np.ndarray]:
        """Of each member that is read its values, [documents of the window] or [W]."""
        pieces = slice(self._bounds[window], self._bounds[window + 1])
        members = {name: values[pieces] for name, values in self._of_pieces.items()}
        for name, (padding, blocks) in self._of_tokens.items():
            members[name] = np.full(row_tokens, padding, dtype=blocks[0].dtype)
            self.copy(window, members[name], blocks)
        return members

    def copy(self, window: int, row: np.ndarray, blocks: Sequence[np.ndarray] = ()) -> int:
        """Write the window's tokens, or their values in ``blocks``, into ``row`` [W], and return
        how many there are.

        The rest of the row is left as it is.
        """
        blocks = blocks or self._blocks
        filled = 0
        for piece in range(self._bounds[window], self._bounds[window + 1]):
            begin = self._begins[piece]
            end = begin + self._sizes[piece]
            block = bisect_right(self._block_starts, begin) - 1
            while begin < end:
                offset = begin - self._block_starts[block]
                part = blocks[block][offset : offset + end - begin]
                row[filled : filled + len(part)] = part
                filled += len(part)
                begin += len(part)
                block += 1
        return filled


def read_rows(
    numbers: np.ndarray,
    windows: Iterable[tuple[int, ShardWindows, int]],
    *,
    row_tokens: int,
    dtype: np.dtype,
    pad_id: int,
) -> Rows:
    """Read a sample for each of ``numbers``. ``windows``: of each row, its shard and window."""
    count = len(numbers)
    tokens = np.full((count, row_tokens), pad_id, dtype=dtype)
    lengths = np.empty(count, dtype=np.int32)
    members: list[Mapping[str, np.ndarray]] = [{}] * count
    # Each row's document starts beyond its first, and what turns them into flat positions.
    row_starts = [_NONE] * count
    shift = np.empty(count, dtype=np.int64)
    for row, shard, window in windows:
        lengths[row] = shard.copy(window, tokens[row])
        if shard.has_members:
            members[row] = shard.members(window, row_tokens)
        row_starts[row], origin = shard.starts(window)
        shift[row] = row * row_tokens - origin
    more = np.array([len(starts) for starts in row_starts], dtype=np.int64)
    # A rank's share of a step may be of 2^31 positions and more; a micro-batch of it may not.
    position = np.int32 if count * row_tokens <= MAX_POSITIONS else np.int64
    starts = np.empty(count + more.sum(), dtype=position)
    is_head = np.zeros(len(starts), dtype=bool)
    is_head[np.cumsum(more + 1) - more - 1] = True
    starts[is_head] = np.arange(count) * row_tokens
    starts[~is_head] = np.concatenate([_NONE, *row_starts]) + np.repeat(shift, more)
    return Rows(
        numbers=numbers,
        tokens=tokens,
        lengths=lengths,
        starts=starts,
        digests=digest_rows(numbers, tokens, members if any(members) else ()),
        members={
            name: (np.stack if name in OF_TOKENS else np.concatenate)(
                [each[name] for each in members]
            )
            for name in (members[0] if members else {})
        },
    )


def document_lengths(shard: MappedShard, num_blocks: int) -> np.ndarray:
    """Tokens of each document of the shard, int64 [documents]."""
    lengths = [np.diff(shard.docs(block)) for block in range(num_blocks)]
    return np.concatenate([_NONE, *lengths])
