"""Goodput: the part of a run's wall time, restarts included, that became training that counts.

And when the rest will be done. Pure: it judges the rows of ``attempts.jsonl``, which attempts.py
writes; every second of the wall time is put down to one cause.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from lmscale.files.jsonl import Row

PROGRESS_SECONDS = 15.0  # a kill loses at most this much detail; a month of rows is 25 MB
LEAP_SECONDS = 900.0  # a clock does not run so wrong: it was set, or the machine was suspended
STRETCH_SECONDS = 900.0  # long enough to hold a save or an evaluation, short enough to be of now
STEP_SECONDS = "speed/step_seconds"
PHASE = "phase/"
STEP_PHASES = ("forward", "backward", "step", "agree", "data")  # of a step, as heartbeats name them
PROFILED_STEPS = "speed/profiled_steps"  # of a line: under a profiler, their time tells nothing
FINISHED = "finished"
EARLY = "stopped early"  # begins the reason of a run that ended well before ``train.steps``
FIRST_SECONDS = 1.0  # the first rows come sooner: a run that is killed all the time gets on as well


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Where a run's time went, in seconds, each second once. The time between a good end and more
    steps that were asked for later is not the run's.
    """

    productive_seconds: float = 0.0  # in steps whose result was kept
    redone_seconds: float = 0.0  # done again by a later attempt, or lost behind a kill's last row
    undone_seconds: float = 0.0  # in steps skipped or undone by a rewind, and in going back
    stalls_seconds: float = 0.0  # waiting for data
    saves_seconds: float = 0.0  # in which a save held the steps up
    evaluation_seconds: float = 0.0
    start_seconds: float = 0.0  # of a process until its first step, without what follows
    load_seconds: float = 0.0  # of the start, reading a checkpoint
    down_seconds: float = 0.0  # between attempts, and in one that ended before its first step
    other_seconds: float = 0.0  # what is left, such as writing figures
    attempts: int = 0

    @property
    def wall_seconds(self) -> float:
        """Since the first attempt began, whether or not the run was running, but for the time after
        a good end.
        """
        return sum(self.seconds.values())

    @property
    def running_seconds(self) -> float:
        return self.wall_seconds - self.down_seconds

    @property
    def seconds(self) -> dict[str, float]:
        """By cause, in the order in which they are shown."""
        names = (name for name in asdict(self) if name.endswith("_seconds"))
        return {name.removesuffix("_seconds"): getattr(self, name) for name in names}

    @property
    def fractions(self) -> dict[str, float]:
        return {name: _share(value, self.wall_seconds) for name, value in self.seconds.items()}

    @property
    def fraction(self) -> float:
        """The goodput: productive time over wall time."""
        return _share(self.productive_seconds, self.wall_seconds)

    @property
    def running_fraction(self) -> float:
        """Productive time over the time in which the run was running."""
        return _share(self.productive_seconds, self.running_seconds)

    @property
    def restarts(self) -> int:
        return max(0, self.attempts - 1)


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else 0.0


# A row's own names of causes → whose seconds they are. ``step`` is told apart by what became of it.
_CAUSES = {
    "data": "stalls",
    "save": "saves",
    "evaluation": "evaluation",
    "start": "start",
    "load": "load",
    "rewind": "undone",
}
STEP = "step"
_CAUSE_OF_PHASE = {
    "forward": STEP,
    "backward": STEP,
    "step": STEP,
    "agree": STEP,
    "evaluate": "evaluation",
    **{name: name for name in _CAUSES},
}


