"""Which source the n-th sample comes from, and which of its samples it is: pure arithmetic.

A segment is a stretch of the run under one mixture. It is cut into blocks that all hold the same
whole number (quota) of samples of every source, permuted by key. So the count of a source after n
samples is closed-form, never goes down, and a change of the mixture only appends a segment. Where a
run jumps over a window of samples, a segment as well begins, which goes on with the same blocks
behind the window: the order is what it was, less the window, and the numbers stay without a gap.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import takewhile
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from lmscale.errors import ConfigError
from lmscale.files.strangers import EXACT, Count, Text
from lmscale.stream.order import permute

KEPT_BLOCKS = 8
logger = logging.getLogger(__name__)


Share = Annotated[Count, Field(ge=1)]


def _in_order(quotas: dict[str, int]) -> dict[str, int]:
    return dict(sorted(quotas.items()))


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One mixture, in force from global sample number ``start`` on, or the same behind a jump."""

    __pydantic_config__ = EXACT
    start: Count
    quotas: Annotated[dict[str, Share], Field(min_length=1), AfterValidator(_in_order)]
    """Samples of each source in a block; all above 0, in the order of the names."""
    base: dict[str, Count]
    """Samples of each source used before its first block, sources of earlier segments included."""
    fingerprints: dict[str, Text] = field(default_factory=dict)
    """The dataset each source name stands for, likewise."""
    key: Count | None = None
    """The number by which its blocks are drawn; None: its own ``start``."""
    offset: Count = 0
    """Where in its blocks sample ``start`` is: behind a jump not at their beginning."""

    @property
    def block_key(self) -> int:
        return self.start if self.key is None else self.key

    @property
    def block(self) -> int:
        return sum(self.quotas.values())


def plan_quotas(weights: Mapping[str, float], block: int) -> dict[str, int]:
    """Deal ``block`` samples to the sources by largest remainder, in exact arithmetic.

    Sources of weight 0 are left out; ties go to the name that sorts first, so the order in the YAML
    does not matter. Raises ``ConfigError`` for a source whose weight does not earn one sample.
    """
    shares = {name: Fraction(weight) for name, weight in sorted(weights.items()) if weight > 0}
    if not shares:
        raise ConfigError(
            "stream.sources: no source has a weight above 0; give at least one a share."
        )
    total = sum(shares.values())
    exact = {name: share * block / total for name, share in shares.items()}
    quotas = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (quotas[name] - exact[name], name))
    for name in by_remainder[: block - sum(quotas.values())]:
        quotas[name] += 1
    starved = [name for name, quota in quotas.items() if quota == 0]
    if starved:
        raise ConfigError(
            [
                f"stream.sources.{name}.weight is {float(shares[name] / total):.2g} of all "
                f"weights, less than one sample in a block of stream.mixture_block = {block}; "
                f"raise the weight, raise mixture_block, or set the weight to 0."
                for name in starved
            ]
        )
    return quotas


@dataclass(frozen=True, kw_only=True)
class Jump:
    """A window of samples to leave out."""

    start: int  # Its first global number, on the branch of the run that ``segments`` are of
    samples: int
    segments: tuple[Segment, ...] = ()  # Empty: those that the run goes on with otherwise


