"""Which ranks hold a run up: a judgement on their heartbeats. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmscale.config.training import WatchConfig
from lmscale.ranks.ranks import name_ranks
from lmscale.watch.heartbeat import END, START, Beat

SILENT_INTERVALS = 3.0
NOISE_SECONDS = 0.01  # a difference below this is no straggler, whatever the ratio


@dataclass(frozen=True, kw_only=True)
class Member:
    """A rank of this start: its number, host and process."""

    rank: int
    host: str
    pid: int
    is_first_on_node: bool


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A rank as the watcher saw it last; times are the watcher's own, so clocks need not agree."""

    member: Member
    beat: Beat | None  # None: it has not written yet
    changed_at: float  # when the beat was first seen, or the watcher began

    def silent_seconds(self, now: float) -> float:
        return now - self.changed_at

    def still_seconds(self, now: float, *, silence: float) -> float:
        """Seconds without progress, as the rank reported them; plus those since a last beat."""
        reported = 0.0 if self.beat is None else self.beat.still_seconds
        silent = self.silent_seconds(now)
        return reported + silent if silent >= silence else reported


@dataclass(frozen=True, kw_only=True)
class Hang:
    """All ranks stand still, and some ranks are the reason."""

    text: str
    ranks: tuple[int, ...]  # that hold the others up; all ranks where none is behind
    silent: tuple[int, ...]  # ranks whose processes do not even run
    phase: str
    step: int
    seconds: float  # in which not a single rank has moved
    is_over_limit: bool


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How a rank's own work of a step compares with the median rank's."""

    rank: int
    seconds: float
    median_seconds: float

    @property
    def ratio(self) -> float:
        return self.seconds / self.median_seconds if self.median_seconds > 0 else 1.0


def judge_heartbeats(
    sightings: Sequence[Sighting], watch: WatchConfig, *, now: float, interval: float
) -> Hang | None:
    """The ranks that hold the run up, if no rank has moved for long enough.

    To blame are the ranks whose heartbeats have stopped; if every heartbeat goes on, the ranks
    behind the others by (step, place in the step).
    """
    present = [s for s in sightings if s.beat is None or s.beat.phase != END]
    if not present:
        return None
    silence = silent_seconds(watch, interval)
    stills = {s.member.rank: s.still_seconds(now, silence=silence) for s in present}
    seconds = min(stills.values())
    is_starting = any(s.beat is None or s.beat.is_starting for s in present)
    report_seconds, limit_seconds = limits(watch, is_starting=is_starting, interval=interval)
    if seconds < report_seconds:
        return None
    silent = [s for s in present if s.silent_seconds(now) >= silence]
    behind = min(map(_position, present))
    culprits = silent or [s for s in present if _position(s) == behind]
    others = [s for s in present if s not in culprits]
    first = min(culprits, key=_position).beat
    longest = max(stills[s.member.rank] for s in culprits)
    return Hang(
        text=_describe(culprits, others, is_silent=bool(silent), seconds=longest),
        ranks=tuple(s.member.rank for s in culprits),
        silent=tuple(s.member.rank for s in silent),
        phase=START if first is None else first.phase,
        step=0 if first is None else first.step,
        seconds=seconds,
        is_over_limit=seconds >= limit_seconds,
    )


def limits(watch: WatchConfig, *, is_starting: bool, interval: float) -> tuple[float, float]:
    """After how many seconds a standstill is reported, and after how many it ends the run.

    A start may take long: loading, compiling, the first step. Both limits stretch alike then. A
    single late heartbeat is no standstill.
    """
    report = watch.report_seconds or math.inf
    limit = watch.limit_seconds or math.inf
    if is_starting and not watch.start_limit_seconds:
        return math.inf, math.inf
    if is_starting and watch.limit_seconds:
        report *= max(1.0, watch.start_limit_seconds / limit)
        limit = watch.start_limit_seconds
    return max(min(report, limit), SILENT_INTERVALS * interval), limit


def silent_seconds(watch: WatchConfig, interval: float) -> float:
    """Without a new heartbeat for so long, a process does not run."""
    return max(SILENT_INTERVALS * interval, watch.report_seconds / 2)


def judge_pace(own_seconds: Mapping[int, float]) -> list[Pace]:
    """Every rank's pace, the slowest first; nothing for a rank that is alone."""
    if len(own_seconds) < 2:
        return []
    median = statistics.median_low(own_seconds.values())  # a real rank's, also of two
    paces = [Pace(rank=r, seconds=s, median_seconds=median) for r, s in own_seconds.items()]
    return sorted(paces, key=lambda pace: (-pace.seconds, pace.rank))


def find_stragglers(paces: Sequence[Pace], named: set[int], ratio: float) -> set[int]:
    """The ranks far behind the median; one that was ``named`` before has to come half way back."""
    half_way = 1 + (ratio - 1) / 2
    return {
        pace.rank
        for pace in paces
        if pace.ratio >= (half_way if pace.rank in named else ratio)
        and pace.seconds - pace.median_seconds >= NOISE_SECONDS
    }


def _position(sighting: Sighting) -> tuple[int, int, int]:
    beat = sighting.beat
    return (-1, -1, -1) if beat is None else (beat.step, beat.place, beat.ticks)


def _describe(
    culprits: Sequence[Sighting], others: Sequence[Sighting], *, is_silent: bool, seconds: float
) -> str:
    """``rank 3 on n2 in data for 61 s, the others wait in agree of step 812``."""
    hosts = ", ".join(dict.fromkeys(s.member.host for s in culprits))
    who = f"{name_ranks([s.member.rank for s in culprits])} on {hosts}"
    if not others and len(culprits) > 1:
        who = f"all {len(culprits)} ranks"
    # The step is said once, unless not all are in the same one.
    steps = {s.beat.step for s in (*culprits, *others) if s.beat is not None}
    places = _places(culprits, with_step=not others or len(steps) > 1)
    text = f"{who} in {places} for {seconds:.0f} s"
    if is_silent:  # it may have come further since
        text = f"{who} silent for {seconds:.0f} s, last in {places}"
    return f"{text}, the others wait in {_places(others)}" if others else text


def _places(sightings: Sequence[Sighting], *, with_step: bool = True) -> str:
    """``agree of step 812``, or several of them with how many ranks are there."""
    counts = Counter(describe_place(s.beat, with_step=with_step) for s in sightings)
    if len(counts) == 1:
        return next(iter(counts))
    return " and ".join(f"{place} ({count})" for place, count in counts.most_common())


def describe_place(beat: Beat | None, *, with_step: bool = True) -> str:
    """``data of step 812``."""
    if beat is None or beat.phase == START:
        return START
    return f"{beat.phase} of step {beat.step}" if with_step else beat.phase
