"""Real ranks, without each paying for its imports: forks, by forked_processes.py.

``run_starts(script, folder, (1, 2, 4))`` calls the script's ``start(folder, number)`` on 1 rank,
then on 2, then on 4: start 0, 1 and 2. This is for tests that look at numbers; how ranks are
launched is tested with the launcher. ``run_on_ranks(work, 3, folder)`` does a function on 3 ranks.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forked_processes import run_process
from proxied import end_with

if TYPE_CHECKING:
    from lmscale.ranks.ranks import Ranks


def run_starts(script: Path, folder: Path, num_ranks: Sequence[int]) -> None:
    """Run all starts; an assertion fails with their output when a rank of any of them does."""
    folder.mkdir(parents=True, exist_ok=True)
    code, said = run_process("ranks", [script, folder, *num_ranks])
    assert code == 0, said[-6000:]


def run_on_ranks(work: Callable[[Ranks], Any], num_ranks: int, folder: Path) -> list[Any]:
    """What ``work``, a function of a test's file, gives on each rank; it travels as JSON."""
    code, said = run_process(
        "function", [work.__code__.co_filename, work.__name__, folder, num_ranks]
    )
    assert code == 0, said[-6000:]
    return [
        json.loads((folder / f"{work.__name__}-{rank}.json").read_text())
        for rank in range(num_ranks)
    ]


@contextmanager
def one_group() -> Iterator[Ranks]:
    """For a rank: its place, in a process group for the time of the block."""
    import torch

    from lmscale.ranks.ranks import open_process_group, ranks_from_environment

    ranks = ranks_from_environment()
    with open_process_group(ranks, torch.device("cpu")):
        yield ranks


def fork_ranks(num_ranks: int, work: Callable[[], None]) -> None:
    """Do ``work`` in ``num_ranks`` children; the first to fail ends the others, and this process.

    Only before this process has started a thread.
    """
    from launcher.rendezvous import environment_for, find_free_port

    master, parent = ("127.0.0.1", find_free_port()), os.getpid()
    children: set[int] = set()
    for rank in range(num_ranks):
        child = os.fork()
        if child == 0:
            end_with(parent)
            os.environ |= environment_for(
                rank,
                world_size=num_ranks,
                local_rank=rank,
                local_world_size=num_ranks,
                node_rank=0,
                master=master,
            )
            _exit_after(work)
        children.add(child)
    while children:
        child, status = os.wait()
        children.discard(child)
        if status != 0:
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"a rank of {num_ranks} ended with status {status}")


def _exit_after(work: Callable[[], object]) -> None:
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # past the parent's own clean-up


def in_a_fork(work: Callable[[], object]) -> int:
    """How a process ends in which ``work`` is done: its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        _exit_after(work)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_starts(script: str, folder: str, *num_ranks: str) -> None:
    """What the forked process does for ``run_starts``."""
    start = runpy.run_path(script)["start"]
    for number, ranks in enumerate(map(int, num_ranks)):
        fork_ranks(ranks, lambda number=number: start(Path(folder), number))


def fork_function(script: str, name: str, folder: str, num_ranks: str) -> None:
    """What the forked process does for ``run_on_ranks``."""
    import torch.distributed

    work = runpy.run_path(script)[name]

    def of_rank() -> None:
        with one_group() as ranks:
            result = work(ranks)
            # One that leaves at once ends the meeting of those that are still connecting to it.
            torch.distributed.barrier()
        Path(folder, f"{name}-{ranks.rank}.json").write_text(json.dumps(result))

    fork_ranks(int(num_ranks), of_rank)