def causes_of(phase_seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of phases as the rows of attempts.jsonl name their causes."""
    causes: dict[str, float] = {}
    for phase, seconds in phase_seconds.items():
        cause = _CAUSE_OF_PHASE.get(phase, "other")
        causes[cause] = causes.get(cause, 0.0) + seconds
    return causes


def pause_after(written_at: float, *, opened_at: float) -> float:
    """Seconds to an attempt's next row: as many again as it has been written to, up to 15."""
    # A clock that was set back meanwhile must not ask for a row a second.
    return min(PROGRESS_SECONDS, max(FIRST_SECONDS, abs(written_at - opened_at)))


def is_good_end(reason: str) -> bool:
    """Whether an attempt of this end has done all steps, or all that were worth it."""
    return reason == FINISHED or reason.startswith(EARLY)


def goodput(
    rows: Sequence[Row], now: float | None = None, *, saved_step: int | None = None
) -> Goodput:
    """Judge the rows of ``attempts.jsonl``; ``now`` defaults to the time of the last row.

    ``saved_step``: of a run that does not go on, where the next attempt would: what was done beyond
    it is lost already.
    """
    account = Account()
    for row in rows:
        account.add(row)
    if saved_step is not None:
        account.lose_beyond(saved_step)
    return account.at(now)


class _Steps(NamedTuple):
    """Steps done at a stretch that still count."""

    first: int  # steps done before them
    last: int
    seconds: float  # of each step
    skipped: float  # the share of them that changed nothing


class Account:
    """The rows of a run, added up in their order."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(Goodput().seconds, 0.0)
        self._kept: list[_Steps] = []
        self._attempts = 0
        self._step = 0
        self._unfinished = 0.0  # seconds in a step of which no row has told the end
        self._time: float | None = None  # as far as the seconds are told
        self._ahead = 0.0  # seconds by which the machine's clock is ahead of that
        self._last_down = 0.0  # seconds between the newest attempt and the one before
        self._taken = 0.0  # of such seconds, what was a leap of the clock
        self._is_open = False  # the newest attempt has no end yet
        self._ended_well = False  # so that the time since then is not the run's
        self._opened_at: float | None = None  # the time of its first row

    def at(self, now: float | None = None) -> Goodput:
        """The sum. What was after the last row, up to ``now``, is not known: ``other``."""
        seconds = dict(self._seconds)
        seconds["other"] += self._unfinished
        if now is not None and self._time is not None:
            seconds["other"] += max(0.0, now - self._ahead - self._time)
        # Steps that do not count any more were subtracted: a rounding error may be left.
        named = {f"{name}_seconds": max(0.0, value) for name, value in seconds.items()}
        return Goodput(**named, attempts=self._attempts)

    def with_row(self, row: Row) -> Account:
        other = copy.copy(self)
        other._seconds, other._kept = dict(self._seconds), list(self._kept)
        other.add(row)
        return other

    def add(self, row: Row) -> None:
        gap = self._gap_before(row)
        if row["event"] == "start":
            lost = min(gap, self._unknown_seconds())
            self._seconds["redone"] += lost
            self._last_down = 0.0 if self._ended_well else gap - lost
            self._seconds["down"] += self._last_down
            self._attempts += 1
            self._begin_again(row["first_step"], "redone")
            self._is_open, self._opened_at, self._ended_well = True, None, False
        else:
            self._add_progress(row, gap)
        self._time = row["time"] if self._time is None else self._time + gap
        if self._opened_at is None and row["event"] != "start":
            self._opened_at = self._time
        if row["event"] == "rewind":
            self._begin_again(row["to_step"], "undone")
        elif row["event"] == "end":
            self._give_up("redone")
            self._is_open, self._ended_well = False, is_good_end(row.get("reason", ""))

    def lose_beyond(self, step: int) -> None:
        """What was done beyond ``step`` will be done again."""
        if step < self._step:
            self._begin_again(step, "redone")

    def _gap_before(self, row: Row) -> float:
        """Seconds since the last row, whatever became of the machine's clock meanwhile.

        Within an attempt its rows' ``seconds`` are of a clock that nobody sets: where the other one
        leaps away from it, it is that much wrong from there on, or was so when the attempt began.
        """
        if self._time is None:
            return 0.0
        gap = row["time"] - self._ahead - self._time
        total = sum(row.get("seconds", {}).values())
        is_start = row["event"] == "start"
        leap = min(0.0, gap) if is_start else gap - total
        if not is_start and abs(leap) <= LEAP_SECONDS:
            return max(0.0, gap)
        # Back from an earlier leap, or what seemed time between two attempts was one, or was none.
        known = max(min(0.0, self._ahead), min(-leap, max(0.0, self._ahead)))
        back = max(-self._taken, min(-leap - known, self._last_down))
        self._taken += back
        self._last_down -= back
        self._seconds["down"] -= back
        self._time -= back
        self._ahead += leap + back
        return max(0.0, gap + known + back) if is_start else total

    def _unknown_seconds(self) -> float:
        """How long the attempt may have gone on after its last row."""
        if not self._is_open:
            return 0.0
        if self._time is None or self._opened_at is None:  # killed before its first row
            return FIRST_SECONDS
        return pause_after(self._time, opened_at=self._opened_at)

    def _add_progress(self, row: Row, gap: float) -> None:
        total = sum(row["seconds"].values())
        scale = gap / total if total > gap else 1.0  # another clock counted them
        seconds = {key: value * scale for key, value in row["seconds"].items()}
        self._unfinished += seconds.pop(STEP, 0.0)
        for key, value in seconds.items():
            self._seconds[_CAUSES.get(key, "other")] += value
        # Before the first row, the interpreter's own start.
        is_first = self._opened_at is None
        self._seconds["start" if is_first else "other"] += max(0.0, gap - total)
        steps = row["step"] - self._step
        if steps > 0:
            skipped = min(row.get("skipped_steps", 0) / steps, 1.0)
            stretch = _Steps(self._step, row["step"], self._unfinished / steps, skipped)
            self._kept.append(stretch)
            self._count(stretch, steps)
            self._step, self._unfinished = row["step"], 0.0

    def _count(self, steps: _Steps, count: int) -> None:
        """Put down so many of ``steps`` as kept; fewer than none are not kept any more."""
        self._seconds["undone"] += steps.skipped * count * steps.seconds
        self._seconds["productive"] += (1 - steps.skipped) * count * steps.seconds

    def _begin_again(self, step: int, cause: str) -> None:
        """All that was done beyond ``step`` does not count."""
        self._give_up(cause)
        self._step = step
        while self._kept and self._kept[-1].last > step:
            steps = self._kept.pop()
            first = max(steps.first, step)
            self._count(steps, first - steps.last)
            self._seconds[cause] += (steps.last - first) * steps.seconds
            if first > steps.first:
                self._kept.append(steps._replace(last=first))

    def _give_up(self, cause: str) -> None:
        self._seconds[cause] += self._unfinished
        self._unfinished = 0.0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """How long the steps that are left will take."""

    steps_left: int
    stretch_steps: int  # steps whose time was taken
    stretch_seconds: float
    goodput: float  # of the whole run so far, 0 to 1
    seconds_left: float  # to the end, at the speed of the last stretch, without interruptions
    seconds_left_with_goodput: float | None  # if restarts and the like take their share


def forecast(
    metrics: Sequence[Row], *, starts: Sequence[float], step: int, steps: int, goodput: float
) -> Forecast | None:
    """A forecast from the lines of metrics.jsonl; None before the first line.

    ``starts`` are the beginnings of the attempts; the newest attempt that wrote a line counts.
    ``step`` of ``steps`` are done. Saves and evaluations between two lines count as well.
    """
    lines = [row for row in metrics if row.get(STEP_SECONDS) and row.get("time")]
    stretches = ([row for row in lines if row["time"] >= start] for start in reversed(starts))
    rows = next(filter(None, stretches), None)
    if not rows or step >= steps:
        return None
    profiled = [number for number, row in enumerate(rows) if row.get(PROFILED_STEPS)]
    rows = rows[profiled[-1] if profiled else 0 :]  # steps under a profiler took longer
    last = rows[-1]
    recent = [row for row in rows if row["time"] >= last["time"] - STRETCH_SECONDS]
    seconds, num_steps = last["time"] - recent[0]["time"], last["step"] - recent[0]["step"]
    if num_steps <= 0 or seconds <= 0:  # a single line holds the mean of its own steps
        seconds, num_steps = last[STEP_SECONDS], 1
    seconds_left = (steps - step) * seconds / num_steps
    if not 0 <= seconds_left < 1e10:  # 317 years: such a line is nothing to judge by
        return None
    return Forecast(
        steps_left=steps - step,
        stretch_steps=num_steps,
        stretch_seconds=seconds,
        goodput=goodput,
        seconds_left=seconds_left,
        seconds_left_with_goodput=seconds_left / goodput if goodput > 0 else None,
    )
