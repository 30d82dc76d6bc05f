"""Progress of long work: a rich bar on a terminal, a plain line now and then elsewhere.

Both say how much is done, of how much, and when the rest will be.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lmscale.files.printing import render_bytes, say

PLAIN_LINE_SECONDS = 10.0
BYTES = "bytes"


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

    Without a unit there is nothing to tell but the time, and no bar. The unit ``bytes`` is shown as
    kB, MB or GB, with those a second.
    """
    console = terminal()
    if not (console.is_terminal and unit):
        yield from _plain(description, total, unit)
        return
    count = TextColumn("{task.completed:,.0f} {task.fields[unit]}")
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        *([DownloadColumn(), TransferSpeedColumn()] if unit == BYTES else [count]),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, unit=unit)
        yield lambda amount: bar.advance(task, amount)


def _render_amount(done: float, total: float | None, unit: str) -> str:
    """``4 of 10 windows``, ``12.1 MB of 3.4 GB``."""
    if unit == BYTES:
        return render_bytes(int(done)) + (f" of {render_bytes(int(total))}" if total else "")
    return f"{done:,.0f}" + (f" of {total:,.0f} {unit}" if total else f" {unit}")


def _plain(description: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
    amount_done, started, has_ended = 0.0, time.monotonic(), threading.Event()

    def advance(amount: float) -> None:
        nonlocal amount_done
        amount_done += amount

    def tell() -> None:  # by a thread, for one piece of the work may take minutes
        while not has_ended.wait(PLAIN_LINE_SECONDS):
            amount = f"{_render_amount(amount_done, total, unit)}, " if unit else ""
            seconds = time.monotonic() - started
            left = ""
            if total and 0 < amount_done < total:
                left = f", about {(total - amount_done) / amount_done * seconds:,.0f} s left"
            say(f"{description}: {amount}{seconds:.0f} s so far{left}", err=True)

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield advance
    finally:
        has_ended.set()
        teller.join()
    if amount_done:  # else nothing needed doing
        seconds = time.monotonic() - started
        say(
            f"{description}: {_render_amount(amount_done, None, unit)} in {seconds:.1f} s", err=True
        )
