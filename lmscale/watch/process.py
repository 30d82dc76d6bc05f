"""A process by which others know it again: is it still there? Asked on its own machine alone."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any


def own_process() -> dict[str, Any]:
    """This process, as ``is_gone`` knows it again."""
    pid = os.getpid()
    return {"pid": pid, "machine": _machine(), "started": _started(pid)}


def is_gone(process: Any) -> bool | None:
    """Whether the process that ``own_process`` named has ended; None where that cannot be seen from
    here: it is another machine's, or another user's and hidden, or the words are none of
    ``own_process``.
    """
    try:
        if process["machine"] != _machine():
            return None
        pid = int(process["pid"])
        started = _started(pid)
        if started is None and _is_hidden(pid):
            return None
        return started != process["started"]
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process that /proc does not show: another user's, where it is mounted
    with ``hidepid``, as on many login nodes.
    """
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _machine() -> str:
    """Where a process number means the same process: the boot and the namespace of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {socket.gethostname()} {os.getpid()}"  # equals no other


def _started(pid: int) -> str | None:
    """Start of a process of this machine, in ticks since the boot; None once it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
