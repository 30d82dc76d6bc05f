"""A loader worker: a light process (no torch) that prepares steps in memory its rank shares."""

from __future__ import annotations

import mmap
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection

from lmscale.config.data import BatchPlan
from lmscale.runs import faults
from lmscale.stream.batches import (
    Batch,
    Layout,
    Preparation,
    prepare_batches,
    reads_partners,
)
from lmscale.stream.stream import Stream

# The rank decides when to stop, but Slurm's scancel --signal and Ctrl-C reach its workers as well.
IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
IGNORED_SIGNALS += (signal.SIGQUIT,)  # Ctrl-\ asks the rank for its stacks


@dataclass(frozen=True, kw_only=True)
class LoaderJob:
    """Which samples to read: one data rank's share of ``num_steps`` steps."""

    stream: Stream
    preparation: Preparation
    plan: BatchPlan
    data_rank: int
    first_n: int
    num_steps: int
    first_step: int = 0  # steps that the run has done before

    @cached_property
    def _layouts(self) -> dict[BatchPlan, Layout]:
        """Of the arrays of every plan's micro-batches."""
        return {
            plan: Layout(
                self.preparation.fields,
                rows=plan.micro_windows,
                sequence_length=self.stream.config.sequence_length,
                row_tokens=self.stream.shape.tokens,
                token_dtype=self.stream.dtype,
            )
            for plan in (self.plan, *(plan for _, plan in self.plan.warmup))
        }

    @property
    def slot_bytes(self) -> int:
        """Bytes of a step's arrays with the most values in each: only pages in use take memory."""
        return max(plan.accumulation * layout.max_bytes for plan, layout in self._layouts.items())

    def place_of(self, step: int) -> tuple[int, BatchPlan]:
        """The first sample of step ``step``, and how its samples are dealt out."""
        done = self.first_step + step
        before = self.plan.samples_before(done) - self.plan.samples_before(self.first_step)
        return self.first_n + before, self.plan.at(done)

    def read_step(self, step: int) -> tuple[Batch, ...]:
        """This rank's contiguous slice of step ``step``, prepared."""
        first_n, plan = self.place_of(step)
        share = plan.windows_per_rank
        partners = reads_partners(self.preparation)
        rows = self.stream.read_rows(first_n + self.data_rank * share, share, partners=partners)
        return prepare_batches(rows, self.preparation, self._layouts[plan])


def store(batches: Sequence[Batch], slot: memoryview) -> tuple[bytes, list[tuple[int, int]]]:
    """Copy the arrays into the slot of the shared memory.

    Returns the batches pickled without the arrays' content (PEP 574), and where in the slot the
    content of each array begins and ends.
    """
    contents: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(batches, protocol=5, buffer_callback=contents.append)
    places, begin = [], 0
    for content in contents:
        with content.raw() as raw:
            end = begin + raw.nbytes
            slot[begin:end] = raw
        places.append((begin, end))
        begin = end
    return pickled, places


def load(pickled: bytes, places: Sequence[tuple[int, int]], slot: memoryview) -> tuple[Batch, ...]:
    """A copy of what was stored in the slot, so that it can be written again at once."""
    return pickle.loads(pickled, buffers=[bytearray(slot[begin:end]) for begin, end in places])


def cut_slots(memory: mmap.mmap, slot_bytes: int) -> list[memoryview]:
    """The memory as slots, one step's micro-batches each."""
    whole = memoryview(memory)
    return [whole[begin:][:slot_bytes] for begin in range(0, len(whole), slot_bytes)]


def main(connection_descriptor: int, memory_descriptor: int) -> None:
    """Serve one rank until it closes the connection or dies."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # The rank started us with them blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
    faults.arm_child()
    connection = Connection(connection_descriptor)
    memory = mmap.mmap(memory_descriptor, 0)
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    try:
        message = connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(0)  # the rank is gone
    threading.Thread(target=_receive_slots, args=(connection, free), daemon=True).start()
    try:
        # Only here: a preparation that cannot be unpickled is an error, not a worker's death.
        job, worker, workers = pickle.loads(message)
        slots = cut_slots(memory, job.slot_bytes)
        for slot in range(len(slots)):
            free.put(slot)
        for step in range(worker, job.num_steps, workers):
            slot = free.get()
            connection.send((step, slot, *store(job.read_step(step), slots[slot])))
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
