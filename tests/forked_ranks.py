"""Real ranks, without each paying for its imports: one process loads DeepSpeed once, then forks.

``run_starts(script, folder, (1, 2, 4))`` calls the script's ``start(folder, number)`` on 1 rank,
then on 2, then on 4: start 0, 1 and 2. Loading takes some four seconds; a fork takes none. This is
for tests that look at numbers; how ranks are launched is tested with the launcher.
"""

from __future__ import annotations

import gc
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmscale.ranks.ranks import Ranks

TESTS = Path(__file__).parent


def run_starts(script: Path, folder: Path, num_ranks: Sequence[int]) -> None:
    """Run all starts; an assertion fails with their output when a rank of any of them does."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(TESTS), str(TESTS.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    ended = subprocess.run(
        [sys.executable, __file__, str(script), str(folder), *map(str, num_ranks)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-6000:]


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

    master = ("127.0.0.1", find_free_port())
    children: set[int] = set()
    for rank in range(num_ranks):
        child = os.fork()
        if child == 0:
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


def _exit_after(work: Callable[[], None]) -> None:
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


def load_everything() -> None:
    """Import what a training rank imports, also what is imported late; start no thread."""
    import torch
    import torch._dynamo
    import torch.utils.tensorboard

    import lmscale.cli.app
    import lmscale.evaluation
    import lmscale.train  # noqa: F401
    from lmscale.engine.build import prepare_deepspeed

    prepare_deepspeed(torch.device("cpu"))
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - by its check of optimizers


def main(script: str, folder: str, *num_ranks: str) -> None:
    load_everything()
    # Out of the collector's sight: ZeRO 3 of DeepSpeed 0.19.8 collects as it is built, which takes
    # 2 s over all that was imported, and every page it touches is copied for every rank.
    gc.freeze()
    start = runpy.run_path(script)["start"]
    for number, ranks in enumerate(map(int, num_ranks)):
        fork_ranks(ranks, lambda number=number: start(Path(folder), number))


if __name__ == "__main__":
    main(*sys.argv[1:])
