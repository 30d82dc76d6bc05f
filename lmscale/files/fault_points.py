"""Points at which a run can be made to fail on purpose; an unarmed point costs one comparison.

Code under test calls ``hit(moment)``. ``lmscale.runs.faults``, which reads the plan of faults, arms
the points; this module knows no plans, ranks or tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol


class Armed(Protocol):
    """The faults of one process."""

    step: int | None
    """The step that the loop is at."""

    def hit(self, moment: str, step: int | None, path: Path | None) -> None: ...

    def strikes(self, kinds: set[str], moment: str, step: int | None) -> Iterator[Any]: ...


armed: Armed | None = None


def hit(moment: str, *, step: int | None = None, path: Path | None = None) -> None:
    """Let the faults of this moment strike; ``path``: the file it is about, if it is about one.

    Returns, blocks, raises the ``OSError`` that the fault stands for, or never returns.
    """
    if armed is not None:
        armed.hit(moment, step, path)
