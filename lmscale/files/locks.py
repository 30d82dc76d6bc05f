"""One user of a file at a time, also between machines where the file system can.

Locks are ``flock``, which the kernel drops with its holder. A lock is on the open file itself, such
as a cached one. (The library filelock empties the file that it locks, and cannot share.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.05
_HELD = {errno.EAGAIN, errno.EACCES}
# The last two from some file systems in user space (FUSE) and of virtual machines (9p).
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.ENOTTY}


def lock(descriptor: int, seconds: float | None = None, *, shared: bool = False) -> bool:
    """Wait so long (None: for ever) for the lock on an open file, which closing the file ends.

    False where the file system has no locks, such as Lustre mounted without flock: the callers' own
    care has to do. Raises ``BlockingIOError`` when another process holds the lock all that time.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + (seconds or 0.0)
    while True:
        try:
            fcntl.flock(descriptor, kind if seconds is None else kind | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            if error.errno not in _HELD:
                raise
            if time.monotonic() >= deadline:
                raise BlockingIOError(error.errno, error.strerror) from None
        time.sleep(POLL_SECONDS)


@contextmanager
def locked_file(path: Path, seconds: float | None = None) -> Iterator[bool]:
    """Hold the lock on the file ``path``, which is made for this and stays.

    Yields and raises what ``lock`` returns and raises.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield lock(descriptor, seconds)
    finally:
        os.close(descriptor)
