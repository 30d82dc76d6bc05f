"""How much of a long piece of work is done, told from deep inside of it.

Who begins the work opens a ``metered`` block; what reads bytes on the way calls ``count``. Outside
of a block ``count`` does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

Advance = Callable[[float], None]
TELLS = 500  # times that a block tells of itself, at most: a bar shows no more


class _Meter:
    def __init__(self, total: float, advance: Advance) -> None:
        self._total, self._advance = total, advance
        self._counted = self._told = 0.0
        self._lock = threading.Lock()

    def add(self, amount: float) -> None:
        with self._lock:
            self._counted = min(self._counted + amount, self._total)
            if self._counted - self._told >= self._total / TELLS:
                self._tell()

    def finish(self) -> None:
        with self._lock:
            self._counted = self._total
            self._tell()

    def _tell(self) -> None:
        amount, self._told = self._counted - self._told, self._counted
        self._advance(amount)


# Of this process, not of a context: a library may read what it is given from threads of its own.
_counters: list[Advance] = []


def count(amount: float) -> None:
    """So much more is done of the work whose block is the innermost one."""
    if _counters:
        _counters[-1](amount)


def counter() -> Advance:
    """``count`` for the block that is the innermost one now."""
    return _counters[-1] if _counters else lambda amount: None


def count_into(advance: Advance) -> None:
    """For good, what no block of this process takes."""
    _counters.insert(0, advance)


@contextmanager
def metered(total: float, advance: Advance | None = None) -> Iterator[None]:
    """Work of so many bytes, of which ``advance`` hears; by default the block around this one.

    A block never tells of more than its total, and one that ends well has told of all of it: a bar
    comes to its end, whatever is read twice, or not at all.
    """
    meter = _Meter(total, advance or counter())
    _counters.append(meter.add)
    try:
        yield
    finally:
        _counters.remove(meter.add)
    meter.finish()


class CountedFile:
    """A file that is open for reading; what is read of it is counted."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        count(len(piece))
        return piece
