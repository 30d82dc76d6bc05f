"""Requests to stop early: a signal, or a file named ``stop`` in the run folder."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

STOP_FILE = "stop"
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequests:
    """Remembers this rank's first request to stop, for the time of a ``with`` block.

    Only the calling rank knows: the train loop spreads it in the step's own reduction. A second
    SIGINT raises ``KeyboardInterrupt``, for a person who will not wait for the checkpoint.
    """

    def __init__(self, folder: str | Path, *, watch_file: bool = True) -> None:
        """``watch_file``: one rank is enough; spare the shared file system the others."""
        self._file = Path(folder) / STOP_FILE
        self._watch_file = watch_file
        self._reason: str | None = None
        self._interrupts = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequests:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def requested(self) -> str | None:
        """Why to stop (``SIGTERM``, ``SIGUSR1``, ``SIGINT``, ``stop file``), or None."""
        if self._reason is None and self._watch_file and self._file.exists():
            self._reason = "stop file"
        return self._reason

    def consume_file(self) -> None:
        """Remove the stop file after it was obeyed, or the next attempt would stop at once."""
        if self._watch_file:
            self._file.unlink(missing_ok=True)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._reason is None:
            self._reason = signal.Signals(number).name
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
