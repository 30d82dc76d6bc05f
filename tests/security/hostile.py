"""What an attacker would hand over: files that do something as soon as they are unpickled."""

from __future__ import annotations

import os
import pickle
from pathlib import Path


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self._mark),)


def make_trap(mark: Path) -> bytes:
    """A pickle that makes the folder ``mark`` when it is loaded."""
    trap = pickle.dumps(Trap(mark))
    pickle.loads(trap)
    assert mark.is_dir(), "this trap would prove nothing"
    mark.rmdir()
    return trap
