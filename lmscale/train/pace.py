"""How fast this start of a run goes: a sign of life in its first step, and when it will end."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lmscale.config import RunConfig
from lmscale.engine.step_report import StepReport
from lmscale.files.printing import render_duration, render_time
from lmscale.runs.goodput import STRETCH_SECONDS
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 20.0  # then twice as long from word to word
SILENT_SECONDS = 300.0  # without a line of figures: then a word of how far it is
TOLD_SECONDS = 1.0  # shorter waits are not worth a word
_DOING = {
    "data": "waiting for its data",
    "agree": "waiting for the other ranks",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "step": "updating the weights",
}
_PASSES = ("forward", "backward")


class Pace:
    """Rank 0's. Called with every report, before its figures are logged."""

    def __init__(
        self, config: RunConfig, first_step: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config, self._clock = config, clock
        self.first_step = first_step + 1
        # An engine that a rewind has kept is compiled.
        self.compiles = config.engine.compile and heartbeat.is_starting()
        self._points: deque[tuple[float, int]] = deque()  # time, samples used
        self._told_at = clock()
        self.has_begun = threading.Event()  # the first step is done

    def __call__(self, report: StepReport) -> None:
        self.has_begun.set()
        self._add(report)
        steps_done = report.step - self.first_step
        if steps_done == 0:
            logger.info("%s", self._describe_first(report))
        elif steps_done == 1 and (left := self.seconds_left()):
            ends = render_time(time.time() + left)
            logger.info(
                "at the speed of step %d the run ends in %s (%s)",
                *(report.step, render_duration(left), ends),
            )
        elif self._clock() - self._told_at >= SILENT_SECONDS:
            logger.info("step %d/%d%s", report.step, self._config.train.steps, self.told())

    def told(self) -> str:
        """``  eta 3 min``, for the end of a line; empty where it is not known yet."""
        self._told_at = self._clock()
        left = self.seconds_left()
        return f"  eta {render_duration(left)}" if left else ""

    def seconds_left(self) -> float | None:
        """To the last step, at the speed since the first one, or of the last minutes.

        By samples, of which a step has more as a batch grows. Saves and evaluations count.
        """
        (began_at, first), (now, done) = self._points[0], self._points[-1]
        if done <= first:
            return None
        left = self._config.samples_after(self._config.train.steps) - done
        return max(0.0, left * (now - began_at) / (done - first))

    def _add(self, report: StepReport) -> None:
        now = self._clock()
        if len(self._points) > 1 and now - self._points[-2][0] < 1:
            self._points.pop()  # one a second is enough
        self._points.append((now, report.first_n + report.samples))
        while len(self._points) > 2 and self._points[1][0] <= now - STRETCH_SECONDS:
            self._points.popleft()

    def _describe_first(self, report: StepReport) -> str:
        speed = report.targets / report.step_seconds
        compiled = ", torch.compile's work included" if self.compiles else ""
        waited = ""
        if report.data_seconds >= TOLD_SECONDS:
            waited = f" after {render_duration(report.data_seconds)} of waiting for its data"
        return (
            f"step {report.step} took {report.step_seconds:.3g} s{waited}{compiled}: "
            f"loss {report.loss:.4f}, {speed:,.0f} {self._config.objective.targets_are}/s"
        )


@contextmanager
def open_pace(config: RunConfig, first_step: int) -> Iterator[Pace]:
    """A ``Pace``, which says what the first step is at for as long as that takes."""
    pace = Pace(config, first_step)
    thread = threading.Thread(target=tell_first_step, args=(pace,), name="pace", daemon=True)
    thread.start()
    try:
        yield pace
    finally:
        pace.has_begun.set()
        thread.join()


def tell_first_step(pace: Pace) -> None:
    """Until it is done, or the run ends before."""
    passed, pause = 0.0, FIRST_PAUSE_SECONDS
    while not pace.has_begun.wait(pause):
        passed += pause
        pause = passed  # twice as long
        doing = heartbeat.current_phase()
        is_compiling = pace.compiles and doing in _PASSES
        compiling = ", which torch.compile makes first" if is_compiling else ""
        logger.info(
            "step %d is not done after %s: %s%s",
            *(pace.first_step, render_duration(passed), _DOING.get(doing, doing), compiling),
        )
