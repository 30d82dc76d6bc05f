"""A loader worker: a light process (no torch) that reads steps, prepares them for the objective,
and puts them into memory that its rank shares.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from lmscale.config.batch import BatchPlan
from lmscale.runs import faults
from lmscale.stream.batches import Batch, Layout, Preparation, prepare_batches
from lmscale.stream.stream import Stream

# The rank decides when to stop, but Slurm's scancel --signal and Ctrl-C reach its workers as well.
IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
IGNORED_SIGNALS += (signal.SIGQUIT,)  # Ctrl-\ asks the rank for its stacks
ALIGNMENT = 64


@dataclass(frozen=True, kw_only=True)
class LoaderJob:
    """Which samples to read: one data rank's share of ``num_steps`` steps."""

    stream: Stream
    preparation: Preparation
    plan: BatchPlan
    data_rank: int
    first_n: int
    num_steps: int

    @property
    def layout(self) -> Layout:
        """Of every micro-batch's arrays."""
        return Layout(
            self.preparation.fields,
            rows=self.plan.micro_windows,
            sequence_length=self.stream.sequence_length,
            token_dtype=self.stream.dtype,
        )

    def read_step(self, step: int) -> tuple[Batch, ...]:
        """This rank's contiguous slice of step ``step``, prepared."""
        share = self.plan.windows_per_rank
        first = self.first_n + step * self.plan.global_windows + self.data_rank * share
        rows = self.stream.read_rows(first, share)
        return prepare_batches(rows, self.preparation, self.layout)


class BatchNote(NamedTuple):
    """What a worker says of a micro-batch whose arrays lie in the shared memory."""

    first_n: int
    digest: int
    targets: int
    ragged: dict[str, int]
    """Ragged field → number of its values."""


class Slots:
    """Places in shared memory, one step's micro-batches each.

    An array has the room for its most values, so its place depends on nothing that is read: only
    the pages that are used take memory.
    """

    def __init__(self, memory: mmap.mmap, job: LoaderJob) -> None:
        self._memory = memory
        self._layout = job.layout
        self._bytes = slot_bytes(job)
        self._batch_bytes = self._bytes // job.plan.accumulation

    def write(self, slot: int, batches: Sequence[Batch]) -> list[BatchNote]:
        """Copy the arrays into the slot; returns what ``read`` needs to know."""
        notes = []
        for number, batch in enumerate(batches):
            ragged = {
                name: len(array)
                for name, array in batch.arrays.items()
                if self._layout.is_ragged(name)
            }
            for name, view in self._views(slot, number, ragged).items():
                view[...] = batch.arrays[name]
            notes.append(BatchNote(batch.first_n, batch.digest, batch.targets, ragged))
        return notes

    def read(self, slot: int, notes: Sequence[BatchNote]) -> tuple[Batch, ...]:
        """A copy of the slot, so that it can be written again at once."""
        return tuple(
            Batch(
                arrays={
                    name: view.copy()
                    for name, view in self._views(slot, number, note.ragged).items()
                },
                first_n=note.first_n,
                digest=note.digest,
                targets=note.targets,
            )
            for number, note in enumerate(notes)
        )

    def _views(self, slot: int, number: int, ragged: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Every array of micro-batch ``number`` of the slot, by name, in place."""
        offset = slot * self._bytes + number * self._batch_bytes
        views = {}
        for name, dtype in self._layout.dtypes.items():
            shape = self._layout.shape(name, ragged.get(name))
            count = math.prod(shape)
            view = np.frombuffer(self._memory, dtype=dtype, count=count, offset=offset)
            views[name] = view.reshape(shape)
            offset += _aligned(self._layout.max_bytes(name))
        return views


def slot_bytes(job: LoaderJob) -> int:
    """Bytes of a slot, with room for the most values of every array."""
    layout = job.layout
    return job.plan.accumulation * sum(_aligned(layout.max_bytes(name)) for name in layout.dtypes)


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
    memory = mmap.mmap(memory_descriptor, 0)
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    try:
        message = connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(0)  # the rank is gone
    threading.Thread(target=_receive_slots, args=(connection, free), daemon=True).start()
    try:
        # Only here: a preparation that cannot be unpickled is an error, not a worker's death.
        job, worker, workers, num_slots = pickle.loads(message)
        for slot in range(num_slots):
            free.put(slot)
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
