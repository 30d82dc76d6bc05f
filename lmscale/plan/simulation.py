"""A run with its failures, simulated: saves, lost steps, queues, restarts, as lmscale has them.

Events are simulated, not steps: between two of them a run does what its timeline says, so that an
attempt costs a few array operations for all repetitions together, whatever the number of devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lmscale.runs.goodput import Goodput

MAX_ATTEMPTS = 20_000  # of one repetition: one that needs more does not get on
STUCK_ATTEMPTS = 100  # in a row in which no repetition has come to its next save
_CAUSES = ("productive", "redone", "saves", "evaluation", "start", "load", "down")


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a run does when nothing befalls it."""

    steps: int
    step_seconds: float
    save_every_steps: int
    save_seconds: float
    """In which a save holds the steps up."""
    commit_seconds: float = 0.0
    """From there until the checkpoint counts, while steps go on; one that is due meanwhile waits,
    as ``checkpoint.when_busy: wait`` says."""
    evaluate_every_steps: int = 0
    evaluation_seconds: float = 0.0

    @property
    def work_seconds(self) -> float:
        return self.steps * self.step_seconds


@dataclass(frozen=True, kw_only=True)
class Hazards:
    """What befalls it, and what comes before it goes on. The whole job's, not a node's."""

    mtbf_seconds: float = math.inf
    """Mean time between failures; they come by chance at a constant rate."""
    preemption_seconds: float = math.inf
    """Mean time between preemptions, and ``limit_seconds`` is the limit of a job: both leave time
    for a save, so no step is lost."""
    limit_seconds: float = math.inf
    detect_seconds: float = 0.0
    """From a failure until the job is given up."""
    queue_seconds: float = 0.0
    """Mean of what a job that was requeued waits for; exponential."""
    start_seconds: float = 0.0
    """Of all processes until they could take their first step, without the checkpoint."""
    load_seconds: float = 0.0
    """Of the checkpoint; the first attempt has none."""


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What became of the repetitions."""

    mean: Goodput
    """Each cause's seconds, averaged; ``attempts`` rounded."""
    goodput: float
    """Productive time over wall time, averaged."""
    standard_error: float
    """Of ``goodput``."""
    wall_seconds: tuple[float, float, float]
    """The shortest tenth, half, and nine tenths of the repetitions end within."""
    is_finished: bool
    """False: some do not get to their end; all figures are of what they did."""


@dataclass(frozen=True, kw_only=True)
class _Timeline:
    """Seconds since a run's first step if nothing befell it, and what they were for by then."""

    at: np.ndarray  # f64 [points], ascending; work, evaluation, saves: totals there
    work: np.ndarray
    evaluation: np.ndarray
    saves: np.ndarray
    saved_at: np.ndarray  # f64 [saves]: a checkpoint's place on the timeline
    committed_at: np.ndarray  # when it counts

    def find_kept(self, place: np.ndarray) -> np.ndarray:
        """The newest checkpoint that counts at each place; the beginning where none does."""
        index = np.searchsorted(self.committed_at, place, side="right")
        return np.where(index > 0, self.saved_at[np.maximum(index - 1, 0)], 0.0)


def _plan_timeline(course: Course) -> _Timeline:
    steps = np.array([course.steps], dtype=np.int64)
    saves = np.union1d(
        np.arange(course.save_every_steps, course.steps, course.save_every_steps), steps
    )
    scores = np.zeros(0, dtype=np.int64)
    if course.evaluate_every_steps:
        every = course.evaluate_every_steps
        scores = np.union1d(np.arange(every, course.steps, every), steps)
    stops = np.union1d(saves, scores)
    is_save, is_score = np.isin(stops, saves), np.isin(stops, scores)
    work = stops * course.step_seconds
    evaluation = np.where(is_score, course.evaluation_seconds, 0.0)
    # A save waits for the one before: what comes between the two is work and evaluations.
    between = np.diff(work[is_save], prepend=0.0)
    between += np.diff(np.cumsum(evaluation)[is_save], prepend=0.0)
    waits = np.maximum(0.0, course.commit_seconds - between)
    waits[0] = 0.0
    held = np.zeros(len(stops))
    held[is_save] = course.save_seconds + waits
    scored, saved = np.cumsum(evaluation), np.cumsum(held)
    before = (scored - evaluation, saved - held)
    total_work = np.column_stack([work, work, work]).ravel()
    total_scored = np.column_stack([before[0], scored, scored]).ravel()
    total_saved = np.column_stack([before[1], before[1], saved]).ravel()
    at = total_work + total_scored + total_saved
    saved_at = (work + scored + saved)[is_save]
    zero = np.zeros(1)
    return _Timeline(
        at=np.concatenate([zero, at]),
        work=np.concatenate([zero, total_work]),
        evaluation=np.concatenate([zero, total_scored]),
        saves=np.concatenate([zero, total_saved]),
        saved_at=saved_at,
        committed_at=saved_at + course.commit_seconds,
    )


