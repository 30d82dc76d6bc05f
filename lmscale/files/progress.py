"""Progress of long work: a rich bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lmscale.files.printing import say

PLAIN_LINE_SECONDS = 10.0


@cache
def terminal() -> Console:
    """The one console on stderr, whatever that is when it writes: log lines appear above a live bar
    only if both are of one console.
    """
    return Console(stderr=True)


@contextmanager
def progress(
    description: str, total: float | None = None, unit: str = ""
) -> Iterator[Callable[[float], None]]:
    """Yield ``advance(amount)``; ``total`` None means that the end is not known.

    Without a unit there is nothing to tell but the time, and no bar.
    """
    console = terminal()
    if not (console.is_terminal and unit):
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
    amount_done, started, has_ended = 0.0, time.monotonic(), threading.Event()
    of_total = f" of {total:,.0f}" if total else ""

    def advance(amount: float) -> None:
        nonlocal amount_done
        amount_done += amount

    def tell() -> None:  # by a thread, for one piece of the work may take minutes
        while not has_ended.wait(PLAIN_LINE_SECONDS):
            amount = f"{amount_done:,.0f}{of_total} {unit}, " if unit else ""
            seconds = time.monotonic() - started
            say(f"{description}: {amount}{seconds:.0f} s so far", err=True)

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield advance
    finally:
        has_ended.set()
        teller.join()
    if amount_done:  # else nothing needed doing
        seconds = time.monotonic() - started
        say(f"{description}: {amount_done:,.0f} {unit} in {seconds:.1f} s", err=True)
