"""Calling again what has failed for a reason that may pass."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Result = TypeVar("Result")

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 30.0


def growing_delays(retries: int) -> Iterator[float]:
    """``retries`` random times up to 0.5, 1, 2, … 30 s (full jitter): thousands of ranks that have
    failed together do not come back together.
    """
    for attempt in range(retries):
        yield random.uniform(0, min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**attempt))


def call_patiently(
    action: Callable[[], Result],
    delays: Iterable[float],
    *,
    may_pass: Callable[[Exception], bool],
    wait: Callable[[Exception, float], None] = lambda error, seconds: time.sleep(seconds),
) -> Result:
    """What ``action`` returns. Where it raises what may pass, ``wait`` is called with the error and
    the next of ``delays``, and then ``action`` again; the last error is raised as it is.
    """
    for seconds in delays:
        try:
            return action()
        except Exception as error:
            if not may_pass(error):
                raise
            wait(error, seconds)
    return action()
