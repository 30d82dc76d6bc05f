"""One writer of a file at a time, also between machines where the file system can."""

from __future__ import annotations

import fcntl
import time

POLL_SECONDS = 0.05


def lock(descriptor: int, seconds: float) -> None:
    """Wait so long for the lock on an open file, which ends with the process at the latest.

    Raises ``BlockingIOError`` when another holds it all that time. A file system without locks,
    such as Lustre mounted without flock, gives none: the callers' own care has to do.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
        except OSError:
            return
