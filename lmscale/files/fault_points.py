"""Points at which a run can be made to fail on purpose; an unarmed point costs one comparison.

Code under test calls ``hit(moment)``. ``lmscale.runs.faults``, which reads the plan of faults, arms
the points; this module knows no plans, ranks or tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

armed: Any = None  # the faults of this process


def hit(moment: str, *, step: int | None = None, path: Path | None = None) -> None:
    """Let the faults of this moment strike; ``path``: the file it is about, if it is about one.

    Returns, blocks, raises the ``OSError`` that the fault stands for, or never returns.
    """
    if armed is not None:
        armed.hit(moment, step, path)
