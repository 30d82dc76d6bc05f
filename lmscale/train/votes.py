"""Stopping together: every rank casts its vote into a sum, and all count the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from lmscale.ranks.collectives import sum_float64
from lmscale.runs.stop import StoppedError
from lmscale.watch import heartbeat

LEASE_LOST = "lease lost"  # a newer copy of the run is there: nothing is saved
RANKS_DIFFER = "ranks differ"  # a rank's memory is wrong: nothing is saved
SAVE_FAILED = "save failed"  # in the background, after the step that it holds
DATA_ERROR = "data error"
# Why a run may be asked to stop, in the order in which the ranks count their requests.
_ERRORS = (LEASE_LOST, RANKS_DIFFER, SAVE_FAILED, DATA_ERROR)
STOP_REASONS = (*_ERRORS, "SIGTERM", "SIGUSR1", "SIGINT", "stop file")
# Why a run may be asked to save after a step at which no save is due.
ASKED = "asked"  # by a person: kept until it is pruned by hand
LOCAL = "local"  # the nodes' own disks are due
SAVE_REASONS = (ASKED, LOCAL)
POLL_SECONDS = 1.0


def cast_votes(reasons: Collection[str | None], candidates: Sequence[str]) -> list[float]:
    """This rank's part of the sum."""
    return [float(candidate in reasons) for candidate in candidates]


def count_votes(votes: Sequence[float], candidates: Sequence[str]) -> tuple[str, ...]:
    """The reasons that any rank has, in their order."""
    return tuple(candidate for candidate, n in zip(candidates, votes, strict=True) if n)


def first_reason(votes: Sequence[float]) -> str | None:
    """Why all ranks stop, where any has voted for one of ``STOP_REASONS``."""
    return next(iter(count_votes(votes, STOP_REASONS)), None)


class StopPoll:
    """Asks all ranks whether to stop, in work that has no reduction of its own.

    ``poll()`` between two pieces of it, on all ranks equally often: about once a second it really
    asks. Raises ``StoppedError`` on all ranks together.
    """

    def __init__(self, requested: Callable[[], str | None]) -> None:
        self.requested = requested
        self._interval = self._left = 1  # calls
        self._asked_at = time.monotonic()

    def __call__(self) -> None:
        self._left -= 1
        if self._left <= 0:
            self._left = self._interval = self._ask()

    def now(self) -> None:
        """Ask at once."""
        self._ask()

    def _ask(self) -> int:
        """Calls until the next time."""
        # Whole milliseconds: their sum is exact in any order, so all ranks plan alike.
        elapsed = float(round(1000 * (time.monotonic() - self._asked_at)))
        heartbeat.tick()
        total, ranks, *votes = sum_float64(
            [elapsed, 1.0, *cast_votes([self.requested()], STOP_REASONS)]
        )
        self._asked_at = time.monotonic()
        reason = first_reason(votes)
        if reason is not None:
            raise StoppedError(reason)
        return plan_interval(self._interval, total / ranks / 1000)


def plan_interval(interval: int, seconds: float) -> int:
    """How many calls make ``POLL_SECONDS``, when the last ``interval`` of them took ``seconds``."""
    wanted = interval * POLL_SECONDS / max(seconds, 1e-3)
    return max(1, min(int(wanted), 2 * interval))
