"""Kill a piece of work before each change that it makes to the disk, one after the other.

``with open_killer(program) as kill_at:`` runs ``program``, which defines ``work()``, in a process
that forks: ``kill_at(3)`` does ``work()`` in a child that is killed before its third change, and
says whether it came to that; False means that the work was done before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from forked_processes import ENVIRONMENT, ROOT

# Python's audit events for what changes a folder. os.replace is os.rename to them.
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"}


@contextmanager
def open_killer(program: str) -> Iterator[Callable[[int], bool]]:
    with subprocess.Popen(
        [sys.executable, __file__, program],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdin and server.stdout
        stdin, stdout = server.stdin, server.stdout

        def kill_at(change: int) -> bool:
            stdin.write(f"{change}\n")
            stdin.flush()
            code = stdout.readline().strip()
            assert code in ("-9", "0"), f"the work ended with {code or 'its whole process'}"
            return code == "-9"

        yield kill_at
        stdin.close()


def serve(program: str) -> None:
    names: dict[str, Callable[[], None]] = {}
    exec(program, names)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _work(names["work"], int(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _work(work: Callable[[], None], change: int) -> None:
    left = change

    def count(event: str, _: tuple) -> None:
        nonlocal left
        if event in CHANGES:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        work()
    except BaseException as error:
        os._exit(getattr(error, "exit_code", 1))
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
