"""Starts of a run, as the launcher does them, without each rank paying for its imports.

A process that has called ``load_everything`` and has no threads forks the ranks; each is the real
``lmscale train`` with the launcher's variables. So a start costs a second or two, not ten. What
their ends mean together is the launcher's own judgement.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.outcome import MOMENT_SECONDS, RankEnd, judge
from launcher.rendezvous import environment_for, find_free_port

GRACE_SECONDS = 5.0  # for the other ranks, after one has failed
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


class Hanging(Exception):  # noqa: N818 - a start that has not ended
    pass


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a start ended."""

    code: int  # what the launcher would exit with
    codes: tuple[int, ...]  # the ranks', negative for a signal
    seconds: float
    output: str  # of all ranks, one after the other


class ForkedStart:
    """The ranks of one start, running; ``wait`` for them, and ``kill`` them in any case."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        num_ranks: int,
        logs: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Begin ``lmscale ARGUMENTS`` on every rank; their output goes to ``logs``, renewed."""
        self.began = time.monotonic()
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = [logs / f"rank-{rank}.log" for rank in range(num_ranks)]
        master = ("127.0.0.1", find_free_port())
        self.pids: list[int] = []
        for rank, log in enumerate(self.logs):
            given = environment_for(
                rank,
                world_size=num_ranks,
                local_rank=rank,
                local_world_size=num_ranks,
                node_rank=0,
                master=master,
            )
            self.pids.append(
                fork(
                    lambda: run_command([str(argument) for argument in arguments]),
                    log=log,
                    environment={**(environment or {}), **given},
                )
            )
        self.ends: dict[int, RankEnd] = {}

    def kill(self, ranks: Iterable[int] | None = None) -> None:
        """SIGKILL to these ranks at once, or to all that still run."""
        for rank in range(len(self.pids)) if ranks is None else ranks:
            if rank not in self.ends:
                os.kill(self.pids[rank], signal.SIGKILL)

    def is_running(self) -> bool:
        return len(self.ends) < len(self.pids)

    def reap(self) -> None:
        """See which ranks have ended, and end those that are left over by a failed one."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.ends:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    end_group(pid)
                    code = os.waitstatus_to_exitcode(status)
                    self.ends[rank] = RankEnd(rank=rank, code=code, ended_at=time.monotonic())
        bad = [end.ended_at for end in self.ends.values() if end.code not in (0, 75)]
        if bad and time.monotonic() > min(bad) + MOMENT_SECONDS + GRACE_SECONDS:
            self.kill()

    def wait(self, *, patience: float = 120.0) -> Ended:
        """Until all ranks have ended. Raises ``Hanging`` when they have not after ``patience``."""
        deadline = time.monotonic() + patience
        while self.is_running():
            self.reap()
            if time.monotonic() > deadline:
                self.close()
                raise Hanging(f"a start has not ended after {patience:.0f} s:\n{self.read_logs()}")
            time.sleep(0.005)
        ends = [self.ends[rank] for rank in range(len(self.pids))]
        outputs = {rank: (str(log), log.read_text()) for rank, log in enumerate(self.logs)}
        return Ended(
            code=judge(ends, outputs=outputs).exit_code,
            codes=tuple(end.code for end in ends),
            seconds=time.monotonic() - self.began,
            output=self.read_logs(),
        )

    def read_logs(self) -> str:
        return "".join(f"--- rank {rank}\n{log.read_text()}" for rank, log in enumerate(self.logs))

    def close(self) -> None:
        self.kill()
        while self.is_running():
            self.reap()
            time.sleep(0.005)


def fork(work: Callable[[], int], *, log: Path, environment: Mapping[str, str]) -> int:
    """Do ``work`` in a child with a process group of its own; its result is the exit code.

    Only before this process has started a thread.
    """
    sys.stdout.flush()
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        _die_with(parent)
        _redirect(log)
        for name in OF_RANKS:
            os.environ.pop(name, None)
        os.environ |= environment
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # past the parent's own clean-up


def run_command(arguments: Sequence[str]) -> int:
    from lmscale.cli.main import main

    return main(list(arguments))


def end_group(pid: int) -> None:
    """The loader workers that a rank may have left."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _die_with(parent: int) -> None:
    from launcher.local import _die_with as arrange

    arrange(parent)()


def _redirect(log: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
