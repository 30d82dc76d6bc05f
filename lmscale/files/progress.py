"""Progress of long work: a rich bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_LINE_SECONDS = 10.0


@cache
def terminal() -> Console:
    """The one console on stderr, whatever that is when it writes: log lines appear above a live bar
    only if both are of one console.
    """
    return Console(stderr=True)


@contextmanager
def progress(description: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
    """Yield ``advance(amount)``; ``total`` None means that the end is not known."""
    console = terminal()
    if not console.is_terminal:
        yield from _plain(description, total, unit)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f} {task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, unit=unit)
        yield lambda amount: bar.advance(task, amount)


def _plain(description: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
    amount_done = 0.0
    started = last_line = time.monotonic()

    def advance(amount: float) -> None:
        nonlocal amount_done, last_line
        amount_done += amount
        if time.monotonic() - last_line >= PLAIN_LINE_SECONDS:
            last_line = time.monotonic()
            of_total = f" of {total:,.0f}" if total else ""
            print(
                f"{description}: {amount_done:,.0f}{of_total} {unit}", file=sys.stderr, flush=True
            )

    yield advance
    if not amount_done:  # nothing needed doing
        return
    seconds = time.monotonic() - started
    print(
        f"{description}: {amount_done:,.0f} {unit} in {seconds:.1f} s", file=sys.stderr, flush=True
    )
