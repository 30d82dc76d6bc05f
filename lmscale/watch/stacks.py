"""What a rank was doing: its stacks and those of its loader workers, written to the run's logs.

Three ways lead there. The watchdog asks (``dump``). A person sends SIGQUIT, which needs no thread
of the process to run Python. And a net, armed anew at every heartbeat, fires in a process whose
interpreter is stuck, so that no thread of it can run Python at all: it dumps from C, and ends it.
"""

from __future__ import annotations

import faulthandler
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from lmscale.ranks.attempt import node_name

PYSPY_SECONDS = 10
NCCL_SECONDS = 10.0


def stacks_path(folder: str | Path, rank: int) -> Path:
    return Path(folder) / "logs" / f"stacks-rank-{rank:05d}.txt"


class StackDumps:
    """This rank's file of stacks, open for the time of a run. Appended to over all attempts."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        path = stacks_path(folder, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Kept open: what writes in a signal handler or without the interpreter cannot open it.
        self._file = open(path, "a", encoding="utf-8")
        self._slow: threading.Thread | None = None
        faulthandler.register(signal.SIGQUIT, self._file, all_threads=True)

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.unregister(signal.SIGQUIT)
        self.wait(PYSPY_SECONDS)
        if self._slow is None or not self._slow.is_alive():
            self._file.close()
            path = stacks_path(self._folder, self._rank)
            if path.stat().st_size == 0:  # nothing happened: no file a rank for that
                path.unlink()

    def arm(self, seconds: float, *, is_last: bool) -> None:
        """Dump from C, and end the process if ``is_last``, unless armed again in ``seconds``."""
        faulthandler.dump_traceback_later(seconds, exit=is_last, file=self._file)

    def dump(self, title: str, *, others: Mapping[int, int] | None = None) -> None:
        """Write the stacks of all threads now; what may take long follows from another thread.

        ``others``, rank to process, are ranks of this node that cannot dump their own stacks: the
        kernel's view of them goes to their files.
        """
        self._say(_headline(f"{title} (process {os.getpid()})"))
        faulthandler.dump_traceback(self._file, all_threads=True)
        if self._slow is None or not self._slow.is_alive():
            self._slow = threading.Thread(
                target=self._dump_slow, args=(title, others or {}), name="stacks", daemon=True
            )
            self._slow.start()

    def wait(self, seconds: float) -> None:
        """Give the slow part of the last dump time to end."""
        if self._slow is not None:
            self._slow.join(seconds)

    def _dump_slow(self, title: str, others: Mapping[int, int]) -> None:
        for rank, pid in others.items():
            with open(stacks_path(self._folder, rank), "a", encoding="utf-8") as file:
                file.write(_headline(f"seen by {title}") + _describe_process(pid))
        self._say("".join(map(_describe_process, children_of(os.getpid()))))
        self._say(_pyspy(os.getpid()))
        _dump_nccl_recorder(self._folder, self._rank)

    def _say(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()  # faulthandler writes past Python's buffer


def _headline(title: str) -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return f"\n==== {now} on {node_name()}: {title}\n"


def children_of(pid: int) -> list[int]:
    """The processes that any thread of ``pid`` has started and that still run; Linux, else none."""
    children: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += map(int, path.read_text().split())
        except OSError:  # that thread has just ended
            continue
    return sorted(children)


def _describe_process(pid: int) -> str:
    """The kernel's view of a process, and its stacks where py-spy is installed."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
        status = Path(f"/proc/{pid}/status").read_text()
        waits_in = Path(f"/proc/{pid}/wchan").read_text().strip("0\n") or "nothing"
    except OSError as error:
        return f"---- process {pid}: {error.strerror}\n"
    kind = "loader worker, process" if "lmscale.stream.worker" in command else "process"
    match = re.search(r"^State:\s*(.*)", status, re.MULTILINE)
    state = match[1] if match else "unknown"
    return f"---- {kind} {pid}: state {state}, waits in {waits_in}\n{_pyspy(pid)}"


def _pyspy(pid: int) -> str:
    """py-spy's stacks of a process, or the reason for none; empty without py-spy."""
    places = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    program = shutil.which("py-spy", path=places)
    if program is None:
        return ""
    # Else py-spy would stop the process while it reads, this one included.
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        dump = subprocess.run(
            command, capture_output=True, text=True, timeout=PYSPY_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"py-spy: {error}\n"
    return dump.stdout if dump.returncode == 0 else f"py-spy: {dump.stderr.strip()}\n"


def _dump_nccl_recorder(folder: Path, rank: int) -> None:
    """NCCL's last collectives, as ``torchfrtrace -p nccl-rank- logs`` reads them."""
    torch = sys.modules.get("torch")
    dist = getattr(torch, "distributed", None)
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return
    # Only builds with NCCL have it: torch 2.9 to 2.13, torch/csrc/distributed/c10d/init.cpp.
    recorder = getattr(sys.modules.get("torch._C._distributed_c10d"), "_dump_nccl_trace", None)
    if recorder is None or dist.get_backend() != "nccl":
        return

    def dump() -> None:
        content = recorder(includeCollectives=True, includeStackTraces=True, onlyActive=False)
        (folder / "logs" / f"nccl-rank-{rank:05d}").write_bytes(content)

    # It may wait for a lock that a hanging collective holds.
    thread = threading.Thread(target=dump, name="nccl recorder", daemon=True)
    thread.start()
    thread.join(NCCL_SECONDS)
