"""Where every rank is, in one small file a rank: for the watchdog, and for people.

The loop calls ``phase`` as it goes, which sets attributes and nothing else; a thread writes them to
``RUN/heartbeats/rank-00003.json`` every few seconds. A process has one heartbeat, which code deep
inside the process reaches by this module's functions; without one they do nothing, except that
``phase`` always keeps account of the time. Reading and writing load no torch.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import TypeAdapter

from lmscale.files.jsonl import read_value
from lmscale.files.run_rows import Seconds
from lmscale.files.strangers import Count, Flag, Instant, Text
from lmscale.ranks.attempt import attempt_from_environment, node_name
from lmscale.ranks.ranks import Ranks
from lmscale.watch.phases import BETWEEN_STEPS, START, PhaseClock

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

HEARTBEATS_FOLDER = "heartbeats"
END = "end"  # the rank has left the run in good order
# Of all ranks together: 512 ranks write every 10 s, which a shared file system does not notice.
MAX_WRITES_PER_SECOND = 50.0
# Time in which a process did not run (stopped, suspended with its job) is not time it stood still.
MAX_INTERVALS_AT_ONCE = 3.0
FILE_BYTES = 1024  # always the same, so that a file is overwritten in place by a single write


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A rank's report of one moment."""

    rank: Count
    world_size: Count
    host: Text
    pid: Count
    attempt: Text  # JOB.RESTART under Slurm, else local
    beat: Count  # counts up with every write, as long as the process runs at all
    step: Count
    phase: Text
    place: Count
    """Calls of ``phase`` since the step began. All ranks make the same calls in the same order, so
    (step, place, ticks) shows which rank is behind.
    """
    ticks: Count  # calls of tick since the phase began
    phase_seconds: Seconds
    still_seconds: Seconds  # since the last phase or tick, but for time in which it was stopped
    is_starting: Flag  # until the first step is done
    forward_seconds: Seconds | None
    """Own work of a step: its forward passes and its wait for data, the median of recent steps."""
    time: Instant


_BEAT = TypeAdapter(Beat)


class BeatHook(Protocol):
    """What else happens at every beat, in the heartbeat's thread."""

    def __call__(self, beat: Beat) -> None: ...

    def close(self) -> None: ...


def beat_seconds(heartbeat_seconds: float, world_size: int) -> float:
    """The interval of a rank, longer where many ranks write."""
    return max(heartbeat_seconds, world_size / MAX_WRITES_PER_SECOND)


class Heartbeat:
    """This process's signs of life, for the time of a ``with`` block. Opened by the watchdog."""

    def __init__(
        self,
        folder: str | Path,
        ranks: Ranks,
        *,
        interval: float,
        recent_steps: int = 20,
        hooks: Sequence[BeatHook] = (),
    ) -> None:
        """``interval`` as ``beat_seconds`` gives it; ``recent_steps``: see ``forward_seconds``."""
        self.path = beat_path(folder, ranks.rank)
        self.slowest_figures: dict[str, float] = {}
        self._ranks, self._interval, self._hooks = ranks, interval, tuple(hooks)
        self._who: dict[str, Any] = {
            "rank": ranks.rank,
            "world_size": ranks.world_size,
            "host": node_name(),
            "pid": os.getpid(),
            "attempt": attempt_from_environment().name,
        }
        self._beats = 0
        self._step, self.current_phase, self._place, self._ticks = 0, START, 0, 0
        self.is_starting = True
        self._moves = self._moves_before = 0
        self._still_seconds = 0.0
        self._phase_at = self._moved_at = self._beat_at = time.monotonic()
        self._own_seconds: deque[float] = deque(maxlen=max(1, recent_steps))
        self._stopwatch: _Stopwatch | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._has_warned = False

    def __enter__(self) -> Heartbeat:
        global _current
        self._write(self.observe())
        _current = self
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        global _current
        _current = None
        self._closing.set()
        self._thread.join(self._interval + 1)  # it may be held up by a file system that hangs
        self.phase(END)
        self._write(self.observe())

    def phase(self, name: str, step: int | None = None) -> None:
        """The rank begins something else, in a step of that number from here on."""
        if step is not None and step != self._step:
            self._step, self._place = step, 0
        else:
            self._place += 1
        self.current_phase, self._ticks = name, 0
        self._moves += 1
        self._phase_at = self._moved_at = time.monotonic()

    def tick(self) -> None:
        """Something was done within the phase. Every rank ticks before it waits for the others."""
        self._ticks += 1
        self._moves += 1
        self._moved_at = time.monotonic()

    def own_work(self, device: torch.device) -> AbstractContextManager[Any]:
        """Time a forward pass in a ``with`` block; ``end_step`` adds the passes of a step up."""
        if self._stopwatch is None:
            self._stopwatch = _Stopwatch(is_cuda=device.type == "cuda")
        return self._stopwatch

    def end_step(self, wait_seconds: float) -> None:
        """A step is done, and the device has been waited for.

        Its own work is what the rank does alone: its forward passes and ``wait_seconds`` for data.
        The backward pass and the update hold collectives, in which a fast rank waits for a slow one
        and looks as slow. At ZeRO 3 the forward pass holds them too: there the times of the ranks
        draw together, and only the wait for data still tells them apart.
        """
        self.is_starting = False
        if self._stopwatch is not None and (seconds := self._stopwatch.take()) is not None:
            self._own_seconds.append(seconds + wait_seconds)

    def observe(self) -> Beat:
        """The next beat."""
        now = time.monotonic()
        elapsed = min(now - self._beat_at, MAX_INTERVALS_AT_ONCE * self._interval)
        if self._moves != self._moves_before:
            self._still_seconds = min(now - self._moved_at, elapsed)
        else:
            self._still_seconds += elapsed
        self._moves_before, self._beat_at = self._moves, now
        self._beats += 1
        recent_seconds = self._own_seconds.copy()
        is_full = len(recent_seconds) == recent_seconds.maxlen
        return Beat(
            **self._who,
            beat=self._beats,
            step=self._step,
            phase=self.current_phase,
            place=self._place,
            ticks=self._ticks,
            # The main thread may have moved on since `now`.
            phase_seconds=max(0.0, round(now - self._phase_at, 3)),
            still_seconds=max(0.0, round(self._still_seconds, 3)),
            is_starting=self.is_starting,
            forward_seconds=round(statistics.median(recent_seconds), 6) if is_full else None,
            time=round(time.time(), 3),
        )

    def _run(self) -> None:
        # The ranks came up together: their writes are spread over the interval.
        pause = self._interval * (self._ranks.rank + 1) / self._ranks.world_size
        try:
            while not self._closing.wait(pause):
                pause = self._interval
                beat = self.observe()
                self._write(beat)
                for hook in self._hooks:
                    hook(beat)
        except Exception:  # training goes on; what watches it says why it does not any more
            logger.exception("the heartbeat of rank %d has ended", self._ranks.rank)
        finally:
            for hook in self._hooks:
                hook.close()

    def _write(self, beat: Beat) -> None:
        try:
            overwrite(self.path, asdict(beat))
        except OSError as error:  # a full disk or a file system that is away for a moment
            if not self._has_warned:
                self._has_warned = True
                logger.warning("%s could not be written: %s", self.path, error)


