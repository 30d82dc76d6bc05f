"""A loader worker: a light process (no torch) that reads steps into memory its rank shares."""

from __future__ import annotations

import mmap
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from lmscale.config.batch import BatchPlan
from lmscale.runs import faults
from lmscale.stream.batches import Rows
from lmscale.stream.stream import Stream

# The rank decides when to stop, but Slurm's scancel --signal and Ctrl-C reach its workers as well.
IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
IGNORED_SIGNALS += (signal.SIGQUIT,)  # Ctrl-\ asks the rank for its stacks
ALIGNMENT = 64


@dataclass(frozen=True, kw_only=True)
class LoaderJob:
    """Which samples to read: one rank's share of ``num_steps`` steps."""

    stream: Stream
    plan: BatchPlan
    rank: int
    first_n: int
    num_steps: int

    def read_step(self, step: int) -> Rows:
        """This rank's contiguous slice of step ``step``."""
        share = self.plan.windows_per_rank
        first = self.first_n + step * self.plan.global_windows + self.rank * share
        return self.stream.read_rows(first, share)


class Slots:
    """Places in shared memory, one step's rows each: fixed arrays first, then the starts."""

    def __init__(self, memory: mmap.mmap, job: LoaderJob) -> None:
        self._memory = memory
        self._dtype = job.stream.dtype
        self._rows = job.plan.windows_per_rank
        self._row_tokens = job.stream.sequence_length + 1
        self._bytes = slot_bytes(job)

    def write(self, slot: int, rows: Rows) -> int:
        """Copy ``rows`` into the slot; returns how many starts they have."""
        tokens, lengths, ends, digests, starts = self._views(slot, len(rows.starts))
        tokens[:] = rows.tokens
        lengths[:] = rows.lengths
        ends[:] = rows.start_ends
        digests[:] = rows.digests
        starts[:] = rows.starts
        return len(rows.starts)

    def read(self, slot: int, num_starts: int, first_n: int) -> Rows:
        """A copy of the slot, so that it can be written again at once."""
        views = self._views(slot, num_starts)
        tokens, lengths, ends, digests, starts = (view.copy() for view in views)
        return Rows(
            first_n=first_n,
            tokens=tokens,
            lengths=lengths,
            starts=starts,
            start_ends=ends,
            digests=digests,
        )

    def _views(self, slot: int, num_starts: int) -> tuple[np.ndarray, ...]:
        offset = slot * self._bytes
        views = []
        for dtype, shape in (
            (self._dtype, (self._rows, self._row_tokens)),
            (np.dtype(np.int32), (self._rows,)),
            (np.dtype(np.int64), (self._rows,)),
            (np.dtype(np.uint64), (self._rows,)),
            (np.dtype(np.int32), (num_starts,)),
        ):
            count = int(np.prod(shape))
            view = np.frombuffer(self._memory, dtype=dtype, count=count, offset=offset)
            views.append(view.reshape(shape))
            offset += _aligned(view.nbytes)
        return tuple(views)


def slot_bytes(job: LoaderJob) -> int:
    """Bytes of a slot, with room for a document start at every token.

    Only the pages that are used take memory.
    """
    rows, row_tokens = job.plan.windows_per_rank, job.stream.sequence_length + 1
    parts = (rows * row_tokens * job.stream.dtype.itemsize, 4 * rows, 8 * rows, 8 * rows)
    return sum(map(_aligned, parts)) + _aligned(4 * rows * row_tokens)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def main(connection_descriptor: int, memory_descriptor: int) -> None:
    """Serve one rank until it closes the connection or dies."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # The rank started us with them blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
    faults.arm_child()
    connection = Connection(connection_descriptor)
    job, worker, workers, num_slots = connection.recv()
    memory = mmap.mmap(memory_descriptor, 0)
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(num_slots):
        free.put(slot)
    threading.Thread(target=_receive_slots, args=(connection, free), daemon=True).start()
    try:
        slots = Slots(memory, job)
        for step in range(worker, job.num_steps, workers):
            slot = free.get()
            connection.send((step, slot, slots.write(slot, job.read_step(step))))
    except BrokenPipeError:
        os._exit(0)  # the rank is gone
    except BaseException as error:
        _send_error(connection, error)
    # until the rank closes the connection: _receive_slots ends the process
    threading.Event().wait()


def _receive_slots(connection: Connection, free: queue.SimpleQueue[int]) -> None:
    try:
        while True:
            free.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # closed, or the rank died, however it died: no worker outlives its rank


def _send_error(connection: Connection, error: BaseException) -> None:
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))  # some classes cannot make the way back
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    try:
        connection.send((error, trace))
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
