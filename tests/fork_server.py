"""The process that has loaded torch, DeepSpeed and lmscale, and forks what it is asked for.

``forked_processes.py`` starts it and says what can be asked. A launcher among the forks forks its
ranks in turn (``ForkedRank``).
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from proxied import MAX_REQUEST, end_with, slow_steps, stand_by

COMMAND = ("-m", "lmscale.cli.main")
HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


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


def serve(proxies: socket.socket, askers: socket.socket, end: int) -> None:
    """Fork what the askers' connections and the proxies ask for, until ``end`` can be read.

    Each asker is told the pid of what it has asked for, and later its end. Each process has a place
    in the order of asking as well, since the system gives a pid anew.
    """
    SOCKETS[:] = [proxies, askers]
    running: dict[int, Running] = {}  # by its descriptor
    count = 0
    while True:
        for ready in select.select([end, *SOCKETS, *running], [], [])[0]:
            if ready == end:
                _kill(running.values())
                return
            if ready is proxies:
                connection, _ = proxies.accept()
                _fork(lambda proxy=connection: stand_by(proxy, _fork, _run_proxied))
                connection.close()
            elif ready is askers:
                SOCKETS.append(askers.accept()[0])
            elif ready in running:
                ended = running.pop(ready)
                os.close(ready)
                _, status = os.waitpid(ended.pid, 0)
                code = os.waitstatus_to_exitcode(status)
                _tell(ended.asker, number=ended.number, code=code)
            elif asked := _hear(ready):
                pid = _fork(lambda asked=asked: _become(**json.loads(asked)))
                running[os.pidfd_open(pid)] = Running(asker=ready, number=count, pid=pid)
                _tell(ready, number=count, pid=pid)
                count += 1
            else:
                _kill(process for process in running.values() if process.asker is ready)
                SOCKETS.remove(ready)
                ready.close()


@dataclass(frozen=True, kw_only=True)
class Running:
    """A process that was forked for an asker."""

    asker: socket.socket
    number: int
    pid: int


SOCKETS: list[socket.socket] = []  # that listen, then one for each asker


def _kill(processes: Iterable[Running]) -> None:
    """What they have started too."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _hear(asker: socket.socket) -> bytes:
    try:
        return asker.recv(MAX_REQUEST)
    except ConnectionResetError:  # it has gone, and had not read all that it was told
        return b""


def _tell(asker: socket.socket, **row: int) -> None:
    with suppress(OSError):  # it has gone, or is going
        asker.send(json.dumps(row).encode())


def prepare() -> None:
    """Load everything, and be as a process that is started anew in what a fork inherits."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a shell has ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    load_everything()
    from launcher import local

    local.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": start_rank})
    # Out of the collector's sight: ZeRO 3 of DeepSpeed 0.19.8 collects as it is built, which takes
    # 2 s over all that was imported, and every page it touches is copied for every rank.
    gc.freeze()


def _fork(work: Callable[[], int]) -> int:
    """Do ``work`` in a child that ends with this process, and whose exit code is what it returns.

    Returns the child's number.
    """
    sys.stdout.flush()
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for each in SOCKETS:  # whoever asks sees so when the server has ended
            each.close()
        end_with(parent)
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


def _run_proxied(streams: Sequence[int], request: Mapping[str, Any]) -> int:
    _set_streams(*streams)
    os.chdir(request["folder"])
    _set_environment(request["environment"])
    module, *arguments = request["argv"]
    if module in ("lmscale", COMMAND[1]):
        return _run_command(arguments)
    if module.endswith(".py"):
        return _run_script(request["argv"])
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # it becomes __main__, and runpy warns where it is both
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _set_streams(*descriptors: int) -> None:
    for target, source in enumerate(descriptors):
        os.dup2(source, target)
    # Python's own streams still know whether what was there before could be sought in.
    for target, name in ((1, "stdout"), (2, "stderr")):
        raw = open(target, "wb", buffering=0, closefd=False)  # noqa: SIM115 - for the process
        setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", write_through=True))


def _set_environment(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if environment.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()


def _run_command(arguments: Sequence[str]) -> int:
    """What ``python -m lmscale.cli.main`` does."""
    from lmscale.cli import main

    if "TEST_STEP_PAUSE" in os.environ:
        slow_steps()
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


class ForkedRank:
    """Stands in for ``Popen([PYTHON, "-m", "lmscale.cli.main", …])`` in the launcher: a fork."""

    def __init__(self, argv: Sequence[str], **options: Any) -> None:
        self.returncode: int | None = None
        # A signal between fork and what would be exec waits, in place of meeting the old handler.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        self.pid = _fork(lambda: self._become(argv, before, **options))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @staticmethod
    def _become(
        argv: Sequence[str],
        blocked: set[int],
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
        preexec_fn()  # which blocks SIGUSR2
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked | {signal.SIGUSR2})
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


def main(folder: str, proxies: str, askers: str, owner: str | None = None) -> None:
    """``proxies`` and ``askers``: descriptors of the sockets that listen in ``folder``.

    Ends with the process ``owner``, or else as standard input is closed.
    """
    try:
        end = 0 if owner is None else os.pidfd_open(int(owner))
        prepare()
        serve(socket.socket(fileno=int(proxies)), socket.socket(fileno=int(askers)), end)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # what was loaded need not be taken apart
