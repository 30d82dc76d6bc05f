"""The windows of one open shard: memory-mapped tokens, and where documents begin in each window."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from lmscale.shards.reader import MappedShard
from lmscale.stream.packing import count_concat


class ShardWindows:
    """Random access to a shard's windows under one packing.

    ``pieces`` is the plan of ``plan_best_fit``, or None for ``concat``. Positions are in the
    shard's flat run of tokens, all blocks in order.
    """

    def __init__(
        self, shard: MappedShard, num_blocks: int, sequence_length: int, pieces: np.ndarray | None
    ) -> None:
        self._shard = shard
        self._sequence_length = sequence_length
        self._blocks = [shard.tokens(block) for block in range(num_blocks)]
        self._block_starts = [0]
        for block in self._blocks:
            self._block_starts.append(self._block_starts[-1] + len(block))
        self.num_tokens = self._block_starts[-1]
        if pieces is None:
            self.num_windows = count_concat(self.num_tokens, sequence_length)
            self._plan_concat(document_starts(shard, num_blocks, self._block_starts))
        else:
            self.num_windows = int(pieces[2, -1]) + 1 if pieces.shape[1] else 0
            self._plan_pieces(pieces)

    def _plan_concat(self, starts: np.ndarray) -> None:
        begins = np.arange(self.num_windows, dtype=np.int64) * self._sequence_length
        self._pieces = None
        self.starts = starts
        self.first_start = np.searchsorted(starts, begins, side="right")
        self.last_start = np.searchsorted(starts, begins + self._sequence_length + 1, side="left")
        self.starts_from = begins

    def _plan_pieces(self, pieces: np.ndarray) -> None:
        bounds = np.searchsorted(pieces[2], np.arange(self.num_windows + 1))
        before = np.cumsum(pieces[1]) - pieces[1]
        self._pieces = (pieces[0], pieces[1], bounds)
        self.starts = before - before[bounds[pieces[2]]]
        self.first_start = bounds[:-1] + 1
        self.last_start = bounds[1:]
        self.starts_from = np.zeros(self.num_windows, dtype=np.int64)

    # starts[first_start[w] : last_start[w]] - starts_from[w]: positions in window w, beyond 0, at
    # which a document (or the rest of one that was cut) begins. 0 always begins one.

    def copy(self, window: int, row: np.ndarray) -> int:
        """Write the window's tokens into ``row`` [T + 1] and return how many there are.

        The rest of the row is left as it is.
        """
        if self._pieces is None:
            begin = window * self._sequence_length
            end = min(begin + self._sequence_length + 1, self.num_tokens)
            self._copy_range(begin, end, row)
            return end - begin
        piece_starts, piece_tokens, bounds = self._pieces
        filled = 0
        for piece in range(bounds[window], bounds[window + 1]):
            begin, tokens = int(piece_starts[piece]), int(piece_tokens[piece])
            self._copy_range(begin, begin + tokens, row[filled:])
            filled += tokens
        return filled

    def _copy_range(self, begin: int, end: int, row: np.ndarray) -> None:
        block = bisect_right(self._block_starts, begin) - 1
        offset = begin - self._block_starts[block]
        if end <= self._block_starts[block + 1]:  # nearly always
            row[: end - begin] = self._blocks[block][offset : offset + end - begin]
            return
        filled = 0
        while filled < end - begin:
            part = self._blocks[block][offset : offset + end - begin - filled]
            row[filled : filled + len(part)] = part
            filled += len(part)
            block, offset = block + 1, 0


def document_starts(shard: MappedShard, num_blocks: int, block_starts: list[int]) -> np.ndarray:
    """Where each document of the shard begins, int64 [documents], ascending."""
    starts = [shard.docs(block)[:-1] + block_starts[block] for block in range(num_blocks)]
    return np.concatenate([np.empty(0, dtype=np.int64), *starts])


def document_lengths(shard: MappedShard, num_blocks: int) -> np.ndarray:
    """Tokens of each document of the shard, int64 [documents]."""
    lengths = [np.diff(shard.docs(block)) for block in range(num_blocks)]
    return np.concatenate([np.empty(0, dtype=np.int64), *lengths])
