"""What the loop is at, and for how long it has been at what."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

START = "start"
REWIND = "rewind"
BETWEEN_STEPS = "hooks"
FIRST_OF_STEP = "forward"
# The loop's own way to its first step is a part of getting there.
_ON_THE_WAY = ("data", "agree", "hooks")


class PhaseClock:
    """Adds up the seconds per phase. Begins in ``start``, which lasts until the first step.

    ``rewind`` lasts until the next step, too, with the loading. Other threads have no phases.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # another thread may ask, and a signal's handler
        self._main = threading.main_thread().ident
        self._seconds: dict[str, float] = {}
        self._name, self._since = START, clock()
        self._setup: str | None = START
        self.listener: Callable[[str], None] | None = None  # is told of every phase as it begins

    def enter(self, name: str) -> None:
        """The process begins something else."""
        if threading.get_ident() != self._main:
            return
        if name == FIRST_OF_STEP:
            self._setup = None
        elif name == REWIND:
            self._setup = REWIND
        elif self._setup is not None and (name in _ON_THE_WAY or self._setup == REWIND):
            name = self._setup
        with self._lock:
            now = self._clock()
            self._seconds[self._name] = self._seconds.get(self._name, 0.0) + now - self._since
            self._name, self._since = name, now
        if self.listener is not None:
            self.listener(name)

    @property
    def current(self) -> str:
        return self._name

    def seconds(self) -> dict[str, float]:
        """Seconds of every phase so far, the running one included; they only ever grow."""
        with self._lock:
            seconds = dict(self._seconds)
            running = self._clock() - self._since
            seconds[self._name] = seconds.get(self._name, 0.0) + running
            return seconds
