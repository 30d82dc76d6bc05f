"""Where DeepSpeed's C++ extensions are built, and a lock that no killed build leaves behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock


def extensions_folder() -> Path:
    """TORCH_EXTENSIONS_DIR, else a folder of this Python, torch and DeepSpeed in the user's cache.

    torch adds no version to the folder by itself, and a module built for another torch crashes.
    """
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    if named:
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    versions = f"{python}-torch{version('torch')}-deepspeed{version('deepspeed')}"
    return cache / "lmscale" / "torch_extensions" / versions


@contextmanager
def building_extensions() -> Iterator[Path]:
    """Hold this around the first call on each rank that may build an extension of DeepSpeed.

    One process of the node builds (about 75 s); the others wait and load what it built. A build
    that was killed leaves torch's ``lock`` file, on which every later one waits for ever
    (pytorch#189245, retry with torch 2.14). Nobody else builds while we hold our own lock, which
    the kernel frees with its process, so any such file is a leftover and is removed.
    """
    folder = extensions_folder()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    with FileLock(folder / "lmscale.lock"):
        for leftover in stale_locks(folder):
            leftover.unlink(missing_ok=True)
        yield folder


def stale_locks(folder: Path) -> list[Path]:
    """torch's lock files of builds, which only mean something while a build runs."""
    return sorted(folder.glob("*/lock"))
