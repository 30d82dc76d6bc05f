"""Lets a test slow down the steps of a real run.

After every step each rank sleeps for the seconds that the file $TEST_STEP_PAUSE holds. A run is
so slow until it has been interrupted, without keeping a core busy, and fast from there on.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

SLOWED = "lmscale.train.session"


class _Slowing(importlib.abc.MetaPathFinder):
    """Finds the session as everyone would, and puts the pause into its loop."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != SLOWED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_slow(module: ModuleType) -> None:
                load(module)
                slow(module)

            spec.loader.exec_module = load_and_slow  # type: ignore[method-assign]
        return spec


def slow_when_loaded() -> None:
    sys.meta_path.insert(0, _Slowing())


def slow(session: ModuleType) -> None:
    """Put the pause into ``lmscale.train.session``."""
    train_steps = session.train_steps

    def slowed(*arguments: Any, **named: Any) -> Iterator[Any]:
        for report in train_steps(*arguments, **named):
            yield report
            time.sleep(_pause_seconds())

    session.train_steps = slowed  # type: ignore[attr-defined]


def _pause_seconds() -> float:
    try:
        return float(Path(os.environ["TEST_STEP_PAUSE"]).read_text())
    except (OSError, ValueError):  # not there any more, or just being written
        return 0.0
