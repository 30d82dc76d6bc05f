"""Real processes without each paying for its imports: a server loads everything once, then forks.

    start_process("command", ["train", config], output=log)     `lmscale train CONFIG`
    start_process("ranks", [script, folder, 1, 2])              forked_ranks.py's starts
    start_process("function", [file, name, folder, 3])          one of its functions on 3 ranks
    start_process("script", [script, "--seed", 1])              `python SCRIPT --seed 1`

Loading torch and DeepSpeed takes a core four seconds and more; a fork takes none. The server runs
beside each process that asks for one (a worker of pytest-xdist, a script) and ends with it, with
all that it has forked. A fork gets the asker's environment and a session of its own, as a process
that is started anew would. A launcher among them forks its ranks in turn. What an interpreter does
before `lmscale` is loaded is not the point here; tests/cli and tests/test_docs.py start real ones.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# A process that trains so little must not fight for cores with the other ranks.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
COMMAND = ("-m", "lmscale.cli.main")
HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_OF_RANKS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_PORT"}


# ---- The side that asks


class Process:
    """A forked process, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(self, server: Server, pid: int, output: Path, *, is_own: bool) -> None:
        self._server, self._output, self._is_own = server, output, is_own
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.find_code(self.pid, 0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (1e9 if timeout is None else timeout)
        while self.returncode is None:
            left = deadline - time.monotonic()
            if left < 0:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.returncode = self._server.find_code(self.pid, min(left, 0.5))
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
    server = _server(os.getpid())
    pid = server.ask(
        work=work,
        arguments=[str(argument) for argument in arguments],
        output=str(output),
        errors=str(errors or output),
        folder=str(folder or Path.cwd()),
        environment={**given, **ENVIRONMENT, **(environment or {})},
        max_file_bytes=max_file_bytes,
    )
    return Process(server, pid, output, is_own=is_own)


def run_process(work: str, arguments: Sequence[object], **options: Any) -> tuple[int, str]:
    """Do ``work`` to its end: the exit code and what it printed."""
    process = start_process(work, arguments, **options)
    try:
        said, _ = process.communicate()
    finally:
        process.kill_session()
    return process.wait(), said


class Server:
    """The process that has loaded everything, seen from the one that asks."""

    def __init__(self) -> None:
        paths = [str(TESTS), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for pytest
        )
        self._lock = threading.RLock()
        self._rest = b""
        self._codes: dict[int, int] = {}
        self._pids: list[int] = []
        atexit.register(self.close)

    def ask(self, **request: Any) -> int:
        """The number of the process that was forked for the request."""
        with self._lock:
            stdin = self._process.stdin
            assert stdin is not None
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            while not self._pids:
                self._read(1.0)
            return self._pids.pop()

    def find_code(self, pid: int, seconds: float) -> int | None:
        """The exit code of a process, as ``Popen.returncode``; waits for it for ``seconds``."""
        with self._lock:
            if pid not in self._codes:
                self._read(seconds)
            return self._codes.get(pid)

    def _read(self, seconds: float) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], seconds)[0]:
            return
        told = os.read(stdout.fileno(), 1 << 16)
        assert told, "the process that forks the others has ended"
        *lines, self._rest = (self._rest + told).split(b"\n")
        for row in map(json.loads, lines):
            if "code" in row:
                self._codes[row["pid"]] = row["code"]
            else:
                self._pids.append(row["pid"])

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()


@cache
def _server(asker: int) -> Server:
    """One for each process that asks: a fork of one that has asked has none."""
    return Server()


# ---- The side that forks


def load_everything() -> None:
    """Import what a training rank imports, also what is imported late; start no thread."""
    import torch
    import torch._dynamo
    import torch.utils.tensorboard

    import launcher
    import lmscale

    for package in (lmscale, launcher):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    from lmscale.engine.build import prepare_deepspeed

    prepare_deepspeed(torch.device("cpu"))
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - by its check of optimizers


