"""Kill two ranks at every moment of a save, and look each time what a fresh start goes on from.

    python tests/kill_saves.py --moments 50

The moments are spread evenly over a save's time, and besides there is one before each change that
the save makes to the disk. SIGKILL hits both ranks, or one of them, whose partner goes on alone for
a while. The next start must go on from the newest checkpoint that was committed, and find in it,
number by number, what that start had saved; what was saved says by which start. Every start is a
real one (run, engine, saver) of ranks forked from this process. Linux only.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: two ranks a core

import argparse
import json
import select
import signal
import statistics
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fork_server import load_everything
from forked_ranks import one_group
from forked_starts import fork
from rank_cases import Case, opened
from tiny_run import build_tiny_data, committed_steps

NUM_RANKS = 2
ALL = tuple(range(NUM_RANKS))
# Python's audit events for what changes a folder, and for a file that is opened.
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
MEASURED = 3  # saves in peace, whose median is the time over which the moments are spread
ALONE_SECONDS = 0.15  # for the rank that was not killed, to do harm
PATIENCE_SECONDS = 60.0
MODEL = {"model.width": 128, "model.ffn_width": 512}  # 6 MB
SETTINGS = {
    "train.steps": 1_000_000,
    "checkpoint.keep_last": 2,
    "engine.zero_stage": 1,
    "stream.workers": 0,
    **MODEL,
}


class KillsFailed(SystemExit):  # noqa: N818 - it ends the script with its text
    pass


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When the signal falls, and on whom."""

    victims: tuple[int, ...]
    seconds: float | None = None  # after the ranks have begun to save together
    rank: int = 0  # or before that many changes of this rank
    change: int = 0

    @property
    def text(self) -> str:
        whom = "all ranks" if self.victims == ALL else f"rank {self.victims[0]}"
        if self.seconds is None:
            return f"{whom} before change {self.change} of rank {self.rank}"
        return f"{whom} after {1000 * self.seconds:5.1f} ms"


@dataclass(kw_only=True)
class Seen:
    """What the ranks of one start have told, and what the disk looked like after it."""

    start: int  # the step that it went on from
    attempt: int  # by which start that was saved
    problems: list[str]
    seconds: float  # from the last rank's begin to the commit, if it came to that
    changes: list[int]  # of the disk, by rank, as far as it came
    left: int  # the newest committed checkpoint


