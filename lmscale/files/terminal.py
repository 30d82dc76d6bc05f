"""The one console on stderr: log lines appear above a live bar only if both are of one console."""

from __future__ import annotations

from functools import cache

from rich.console import Console


@cache
def terminal() -> Console:
    """rich's console on whatever ``sys.stderr`` is when it writes."""
    return Console(stderr=True)
