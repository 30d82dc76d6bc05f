"""Models of transformers, to compare ours with."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest


def import_transformers() -> ModuleType:
    """transformers, which the test extra brings for Python 3.11 and later; below, the module that
    asks is skipped.
    """
    if sys.version_info < (3, 11):
        pytest.skip("compared with transformers on Python 3.11 and later", allow_module_level=True)
    return importlib.import_module("transformers")
