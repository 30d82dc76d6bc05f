"""What tests of several folders share. Being here, it also lets them import ``tests/*.py``."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

import pytest
from filelock import FileLock
from forked_processes import share_server
from labelled_data import build_labelled_data, labelled_tree
from tiny_run import build_tiny_data

from lmscale.config import RunConfig


def pytest_configure() -> None:
    """What a shell ignores for a command in the background, and nohup, is not for those we start.

    They would inherit it; a handler, even one that does nothing, is not inherited.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that no worker of pytest-xdist is left alone with one.

    A file whose jobs wait in Slurm, and keep no core busy, comes between two that do not.
    """

    def has(file: Sequence[pytest.Item], marker: str) -> bool:
        return any(item.get_closest_marker(marker) for item in file)

    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = [file for file in files.values() if has(file, "slurm")]
    busy = [file for file in files.values() if not has(file, "slurm")]
    busy.sort(key=lambda file: has(file, "slow") + has(file, "ranks"), reverse=True)
    pairs = zip_longest(waiting, busy, fillvalue=())
    items[:] = [item for pair in pairs for file in pair for item in file]


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what the workers of pytest-xdist share: each has a folder of its own in it."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


@pytest.fixture(scope="session", autouse=True)
def shared_forks(common_folder: Path) -> None:
    """The workers of pytest-xdist ask one process, which ends with theirs, for forks of it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        share_server(common_folder / "forks", owner=os.getppid())


@pytest.fixture(scope="session")
def tiny_data(common_folder: Path) -> Path:
    """The folder of ``build_tiny_data``."""
    return build_once(common_folder / "tiny-data", build_tiny_data)


@pytest.fixture(scope="session")
def labelled(common_folder: Path) -> RunConfig:
    """The configuration of what ``build_labelled_data`` has built."""
    folder = build_once(common_folder / "labelled-data", build_labelled_data)
    return RunConfig.model_validate(labelled_tree(folder))


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Data in a folder, which the workers of pytest-xdist build once and share."""
    with FileLock(f"{folder}.lock"):
        if not (folder / "ready").exists():
            build(folder)
            (folder / "ready").touch()
    return folder
