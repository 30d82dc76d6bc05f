"""Real `lmscale` processes without each paying for its imports: forks of one that has loaded all.

``with open_commands(folder) as lmscale: lmscale("train", config)`` runs the command in a process of
its own, as a lone rank, and says how it ended and what it printed.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from forked_ranks import load_everything
from tiny_run import ENVIRONMENT, ROOT, Ended


class Commands:
    """Runs one command after the other; made by ``open_commands``."""

    def __init__(self, server: subprocess.Popen[str], output: Path) -> None:
        self._server, self._output = server, output

    def __call__(
        self,
        *arguments: str | Path,
        max_file_bytes: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """``max_file_bytes``: no file may grow beyond it, as on a disk that is full.

        ``environment`` is added to that of this process.
        """
        began = time.monotonic()
        request = {
            "arguments": [str(argument) for argument in arguments],
            "output": str(self._output),
            "max_file_bytes": max_file_bytes,
            "environment": dict(environment or {}),
        }
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        code = self._server.stdout.readline()
        assert code, "the process that forks the commands has ended"
        return Ended(
            code=int(code), output=self._output.read_text(), seconds=time.monotonic() - began
        )


@contextmanager
def open_commands(folder: Path) -> Iterator[Commands]:
    """Start the process that loads everything; ``folder`` takes the commands' output."""
    environment = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
    with subprocess.Popen(
        [sys.executable, __file__],
        cwd=ROOT,
        env={**environment, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        yield Commands(server, folder / "output.txt")
        assert server.stdin
        server.stdin.close()


_OF_RANKS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"}


def serve() -> None:
    load_everything()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(
    arguments: list[str], output: str, max_file_bytes: int | None, environment: dict[str, str]
) -> None:
    """What ``python -m lmscale.cli.main`` does, and never return."""
    from lmscale.cli.main import main

    code = 1
    try:
        for name, flags, target in (
            (os.devnull, os.O_RDONLY, 0),
            (output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 1),
        ):
            os.dup2(os.open(name, flags), target)
        os.dup2(1, 2)
        if max_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
        os.environ |= environment
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
