# Shape letters: R rows (samples), K words of a sample.
"""Random numbers by a sample's number, for preparations: alike on any rank, worker, batch or start.

Sample n owns the words [nK, (n + 1)K) of one Philox stream, K rounded up to the 4 words that a
counter gives. So any sample's words are found without drawing another's, however large n is.
"""

from __future__ import annotations

import numpy as np

WORDS_OF_A_COUNTER = 4  # Philox-4x64-10


def draw_words(key: np.ndarray, numbers: np.ndarray, words: int) -> np.ndarray:
    """uint64 [R, K], the ``words`` of the samples with these ``numbers``, int64 [R].

    ``key``: of ``philox_key``. Samples in a row are one call.
    """
    counters = -(-words // WORDS_OF_A_COUNTER)
    drawn = np.empty((len(numbers), counters * WORDS_OF_A_COUNTER), dtype=np.uint64)
    edges = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        if begin == end:
            continue  # of no rows
        start = int(numbers[begin]) * counters
        counter = np.array([start & (2**64 - 1), start >> 64, 0, 0], dtype=np.uint64)
        generator = np.random.Philox(key=key, counter=counter)
        drawn[begin:end] = generator.random_raw(drawn[begin:end].size).reshape(end - begin, -1)
    return drawn[:, :words]
