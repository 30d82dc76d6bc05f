"""What a test cluster asks the machine for: free ports, and the processes that run."""

from __future__ import annotations

import os
import re
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

FIRST_PORT, LAST_PORT, PORT_STEP = 19_000, 29_000, 32


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process on a node, by its number here, outside of the cluster."""

    pid: int
    parent: int
    name: str
    command: str

    def send(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)


def reserve_ports() -> tuple[socket.socket, int]:
    """Ports for one cluster: its block is taken as long as the socket is open."""
    for base in range(FIRST_PORT, LAST_PORT, PORT_STEP):
        reservation = socket.socket()
        try:
            reservation.bind(("0.0.0.0", base + PORT_STEP - 1))
            for port in range(base, base + PORT_STEP - 1):
                with socket.socket() as trial:
                    trial.bind(("0.0.0.0", port))
        except OSError:
            reservation.close()
            continue
        return reservation, base
    raise RuntimeError(f"no block of {PORT_STEP} free ports between {FIRST_PORT} and {LAST_PORT}")


def listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def read_process(pid: int) -> Process:
    folder = Path(f"/proc/{pid}")
    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    name = (folder / "comm").read_text().strip()
    return Process(pid=pid, parent=parent, name=name, command=command.strip())


def is_first(pid: int) -> bool:
    """Whether the process is the first one of its own pid namespace."""
    status = Path(f"/proc/{pid}/status").read_text()
    numbers = re.search(r"^NSpid:(.*)$", status, re.MULTILINE)
    return numbers is not None and numbers[1].split()[-1] == "1"


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
