"""The fork for which a process of a Slurm job stands: tests/slurm/interpreter/proxy.py.

``stand_by`` runs in a child of the process that has loaded everything (fork_server.py), one for
each proxy: it enters the proxy's namespaces, forks the rank there, and tells each of the other.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

INTERPRETER = Path(__file__).parent / "slurm" / "interpreter"
SPACES = ("pid", "uts", "mnt")  # in the proxy's order
MAX_REQUEST = 1 << 17
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)


def open_socket(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    return listener


def end_with(parent: int) -> None:
    """Have the system kill this process, which ``parent`` has just forked, as that one ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() not in (parent, 0):  # 0: a parent in another namespace
        os._exit(1)  # it has ended before


def stand_by(
    connection: socket.socket, fork: Callable[[Callable[[], int]], int], run: Callable[..., int]
) -> int:
    """Fork ``run(streams, request)`` for the proxy at the other end; returns when it has ended."""
    content, descriptors, _, _ = socket.recv_fds(connection, MAX_REQUEST, 6)
    request = json.loads(content)
    streams, spaces = descriptors[:3], descriptors[3:]
    for name, space in zip(SPACES, spaces, strict=True):
        is_another = os.fstat(space).st_ino != os.stat(f"/proc/self/ns/{name}").st_ino
        if is_another and _LIBC.setns(space, 0):  # which takes root, as a test's cluster does
            raise OSError(ctypes.get_errno(), f"setns {name}")

    def become() -> int:
        for descriptor in (connection.fileno(), *spaces):
            os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
        return run(streams, request)

    pid = fork(become)
    end = os.pidfd_open(pid)
    while end not in select.select([connection, end], [], [])[0]:
        asked = connection.recv(1)
        with suppress(ProcessLookupError):
            if asked:
                os.kill(pid, asked[0])
            else:  # the proxy was killed
                os.killpg(pid, signal.SIGKILL)
                break
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError):
        connection.send(str(code).encode())
    return 0


def slow_steps() -> None:
    """As the interpreter of a job does it when it loads the session."""
    sys.path.insert(0, str(INTERPRETER))
    import pace

    import lmscale.train.session

    pace.slow(lmscale.train.session)