def serve() -> None:
    """Fork what standard input asks for, a line each; tell each number, and later its end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a shell has ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    load_everything()
    from launcher import supervise

    supervise.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": start_rank})
    # Out of the collector's sight: ZeRO 3 of DeepSpeed 0.19.8 collects as it is built, which takes
    # 2 s over all that was imported, and every page it touches is copied for every rank.
    gc.freeze()
    running: dict[int, int] = {}  # of a process's descriptor: its number
    rest = b""
    while True:
        for ready in select.select([0, *running], [], [])[0]:
            if ready:
                pid = running.pop(ready)
                os.close(ready)
                _, status = os.waitpid(pid, 0)
                _tell(pid=pid, code=os.waitstatus_to_exitcode(status))
                continue
            asked = os.read(0, 1 << 16)
            if not asked:
                for pid in running.values():
                    os.killpg(pid, signal.SIGKILL)
                return
            *lines, rest = (rest + asked).split(b"\n")
            for line in lines:
                pid = _fork(lambda line=line: _become(**json.loads(line)))
                running[os.pidfd_open(pid)] = pid
                _tell(pid=pid)


def _tell(**row: int) -> None:
    os.write(1, json.dumps(row).encode() + b"\n")


def _fork(work: Callable[[], int]) -> int:
    """Do ``work`` in a child, whose exit code is what it returns; the child's number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        code = work()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # past the parent's own clean-up


def _become(
    work: str,
    arguments: list[str],
    output: str,
    errors: str,
    folder: str,
    environment: dict[str, str],
    max_file_bytes: int | None,
) -> int:
    null = os.open(os.devnull, os.O_RDONLY)
    files = [
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for path in (output, errors)
    ]
    _set_streams(null, *files)
    os.chdir(folder)
    if max_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    _set_environment(environment)
    return WORKS[work](arguments)


def _set_streams(*descriptors: int) -> None:
    for target, source in enumerate(descriptors):
        os.dup2(source, target)


def _set_environment(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if environment.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()


def _run_command(arguments: Sequence[str]) -> int:
    """What ``python -m lmscale.cli.main`` does."""
    from lmscale.cli import main

    sys.modules["__main__"] = main  # which multiprocessing's fresh interpreters import anew
    sys.argv = [str(main.__file__), *arguments]
    return main.main(list(arguments))


def _run_script(arguments: Sequence[str]) -> int:
    sys.argv = list(arguments)
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")
    return 0


def _run_ranks(arguments: Sequence[str]) -> int:
    from forked_ranks import fork_starts

    fork_starts(*arguments)
    return 0


def _run_function(arguments: Sequence[str]) -> int:
    from forked_ranks import fork_function

    fork_function(*arguments)
    return 0


WORKS = {
    "command": _run_command,
    "script": _run_script,
    "ranks": _run_ranks,
    "function": _run_function,
}


# ---- Inside a launcher that is such a fork


class ForkedRank:
    """Stands in for ``Popen([PYTHON, "-m", "lmscale.cli.main", …])`` in the launcher: a fork."""

    def __init__(self, argv: Sequence[str], **options: Any) -> None:
        self.returncode: int | None = None
        self.pid = _fork(lambda: self._become(argv, **options))

    @staticmethod
    def _become(
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: Any,
        preexec_fn: Callable[[], None],
        **of_popen: Any,
    ) -> int:
        assert of_popen.pop("start_new_session") and of_popen.keys() == {"stdin", "stderr"}
        for number in HANDLED:  # a new program hears none of what the old one handled
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        preexec_fn()
        out = 1 if stdout is None else stdout.fileno()
        _set_streams(os.open(os.devnull, os.O_RDONLY), out, 2 if stdout is None else out)
        _set_environment(env)
        return _run_command(argv[1 + len(COMMAND) :])

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def start_rank(argv: Sequence[str], **options: Any) -> Any:
    is_rank = tuple(argv[:3]) == (sys.executable, *COMMAND)
    return (ForkedRank if is_rank else subprocess.Popen)(argv, **options)


if __name__ == "__main__":
    serve()