def simulate(
    course: Course, hazards: Hazards, *, repetitions: int = 200, seed: int = 1
) -> Simulated:
    """Go through the run ``repetitions`` times, each with failures of its own."""
    timeline = _plan_timeline(course)
    draw = np.random.default_rng(seed)
    seconds = {cause: np.zeros(repetitions) for cause in _CAUSES}
    attempts = np.zeros(repetitions, dtype=np.int64)
    places = np.zeros(repetitions)  # of the state that the next attempt begins with
    left = np.arange(repetitions)
    stuck = 0
    for _ in range(MAX_ATTEMPTS):
        attempts[left] += 1
        come = places.sum()
        ended = _attempt(course, hazards, timeline, draw, places=places, left=left, seconds=seconds)
        left = left[~ended]
        stuck = stuck + 1 if places.sum() == come else 0
        if not left.size or stuck >= STUCK_ATTEMPTS:
            break
    return _sum_up(seconds, attempts, is_finished=not left.size)


def _attempt(
    course: Course,
    hazards: Hazards,
    timeline: _Timeline,
    draw: np.random.Generator,
    *,
    places: np.ndarray,
    left: np.ndarray,
    seconds: dict[str, np.ndarray],
) -> np.ndarray:
    """One attempt of each repetition in ``left``: whether it came to the run's end, bool.

    ``places`` and ``seconds`` are brought forward.
    """
    begin = places[left]
    load = np.where(begin > 0, hazards.load_seconds, 0.0)
    stop_seconds = course.save_seconds + course.commit_seconds  # a last save, which is waited for
    fails = _draw_times(draw, hazards.mtbf_seconds, left.size)
    asked = _draw_times(draw, hazards.preemption_seconds, left.size)
    asked = np.minimum(asked, max(0.0, hazards.limit_seconds - stop_seconds))
    trained = np.minimum(fails, asked) - hazards.start_seconds - load
    is_begun = trained > 0
    whole = timeline.at[-1] - begin + course.commit_seconds
    has_ended = trained >= whole
    is_lost = ~has_ended & (fails <= asked)
    reached = begin + np.clip(np.minimum(trained, timeline.at[-1] - begin), 0.0, None)
    kept = np.where(is_lost, np.maximum(begin, timeline.find_kept(begin + trained)), reached)
    kept = np.where(is_begun, kept, begin)

    def passed(totals: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return np.interp(end, timeline.at, totals) - np.interp(start, timeline.at, totals)

    seconds["productive"][left] += passed(timeline.work, begin, kept)
    seconds["redone"][left] += passed(timeline.work, kept, reached)
    seconds["evaluation"][left] += passed(timeline.evaluation, begin, reached)
    # Of the last save, and of one that a stop asks for, all is waited for.
    waited = np.where(has_ended, course.commit_seconds, np.where(is_lost, 0.0, stop_seconds))
    # One that ends after its last step, before its last checkpoint counts, has waited for that.
    waited = np.where(is_lost, np.clip(begin + trained - timeline.at[-1], 0.0, None), waited)
    waited = np.where(is_begun, waited, 0.0)
    seconds["saves"][left] += passed(timeline.saves, begin, reached) + waited
    seconds["start"][left] += np.where(is_begun, hazards.start_seconds, 0.0)
    seconds["load"][left] += np.where(is_begun, load, 0.0)
    down = np.where(is_begun, 0.0, trained + hazards.start_seconds + load)
    queued = _draw_times(draw, hazards.queue_seconds, left.size)
    down += np.where(has_ended, 0.0, queued + np.where(is_lost, hazards.detect_seconds, 0.0))
    seconds["down"][left] += down
    places[left] = kept
    return has_ended


def _draw_times(draw: np.random.Generator, mean: float, count: int) -> np.ndarray:
    """Drawn where there is no such event as well, so that the other draws stay as they are."""
    drawn = draw.exponential(1.0, count)
    return np.full(count, math.inf) if math.isinf(mean) else drawn * mean


def _sum_up(
    seconds: dict[str, np.ndarray], attempts: np.ndarray, *, is_finished: bool
) -> Simulated:
    wall = np.sum([*seconds.values()], axis=0)
    shares = seconds["productive"] / wall
    spread = float(shares.std(ddof=1)) if len(shares) > 1 else 0.0
    low, half, high = np.quantile(wall, (0.1, 0.5, 0.9)).tolist()
    named = {f"{cause}_seconds": float(of_all.mean()) for cause, of_all in seconds.items()}
    return Simulated(
        mean=Goodput(**named, attempts=round(float(attempts.mean()))),
        goodput=float(shares.mean()),
        standard_error=spread / math.sqrt(len(shares)),
        wall_seconds=(low, half, high),
        is_finished=is_finished,
    )