class _Stopwatch:
    """Adds up the time of ``with`` blocks: the device's by events, which nothing waits for, or on
    the CPU the wall's.
    """

    def __init__(self, *, is_cuda: bool) -> None:
        self._is_cuda = is_cuda
        self._began: Any = None
        self._pairs: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self._began = self._mark()

    def __exit__(self, *exception: object) -> None:
        self._pairs.append((self._began, self._mark()))

    def _mark(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take(self) -> float | None:
        """Seconds since the last call; None when the device has not come so far, which the step's
        own wait should prevent.
        """
        pairs, self._pairs = self._pairs, []
        if not self._is_cuda:
            return sum(end - start for start, end in pairs)
        if not all(end.query() for _, end in pairs):
            return None
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3


_current: Heartbeat | None = None
_phases = PhaseClock()  # from this module's import on, with or without a heartbeat


def phase(name: str, step: int | None = None) -> None:
    """The process begins something else: for ``phase_seconds``, and for its heartbeat if one is
    open (``Heartbeat.phase``).
    """
    _phases.enter(name)
    if _current is not None:
        _current.phase(name, step)


def phase_seconds() -> dict[str, float]:
    """Seconds of this process in each phase so far."""
    return _phases.seconds()


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """A block in which the main thread tells ``listener`` each phase as it begins, and first the
    one that it is in.
    """
    listener(_phases.current)
    _phases.listener = listener
    try:
        yield
    finally:
        _phases.listener = None


# The others are the methods of this process's heartbeat, if one is open.


def current_phase() -> str:
    """What this process is at; empty without a heartbeat."""
    return "" if _current is None else _current.current_phase


def is_starting() -> bool:
    """Until the first step of this process is done."""
    return _current is None or _current.is_starting


def tick() -> None:
    if _current is not None:
        _current.tick()


def own_work(device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if _current is None else _current.own_work(device)


def end_step(wait_seconds: float) -> None:
    _phases.enter(BETWEEN_STEPS)  # the time up to the next phase is no part of the step
    if _current is not None:
        _current.end_step(wait_seconds)


def set_slowest(rank: int, ratio: float) -> None:
    """Rank 0's finding, for the trackers: whose own work takes longest, and by how much."""
    if _current is not None:
        figures = {"speed/slowest_rank": float(rank), "speed/slowest_ratio": ratio}
        _current.slowest_figures = figures


def slowest_figures() -> dict[str, float]:
    return {} if _current is None else _current.slowest_figures


def beat_path(folder: str | Path, rank: int) -> Path:
    return Path(folder) / HEARTBEATS_FOLDER / f"rank-{rank:05d}.json"


def overwrite(path: Path, value: Any) -> None:
    """Write JSON over a file's earlier content, at a length that does not change.

    Not a rename: a new name takes some network file systems a minute to show, and every interval a
    new file a rank is hard on their metadata. A reader may see half of it, and takes the next.
    """
    text = json.dumps(value, ensure_ascii=False)
    content = text.encode(errors="backslashreplace").ljust(FILE_BYTES - 1) + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)  # also what sends it off on NFS


def read_beat(path: Path) -> Beat | None:
    """A rank's heartbeat; None for a file that is missing, half-written, or says anything else."""
    return read_value(path, _BEAT)


def read_heartbeats(folder: str | Path) -> list[Beat]:
    """The last heartbeats of a run's newest start, in the order of the ranks."""
    paths = sorted((Path(folder) / HEARTBEATS_FOLDER).glob("rank-*.json"))
    return [beat for beat in map(read_beat, paths) if beat is not None]
