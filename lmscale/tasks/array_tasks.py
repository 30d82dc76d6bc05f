"""The tasks of an array that build one folder together, and the units of work of each.

The work is cut into units, which do not depend on the number of tasks; a unit that is finished
counts for good, whichever task did it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lmscale.errors import ConfigError


@dataclass(frozen=True)
class ArrayTask:
    """Task ``number``, from 0 on, of ``count``."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"task {self.number} of {self.count}"


ALONE = ArrayTask(0, 1)


def parse_task(text: str) -> ArrayTask:
    """``3/8`` is the fourth of eight tasks. Raises ``ConfigError``."""
    match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    if match and int(match[1]) < int(match[2]):
        return ArrayTask(int(match[1]), int(match[2]))
    raise ConfigError(f"--task {text}: give I/N with I from 0 to N - 1, for example 0/8 or 7/8.")


def deal(sizes: Sequence[int], num_tasks: int, *, first: int = 0) -> tuple[int, ...]:
    """The task of each unit: runs of about equal size, the first of them to task ``first``.

    No run is longer than its even share and one unit.
    """
    total = sum(size + 1 for size in sizes)  # + 1: units of no size are work, too
    tasks = []
    start = 0
    for size in sizes:
        middle = 2 * start + size + 1  # in halves, so that it stays whole
        tasks.append((middle * num_tasks // (2 * total) + first) % num_tasks)
        start += size + 1
    return tuple(tasks)
