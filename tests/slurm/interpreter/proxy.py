"""A process of a job that loads nothing itself: it stands for a fork of one that has.

The fork (tests/proxied.py) gets this process's streams, folder, environment, blocked signals and
namespaces, so it is a process of the same node. What Slurm sees is this process: it passes on
every signal, ends as the fork ends, and the fork does not outlive it. Its place in Slurm's tree of
processes, and the seconds in which torch is loaded, are what it does not show; a test that needs
them asks for a rank of its own (``Lab.submit(forked=False)``).
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress

SPACES = ("pid", "uts", "mnt")


def stand_for_a_fork(address: str, argv: Sequence[str]) -> None:
    """Of ``python -m MODULE …`` or ``python SCRIPT …``, whose words from there on are ``argv``.

    Never returns.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    request = {
        "argv": argv,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "blocked": sorted(blocked),
    }
    spaces = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in SPACES]
    socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2, *spaces])
    passed_on = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}

    def pass_on(number: int, frame: object) -> None:
        with suppress(OSError):  # it has just ended, which is heard below
            connection.send(bytes([number]))

    for number in passed_on:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    code = int(connection.recv(16) or b"1")
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code in passed_on else None
        os.kill(os.getpid(), -code)
    os._exit(code)
