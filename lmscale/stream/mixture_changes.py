"""Where a run's mixture of sources has changed, and between which shares: for people to see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lmscale.stream.mixture import Segment


@dataclass(frozen=True, kw_only=True)
class MixtureChange:
    """From sample ``from_n`` on the sources have other shares; a share is of 1, 0 where none."""

    from_n: int
    before: Mapping[str, float]
    now: Mapping[str, float]


def shares_of(segment: Segment) -> dict[str, float]:
    """The share of every source in the samples under this mixture; together 1."""
    return {name: quota / segment.block for name, quota in segment.quotas.items()}


def find_changes(segments: Sequence[Segment]) -> Iterator[MixtureChange]:
    """Oldest first. A segment that only goes on behind a jump is none."""
    for earlier, later in pairwise(segments):
        before, now = shares_of(earlier), shares_of(later)
        if before != now:
            none = dict.fromkeys(sorted({*before, *now}), 0.0)
            yield MixtureChange(from_n=later.start, before=none | before, now=none | now)


def describe_change(change: MixtureChange, step: int | None = None) -> str:
    """``from sample 72 (step 7) on: a 75 % → 25 %``; sources that keep their share are left out.

    ``step``: the one that sample is of, where it is known.
    """
    of_step = "" if step is None else f" (step {step:,})"
    shares = ", ".join(
        f"{name} {_percent(change.before[name])} → {_percent(share)}"
        for name, share in change.now.items()
        if share != change.before[name]
    )
    return f"from sample {change.from_n:,}{of_step} on: {shares}"


def describe_shares(segment: Segment) -> str:
    """``a 75 %, b 25 %``."""
    return ", ".join(f"{name} {_percent(share)}" for name, share in shares_of(segment).items())


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
