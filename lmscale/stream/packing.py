"""How a shard's documents become windows: pure arithmetic on document lengths.

By ``WindowShape``: where the next token is predicted, neighbouring windows share one token, the
last target of one being the first input of the next; else none, and every token lies in one window.
"""

from __future__ import annotations

import numpy as np

from lmscale.config.data import WindowShape


def count_concat(tokens: int, shape: WindowShape) -> int:
    """Windows of a shard cut by ``concat``, the last one padded."""
    return max(0, -(-(tokens - shape.overlap) // shape.stride))


def plan_best_fit(
    lengths: np.ndarray, shape: WindowShape, kept: np.ndarray | None = None
) -> np.ndarray:
    """Pack documents of ``lengths`` tokens whole where they fit; int64 [3, pieces].

    Rows: the piece's first token within the shard, its tokens, its window. Windows ascend, and
    so do the pieces within a window. A document longer than a window is first cut into full
    windows by their stride, so that each of its targets exists exactly once; the rest is a piece
    like a short document. The pieces go best-fit-decreasing into windows.

    ``kept``: how many tokens of each document are packed, from its first one on; by default all.
    """
    capacity, stride, overlap = shape.tokens, shape.stride, shape.overlap
    lengths = np.asarray(lengths, dtype=np.int64)
    lengths_start = np.cumsum(lengths) - lengths
    if kept is not None:
        lengths = kept
    is_long = lengths > capacity
    full = np.where(is_long, (lengths - overlap) // stride, 0)
    num_full = int(full.sum())
    ordinal = np.arange(num_full) - np.repeat(np.cumsum(full) - full, full)
    full_starts = np.repeat(lengths_start, full) + ordinal * stride

    # A rest of no more than the overlap holds no target: those tokens were the last full window's.
    rest = lengths - full * stride
    is_piece = (rest > 0) & ~(is_long & (rest <= overlap))
    starts, sizes = (lengths_start + full * stride)[is_piece], rest[is_piece]
    order = np.argsort(-sizes, kind="stable")
    starts, sizes = starts[order], sizes[order]
    bins = _best_fit(sizes.tolist(), capacity)
    by_bin = np.argsort(bins, kind="stable")
    return np.stack(
        [
            np.concatenate([full_starts, starts[by_bin]]),
            np.concatenate([np.full(num_full, capacity), sizes[by_bin]]),
            np.concatenate([np.arange(num_full), num_full + bins[by_bin]]),
        ]
    ).astype(np.int64)


def find_plan_problem(pieces: np.ndarray, num_tokens: int, shape: WindowShape) -> str | None:
    """What of a plan cannot be of a shard of so many tokens, or None: a hash says nothing of it."""
    begins, sizes, windows = pieces
    if not len(windows):
        return None
    is_inside = 0 <= begins.min() and 1 <= sizes.min() and sizes.max() <= num_tokens
    if not is_inside or (begins > num_tokens - sizes).any():
        return f"a piece lies outside of the shard's {num_tokens:,} tokens"
    steps = np.diff(windows, prepend=-1)
    if steps[0] != 1 or steps.min() < 0 or steps.max() > 1:
        return "its windows do not ascend one by one from 0"
    if np.bincount(windows, weights=sizes).max() > shape.tokens:
        return f"a window has more than {shape.tokens:,} tokens"
    return None


def _best_fit(sizes: list[int], capacity: int) -> np.ndarray:
    """The bin of each of ``sizes`` (descending): the fullest one it fits in, else a new one.

    The set of occupied free spaces is one integer, bit s for a bin with s free: the smallest space
    that fits is the lowest bit at or above the size, found without a search.
    """
    occupied = 0
    with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    bins = np.empty(len(sizes), dtype=np.int64)
    num_bins = 0
    for number, size in enumerate(sizes):
        fitting = occupied >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            chosen = with_space[space].pop()
            if not with_space[space]:
                occupied ^= 1 << space
        else:
            space, chosen = capacity, num_bins
            num_bins += 1
        left = space - size
        if left:
            with_space[left].append(chosen)
            occupied |= 1 << left
        bins[number] = chosen
    return bins
