"""Real processes without each paying for its imports: a server loads everything once, then forks.

    start_process("command", ["train", config], output=log)     `lmscale train CONFIG`
    start_process("ranks", [script, folder, 1, 2])              forked_ranks.py's starts
    start_process("function", [file, name, folder, 3])          one of its functions on 3 ranks
    start_process("script", [script, "--seed", 1])              `python SCRIPT --seed 1`

Loading torch and DeepSpeed takes a core four seconds and more; a fork takes none. The server
(fork_server.py) runs beside the process that asks for one and ends with it; the workers of
pytest-xdist share one (``share_server``). What it has forked ends with the process that asked, and
with the server; where that was killed, the next who asks starts another. A fork gets the asker's
environment and a session of its own, as a process that is started anew would.
What an interpreter does before `lmscale` is loaded is not the point here; tests/cli and
tests/test_docs.py start real ones.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from proxied import open_socket

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# A process that trains so little must not fight for cores with the other ranks.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
MAX_ROW = 1 << 10  # bytes of what the server tells at once
_OF_RANKS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_PORT"}


class Process:
    """A forked process, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(
        self, server: Server, number: int, pid: int, output: Path, *, is_own: bool
    ) -> None:
        self._server, self._number, self._output, self._is_own = server, number, output, is_own
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.find_code(self._number, 0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (1e9 if timeout is None else timeout)
        while self.returncode is None:
            left = deadline - time.monotonic()
            if left < 0:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.returncode = self._server.find_code(self._number, min(left, 0.5))
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it has printed, when it has ended; once more, nothing."""
        self.wait(timeout)
        said = self._output.read_text(errors="replace") if self._output.exists() else ""
        if self._is_own:
            self._output.unlink(missing_ok=True)
        return said, None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def kill_session(self) -> None:
        """End it and what it has started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def start_process(
    work: str,
    arguments: Sequence[object],
    *,
    output: Path | None = None,
    errors: Path | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    max_file_bytes: int | None = None,
    server: Server | None = None,
) -> Process:
    """Start ``work``; its stdout goes to ``output``, its stderr to ``errors``, by default the same.

    ``environment`` is added to this process's own. ``max_file_bytes``: no file may grow beyond it,
    as on a disk that is full.
    """
    is_own = output is None
    if output is None:
        descriptor, name = tempfile.mkstemp(prefix="lmscale-output-")
        os.close(descriptor)
        output = Path(name)
    output.touch()
    given = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
    server = server or _server(os.getpid())
    number, pid = server.ask(
        work=work,
        arguments=[str(argument) for argument in arguments],
        output=str(output),
        errors=str(errors or output),
        folder=str(folder or Path.cwd()),
        environment={**given, **server.environment, **(environment or {})},
        max_file_bytes=max_file_bytes,
    )
    return Process(server, number, pid, output, is_own=is_own)


def run_process(work: str, arguments: Sequence[object], **options: Any) -> tuple[int, str]:
    """Do ``work`` to its end: the exit code and what it printed."""
    process = start_process(work, arguments, **options)
    try:
        said, _ = process.communicate()
    finally:
        process.kill_session()
    return process.wait(), said


class Server:
    """The process that has loaded everything, seen from one that asks.

    Without ``folder`` it is started, and ends with ``close`` or with this process; else the one
    whose sockets lie there is asked.
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, *, folder: Path | None = None
    ) -> None:
        self.environment = ENVIRONMENT | (environment or {})  # of all that it forks
        self._process = None
        if folder is None:
            folder, self._process = _start_server(self.environment)
        self.folder, self.socket = folder, f"{folder}/proxies"
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._connection.connect(f"{folder}/askers")
        except OSError:
            self._connection.close()
            raise
        self._lock = threading.RLock()
        self._codes: dict[int, int] = {}
        self._forked: list[tuple[int, int]] = []
        atexit.register(self.close)

    def ask(self, **request: Any) -> tuple[int, int]:
        """The process that was forked for the request: its place in the order, and its pid."""
        with self._lock:
            self._connection.sendall(json.dumps(request).encode())
            while not self._forked:
                self._read(1.0)
            return self._forked.pop()

    def find_code(self, number: int, seconds: float) -> int | None:
        """The exit code of a process, as ``Popen.returncode``; waits for it for ``seconds``."""
        with self._lock:
            if number not in self._codes:
                self._read(seconds)
            return self._codes.get(number)

    def has_ended(self) -> bool:
        try:
            with self._lock:
                while self._read(0.0):
                    pass
        except ConnectionError:
            return True
        return False

    def _read(self, seconds: float) -> bool:
        """Hear one thing within ``seconds``; a ConnectionError if the server has ended."""
        if not select.select([self._connection], [], [], seconds)[0]:
            return False
        told = self._connection.recv(MAX_ROW)
        if not told:
            raise ConnectionError("the process that forks the others has ended")
        row = json.loads(told)
        if "code" in row:
            self._codes[row["number"]] = row["code"]
        else:
            self._forked.append((row["number"], row["pid"]))
        return True

    def close(self) -> None:
        """End all that was forked for this process, and a server of its own."""
        self._connection.close()
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()


def _start_server(
    environment: Mapping[str, str], *, owner: int | None = None
) -> tuple[Path, subprocess.Popen[bytes]]:
    """The folder of its sockets, which accept from now on, and the server's process.

    It ends with the process ``owner``, or else as its standard input is closed.
    """
    folder = Path(tempfile.mkdtemp(prefix="lmscale-forks-", dir="/tmp"))  # a socket's path is short
    before = {**os.environ, **environment}
    paths = [str(TESTS), str(ROOT), *before.get("PYTHONPATH", "").split(os.pathsep)]
    with open_socket(f"{folder}/proxies") as proxies, open_socket(f"{folder}/askers") as askers:
        descriptors = (proxies.fileno(), askers.fileno())
        words = [folder, *descriptors, *([] if owner is None else [owner])]
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "fork_server.py"), *map(str, words)],
            cwd=ROOT,
            env=before | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE if owner is None else subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,  # Ctrl-C is for pytest
        )
    return folder, process


def forking() -> dict[str, str]:
    """The environment in which ``python -m …`` of what loads torch stands for a fork.

    For processes that another program starts: slurm/interpreter says how.
    """
    interpreter = TESTS / "slurm" / "interpreter"
    return {"PYTHONPATH": str(interpreter), "TEST_FORK_SOCKET": _server(os.getpid()).socket}


def share_server(note: Path, *, owner: int) -> None:
    """Have this process ask the server that all ask who name this file; the first one starts it.

    It ends with the process ``owner``, which outlives them all.
    """
    _SHARED[os.getpid()] = (note, owner)


def _server(asker: int) -> Server:
    """Of this process: a fork of one that has asked, or that shares, asks for one of its own."""
    server = _ASKED.get(asker)
    if server is not None and server.has_ended():
        print(f"The server in {server.folder} has ended: another is asked.", file=sys.stderr)
        shutil.rmtree(server.folder, ignore_errors=True)  # which one that was killed has left
        server = None
    if server is None:
        server = _ASKED[asker] = _shared_server(*_SHARED[asker]) if asker in _SHARED else Server()
    return server


def _shared_server(note: Path, owner: int) -> Server:
    with FileLock(f"{note}.lock"):
        try:
            return Server(folder=Path(note.read_text()))
        except (FileNotFoundError, ConnectionError):  # nobody has asked yet, or it has ended
            folder, process = _start_server(ENVIRONMENT, owner=owner)
            _STARTED.append(process)
            note.write_text(str(folder))
            return Server(folder=folder)


_ASKED: dict[int, Server] = {}
_SHARED: dict[int, tuple[Path, int]] = {}
_STARTED: list[subprocess.Popen[bytes]] = []  # which Python warns of where nobody refers to it
