"""A process beside another one, which is not to outlive it."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(pid: int) -> None:
    """Have the kernel send SIGTERM here when the process ``pid``, which started this one, is gone:
    at once, where it is gone already.

    It counts as gone as soon as the thread is that started this process.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "prctl"):
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != pid:  # it went before the line above took hold
            os.kill(os.getpid(), signal.SIGTERM)
