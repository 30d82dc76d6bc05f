"""What a start that was refused has made in its run's folder, and nobody needs."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from lmscale.files.locks import locked_file
from lmscale.files.run_files import WATCH_FILE
from lmscale.runs.lease import LEASE_FILE

LOCK_FILE = ".lock"
_OF_ANY_START = {"logs", "heartbeats", LEASE_FILE, LOCK_FILE, WATCH_FILE}


def remove_leftovers(folder: Path) -> None:
    """Remove a run's folder that holds nothing but what every start makes first; no start may be
    in it. One with a configuration, a submission, or anything of somebody's stays, and so does one
    that another process holds or that cannot be removed.
    """
    with suppress(OSError):  # BlockingIOError of the lock included
        if not _is_unbegun(folder):
            return
        with locked_file(folder / LOCK_FILE, 0.0):
            if not _is_unbegun(folder):
                return
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            folder.rmdir()


def _is_unbegun(folder: Path) -> bool:
    return not folder.is_symlink() and {path.name for path in folder.iterdir()} <= _OF_ANY_START