class Saves:
    """A run whose starts save once each, and are killed in it."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data, self.run = folder, data, folder / "run"
        self.number = 0
        self.left = self.left_by = 0  # the newest checkpoint, and the start that saved it
        self.outcomes: Counter[str] = Counter()

    def attempt(self, kill: Kill | None) -> Seen:
        """One start that is killed in its save, or right after it; then it is judged."""
        self.number += 1
        told, tell = os.pipe()
        pids = start_ranks(lambda rank: self._work(rank, kill, tell), self.folder / "logs")
        os.close(tell)
        notes = Notes(told)
        try:
            begun = notes.await_all("begin", NUM_RANKS)
            began = time.monotonic()
            if kill is not None and kill.seconds is not None:
                time.sleep(max(0.0, began + kill.seconds - time.monotonic()))
            else:
                notes.await_all("done", NUM_RANKS, or_one="change")
            victims = ALL if kill is None else kill.victims
            for rank in victims:
                os.kill(pids[rank], signal.SIGKILL)
            if victims != ALL:
                notes.read_for(ALONE_SECONDS)
        except EOFError:
            raise KillsFailed(f"the ranks have ended by themselves:\n{self._logs()}") from None
        finally:
            for pid in pids:
                end(pid)
        notes.read_to_end()
        done = [note for note in notes.all if note["event"] == "done"]
        committed = committed_steps(self.run)
        seen = Seen(
            start=begun[0]["start"],
            attempt=begun[0]["attempt"],
            problems=[problem for note in begun for problem in note["problems"]],
            seconds=self._save_seconds(begun, max(committed, default=0)),
            changes=[note["changes"] for note in sorted(done, key=lambda note: note["rank"])],
            left=max(committed, default=0),
        )
        self._judge(kill, seen, is_told=bool(done))
        return seen

    def _judge(self, kill: Kill | None, seen: Seen, *, is_told: bool) -> None:
        what = f"start {self.number} (killed: {kill.text if kill else 'in peace'})"
        if (seen.start, seen.attempt) != (self.left, self.left_by):
            raise KillsFailed(
                f"{what} went on from step {seen.start} of start {seen.attempt}, but step "
                f"{self.left} of start {self.left_by} was committed last:\n{self._logs()}"
            )
        if seen.problems:
            raise KillsFailed(f"{what}: step {seen.start} is not what was saved: {seen.problems}")
        if seen.left not in (self.left, self.left + 1) or (is_told and seen.left == self.left):
            raise KillsFailed(f"{what} left step {seen.left} after {self.left}:\n{self._logs()}")
        is_committed = seen.left > self.left
        if is_committed:
            self.left, self.left_by = seen.left, self.number
        torn = self.run / "checkpoints" / f"step-{self.left + 1:09d}"
        outcome = "committed" if is_committed else "torn" if torn.exists() else "not begun"
        self.outcomes["told" if is_told else outcome] += 1

    def _save_seconds(self, begun: list[dict[str, Any]], newest: int) -> float:
        manifest = self.run / "checkpoints" / f"step-{newest:09d}" / "manifest.json"
        return manifest.stat().st_mtime - max(note["time"] for note in begun) if newest else 0.0

    def _logs(self) -> str:
        logs = sorted((self.folder / "logs").iterdir())
        return "".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)

    def _work(self, rank: int, kill: Kill | None, tell: int) -> int:
        """What one rank does: look what it finds, change all of it, save, and wait to be killed."""

        def note(event: str, **more: Any) -> None:
            os.write(tell, (json.dumps({"event": event, "rank": rank, **more}) + "\n").encode())

        case = Case(name="kills", data=str(self.data), folder=str(self.run), overrides=SETTINGS)
        with one_group() as ranks, opened(case, ranks) as run:
            start = run.start.step
            # In peace, tokens say how many targets were used; here, by which start it was saved.
            problems = find_differences(run, run.start.tokens) if start else []
            fill(run, self.number)
            with saving(run, step=start + 1, attempt=self.number) as save:
                changes = count_changes(kill, rank, lambda: note("change"))
                ranks_meet()
                note(
                    "begin",
                    start=start,
                    attempt=run.start.tokens,
                    problems=problems,
                    time=time.time(),
                )
                changes["is_counting"] = True
                save()
                changes["is_counting"] = False
                note("done", changes=changes["count"])
                while True:
                    signal.pause()


class Notes:
    """What the ranks write into one pipe, a line each."""

    def __init__(self, pipe: int) -> None:
        self._pipe, self._rest = pipe, b""
        self.all: list[dict[str, Any]] = []

    def await_all(self, event: str, count: int, *, or_one: str = "") -> list[dict[str, Any]]:
        """``count`` notes of ``event``, by rank, or one of ``or_one``. Raises ``EOFError``."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            found = [note for note in self.all if note["event"] == event]
            if len(found) == count or any(note["event"] == or_one for note in self.all):
                return sorted(found, key=lambda note: note["rank"])
            self._read(deadline - time.monotonic())
        raise KillsFailed(f"no rank has told of {event!r} for {PATIENCE_SECONDS:.0f} s")

    def read_for(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                self._read(left)
            except EOFError:
                return

    def read_to_end(self) -> None:
        """What the killed ranks had written before."""
        while True:
            try:
                self._read(PATIENCE_SECONDS)
            except EOFError:
                os.close(self._pipe)
                return

    def _read(self, seconds: float) -> None:
        if select.select([self._pipe], [], [], seconds)[0]:
            content = os.read(self._pipe, 1 << 16)
            if not content:
                raise EOFError
            *lines, self._rest = (self._rest + content).split(b"\n")
            self.all += map(json.loads, lines)


def start_ranks(work: Callable[[int], int], logs: Path) -> list[int]:
    from launcher.rendezvous import environment_for, find_free_port

    logs.mkdir(parents=True, exist_ok=True)
    master = ("127.0.0.1", find_free_port())
    pids = []
    for rank in ALL:
        environment = environment_for(
            rank,
            world_size=NUM_RANKS,
            local_rank=rank,
            local_world_size=NUM_RANKS,
            node_rank=0,
            master=master,
        )
        log = logs / f"rank-{rank}.log"
        pids.append(fork(lambda rank=rank: work(rank), log=log, environment=environment))
    return pids


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def ranks_meet() -> None:
    from lmscale.ranks.collectives import barrier

    barrier()


def count_changes(kill: Kill | None, rank: int, told: Callable[[], None]) -> dict[str, Any]:
    """Count this process's changes to the disk from here on; stop it before the planned one."""
    state: dict[str, Any] = {"count": 0, "is_counting": False}
    planned = kill.change if kill is not None and kill.rank == rank else 0

    def hook(event: str, arguments: tuple) -> None:
        if not state["is_counting"]:
            return
        is_written = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in CHANGES or is_written:
            state["count"] += 1
            if state["count"] == planned:
                told()
                os.kill(os.getpid(), signal.SIGSTOP)  # all of its threads; SIGKILL comes next

    sys.addaudithook(hook)
    return state


@contextmanager
def saving(run: Any, *, step: int, attempt: int) -> Iterator[Callable[[], None]]:
    """A function that saves the run as of ``step``, the way of the command."""
    from lmscale.train.progress import Progress, ProgressCounter
    from lmscale.train.saver import Saver

    counter = ProgressCounter(run.start)
    counter.now = Progress(step=step, n=12 * step, tokens=attempt)
    saver = Saver(run=run, counter=counter, ledger=None)

    def save() -> None:
        saver.save(wait=False)  # copied; the rest goes on in the background
        saver.finish()

    yield save
    saver.close()


def fill(run: Any, attempt: int) -> None:
    """Numbers that only this start has, into all that this rank saves."""
    from lmscale.checkpoint.fragments import owned_fragments

    for fragment in owned_fragments(run.engine):
        for kind, tensor in fragment.tensors.items():
            tensor.copy_(pattern(fragment, kind, attempt))


def find_differences(run: Any, attempt: int) -> list[str]:
    """What this rank has loaded that is not what start ``attempt`` had filled in."""
    from lmscale.checkpoint.fragments import owned_fragments

    return [
        f"{kind} of {fragment.parameter}"
        for fragment in owned_fragments(run.engine)
        for kind, tensor in fragment.tensors.items()
        if not bool((tensor == pattern(fragment, kind, attempt)).all())
    ]


def pattern(fragment: Any, kind: str, attempt: int):
    """Small whole numbers, exact in fp32, of a fragment's flat elements."""
    import torch

    base = 8192 * attempt + zlib.crc32(f"{fragment.parameter}/{kind}".encode()) % 8192
    numbers = torch.arange(fragment.offset, fragment.offset + fragment.elements)
    return (numbers % 8191 + base).float()


def run_kills(folder: Path, *, moments: int, data: Path, alternates: bool) -> dict[str, Any]:
    """All kills, and what became of the saves. Raises ``KillsFailed`` with the reason.

    ``alternates``: one kill at each moment, of all ranks and of one of them in turn.
    """
    began = time.monotonic()
    saves = Saves(folder, data)
    calm = [saves.attempt(None) for _ in range(MEASURED)]
    # And a little more, for what follows the commit: old checkpoints are deleted.
    seconds = 1.2 * statistics.median(seen.seconds for seen in calm)
    saves.outcomes.clear()

    def both(number: int, rank: int) -> list[tuple[int, ...]]:
        return [ALL, (rank,)][number % 2 :: 2] if alternates else [ALL, (rank,)]

    for number in range(moments):
        for victims in both(number, number // 2 % NUM_RANKS):
            saves.attempt(Kill(victims=victims, seconds=seconds * (number + 0.5) / moments))
    by_time, saves.outcomes = saves.outcomes, Counter()
    changes = calm[-1].changes
    for rank in ALL:
        for change in range(1, changes[rank] + 1):
            for victims in both(change + rank, rank):
                saves.attempt(Kill(victims=victims, rank=rank, change=change))
    saves.attempt(None)
    return {
        "kills": saves.number - MEASURED - 1,
        "save_seconds": seconds,
        "changes": changes,
        "by time": dict(by_time),
        "by change": dict(saves.outcomes),
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--alternates", action="store_true", help="half as many: the short form")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--data", type=Path, help="tiny data that was built before")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lmscale-kills-") as temporary:
        folder = given.folder or Path(temporary)
        data = given.data or folder / "data"
        folder.mkdir(parents=True, exist_ok=True)
        if not data.exists():
            log = folder / "data.log"
            built = fork(lambda: build_tiny_data(data) or 0, log=log, environment={})
            assert os.waitpid(built, 0)[1] == 0, log.read_text()
        load_everything()
        kills = run_kills(folder, moments=given.moments, data=data, alternates=given.alternates)
        print(json.dumps(kills))


if __name__ == "__main__":
    sys.exit(main())
