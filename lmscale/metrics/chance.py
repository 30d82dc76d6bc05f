"""How sure a share, a majority or a mean is, of few observations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959963984540054  # of 95 %
_RESAMPLES = 2000


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927); (0, 1) of nothing."""
    if not count:
        return 0.0, 1.0
    share, spread = hits / count, _Z**2 / count
    middle = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return (0.0 if hits == 0 else low), (1.0 if hits == count else high)


def sign_test(hits: int, count: int) -> float:
    """The probability that fair coins fall at least as unevenly, to either side; 1 of none."""
    fewer = min(hits, count - hits)
    tail = sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count
    return min(1.0, 2 * tail)


def mean_interval(groups: Sequence[Sequence[float]], *, seed: int) -> tuple[float, float]:
    """The bootstrap's 95 % interval of the mean of all values (Efron 1979, percentiles): whole
    groups are drawn anew, as those of one group are alike.
    """
    sums = np.array([sum(group) for group in groups], dtype=np.float64)
    counts = np.array([len(group) for group in groups], dtype=np.float64)
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = generator.integers(len(groups), size=(_RESAMPLES, len(groups)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