class Mixture:
    """(source, index in the source) of any global sample number."""

    def __init__(self, segments: Sequence[Segment], *, seed: int) -> None:
        self.segments = tuple(segments)
        self.names = tuple(sorted({name for segment in segments for name in segment.quotas}))
        self._seed = seed
        self._starts = np.array([segment.start for segment in segments], dtype=np.int64)
        self._blocks: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def locate(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and index in the source, int64 [count] each, of samples first, first + 1, …

        Sources are indices into ``names``.
        """
        sources = np.empty(count, dtype=np.int64)
        indices = np.empty(count, dtype=np.int64)
        filled = 0
        while filled < count:
            number, block, offset = self._position(first + filled)
            segment = self.segments[number]
            take = min(count - filled, segment.block - offset)
            if number + 1 < len(self.segments):
                take = min(take, self.segments[number + 1].start - first - filled)
            block_sources, block_indices = self._block(number, block)
            sources[filled : filled + take] = block_sources[offset : offset + take]
            indices[filled : filled + take] = block_indices[offset : offset + take]
            filled += take
        return sources, indices

    def counts_at(self, n: int) -> dict[str, int]:
        """How far every source has come when sample ``n`` is next: its samples used and jumped."""
        number, block, offset = self._position(n)
        segment = self.segments[number]
        counts = dict(segment.base)
        used = np.bincount(self._block(number, block)[0][:offset], minlength=len(self.names))
        for name, quota in segment.quotas.items():
            in_block = int(used[self.names.index(name)])
            counts[name] = counts.get(name, 0) + block * quota + in_block
        return counts

    def jumped_at(self, n: int) -> int:
        """How many samples were left out on purpose by the time that sample ``n`` is next."""
        return sum(self.counts_at(n).values()) - n

    def _position(self, n: int) -> tuple[int, int, int]:
        number = int(np.searchsorted(self._starts, n, side="right")) - 1
        segment = self.segments[number]
        return (number, *divmod(n - segment.start + segment.offset, segment.block))

    def _block(self, number: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        key = (number, block)
        if key not in self._blocks:
            segment = self.segments[number]
            names = [self.names.index(name) for name in segment.quotas]
            quotas = np.array(list(segment.quotas.values()))
            # By the segment's start, not its number: what was read before stays as it was.
            drawn = permute(segment.block, self._seed, "mixture", segment.block_key, block)
            sources = np.repeat(names, quotas)[drawn]
            indices = np.empty(segment.block, dtype=np.int64)
            for name, quota in segment.quotas.items():
                begin = segment.base.get(name, 0) + block * quota
                mine = sources == self.names.index(name)
                indices[mine] = np.arange(begin, begin + quota)
            self._blocks[key] = (sources, indices)
            if len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return self._blocks[key]


def append_segment(
    segments: Sequence[Segment],
    *,
    n: int,
    seed: int,
    quotas: Mapping[str, int],
    fingerprints: Mapping[str, str],
) -> tuple[Segment, ...]:
    """The segments of a run that goes on from sample ``n`` under ``quotas``.

    Unchanged where the segments end with ``quotas``: ahead of ``n`` lie jumps then, and mixtures of
    a branch that is taken up again. Every source carries on at the sample after its last one, also
    a source that comes back after a while, so no sample is lost or repeated. A new mixture drops
    the jumps ahead of ``n``, with a warning, because the samples come in another order.
    """
    quotas = dict(sorted(quotas.items()))
    if segments and dict(segments[-1].quotas) == quotas:
        return tuple(segments)
    past = tuple(segment for segment in segments if segment.start <= n)
    if not past:
        base = dict.fromkeys(quotas, 0)
        return (Segment(start=n, quotas=quotas, base=base, fingerprints=dict(fingerprints)),)
    last = past[-1]
    if dict(last.quotas) == quotas:  # as far ahead as it is still this mixture
        ahead = segments[len(past) :]
        past += tuple(takewhile(lambda segment: dict(segment.quotas) == quotas, ahead))
    _warn_of_dropped_jumps(segments, len(past), n=n, seed=seed)
    if dict(last.quotas) == quotas:
        return past
    base = dict.fromkeys(quotas, 0) | Mixture(past, seed=seed).counts_at(n)
    all_fingerprints = dict(last.fingerprints) | dict(fingerprints)
    segment = Segment(
        start=n,
        quotas=quotas,
        base=dict(sorted(base.items())),
        fingerprints=dict(sorted(all_fingerprints.items())),
    )
    if last.start == n:  # the last mixture was never used
        past = past[:-1]
    return (*past, segment)


def _warn_of_dropped_jumps(segments: Sequence[Segment], first: int, *, n: int, seed: int) -> None:
    mixture = Mixture(segments, seed=seed)
    for start in (segment.start for segment in segments[first:]):
        if mixture.jumped_at(start) > mixture.jumped_at(start - 1):
            logger.warning(
                "the mixture changes at sample %d, so the samples that the run was to jump at "
                "sample %d come in another order, and will be used",
                n,
                start,
            )


def jump_window(segments: Sequence[Segment], *, start: int, samples: int) -> tuple[Segment, ...]:
    """The segments of a run that leaves out the ``samples`` from global number ``start`` on.

    What was sample ``start + samples`` is sample ``start`` now, and so on with all behind it.
    """
    if samples == 0:
        return tuple(segments)
    end = start + samples
    resumed = next(segment for segment in reversed(segments) if segment.start <= end)
    return (
        *(segment for segment in segments if segment.start < start),
        replace(
            resumed,
            start=start,
            key=resumed.block_key,
            offset=resumed.offset + end - resumed.start,
        ),
        *(
            replace(segment, start=segment.start - samples, key=segment.block_key)
            for segment in segments
            if segment.start > end
        ),
    )
