"""What tests of several folders share. Being here, it also lets them import ``tests/*.py``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_run import build_tiny_data


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``build_tiny_data``; the workers of pytest-xdist build it once and share it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own in a common one
        root = root.parent
    folder = root / "tiny-data"
    with FileLock(f"{folder}.lock"):
        if not (folder / "ready").exists():
            build_tiny_data(folder)
            (folder / "ready").touch()
    return folder
