"""Steps of micro-batches for one rank, read ahead by worker processes or a thread.

Workers are started as fresh interpreters, not forked: a fork of a rank with torch's and NCCL's
threads may hang on a lock one of them held, and would share the rank's CUDA state. They import no
torch, so they are up in about half a second. Steps are dealt to the workers in turn and handed over
in order through shared memory.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe

from lmscale.config.data import BatchPlan
from lmscale.errors import DataError, LmscaleError, TransientError
from lmscale.stream.batches import Batch, Preparation, StepBatch, add_digests, sum_terms
from lmscale.stream.ledger import LedgerRow
from lmscale.stream.stream import Stream
from lmscale.stream.worker import IGNORED_SIGNALS, LoaderJob, cut_slots, load

STOP_SECONDS = 5.0
POLL_SECONDS = 0.25  # how soon a rank that waits for data hears that it shall not
# -c rather than -m: the worker finds what this process finds, installed or not.
_WORKER_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from lmscale.stream.worker import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


class _WorkerTracebackError(Exception):
    """Where in the worker an error arose; the cause of the error that the rank sees."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class LoadingStopped(Exception):  # noqa: N818 - nothing has gone wrong
    """Raised where a stop is asked for while a step is waited for, which ``next`` gives later."""


class StepLoader(ABC):
    """Iterate over it for ``StepBatch``es, in order. Close it, or use it in a ``with`` block."""

    def __init__(self, job: LoaderJob, should_stop: Callable[[], bool]) -> None:
        self._job = job
        self._should_stop = should_stop
        self._next_step = 0

    @abstractmethod
    def _is_ready(self, step: int, seconds: float) -> bool:
        """Wait for the step, or for the news that it will not come, at most so long."""

    @abstractmethod
    def _take(self, step: int) -> tuple[Batch, ...]:
        """The step, which is ready."""

    @abstractmethod
    def close(self) -> None: ...

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        step = self._next_step
        if step >= self._job.num_steps:
            raise StopIteration
        started = time.perf_counter()
        while not self._is_ready(step, POLL_SECONDS):
            if self._should_stop():
                raise LoadingStopped
        micro_batches = self._take(step)
        self._next_step += 1
        first_n, plan = self._job.place_of(step)
        return StepBatch(
            first_n=first_n,
            samples=plan.global_windows,
            micro_batches=micro_batches,
            wait_seconds=time.perf_counter() - started,
        )

    def __enter__(self) -> StepLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_loader(
    job: LoaderJob, *, workers: int, should_stop: Callable[[], bool] = lambda: False
) -> StepLoader:
    """Read the steps of ``job``.

    What comes out does not depend on ``workers``: 0 reads on a thread of this process. Every worker
    keeps ``stream.prefetch_steps`` steps ready. An error while reading is raised where its step
    would have come. While a step is waited for, ``should_stop`` is asked now and then.
    """
    workers = min(workers, job.num_steps)
    if workers == 0 or job.stream.in_one_process:
        return _ThreadLoader(job, should_stop)
    return _ProcessLoader(job, should_stop, workers)


def digest_steps(
    stream: Stream,
    plan: BatchPlan,
    *,
    preparation: Preparation,
    first_step: int,
    num_steps: int,
    workers: int,
) -> list[LedgerRow]:
    """One ledger row per step, summed over the plan's ranks, which are read one after another."""
    shares = []  # of each rank, its part of every step
    for rank in range(plan.data_ranks):
        job = LoaderJob(
            stream=stream,
            preparation=preparation,
            plan=plan,
            data_rank=rank,
            first_n=plan.samples_before(first_step),
            num_steps=num_steps,
            first_step=first_step,
        )
        with open_loader(job, workers=workers) as loader:
            shares.append(
                [(batch.digest, (batch.targets, *batch.more_targets)) for batch in loader]
            )
    return [
        LedgerRow(
            step=first_step + step,
            first_n=plan.samples_before(first_step + step),
            samples=plan.at(first_step + step).global_windows,
            tokens=targets,
            digest=add_digests(digest for digest, _ in parts),
            more_tokens=(*more_targets,),
        )
        for step, parts in enumerate(zip(*shares, strict=True))
        for targets, *more_targets in [sum_terms(counts for _, counts in parts)]
    ]


class _ThreadLoader(StepLoader):
    """Reads steps on a background thread."""

    def __init__(self, job: LoaderJob, should_stop: Callable[[], bool]) -> None:
        super().__init__(job, should_stop)
        # A copy with shards of its own: the caller may read from the stream meanwhile.
        self._own = replace(job, stream=pickle.loads(pickle.dumps(job.stream)))
        self._room = threading.Semaphore(job.stream.config.prefetch_steps)
        self._ready: queue.SimpleQueue[tuple[Batch, ...] | BaseException] = queue.SimpleQueue()
        self._next: tuple[Batch, ...] | BaseException | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._produce, name="loader", daemon=True)
        self._thread.start()

    def _produce(self) -> None:
        try:
            for step in range(self._own.num_steps):
                self._room.acquire()
                if self._is_closed:
                    return
                self._ready.put(self._own.read_step(step))
        except BaseException as error:  # raised in the consumer
            self._ready.put(error)

    def _is_ready(self, step: int, seconds: float) -> bool:
        if self._next is None:
            with suppress(queue.Empty):
                self._next = self._ready.get(timeout=seconds)
        return self._next is not None

    def _take(self, step: int) -> tuple[Batch, ...]:
        assert self._next is not None
        if isinstance(self._next, BaseException):
            raise self._next  # also to whoever asks again
        item, self._next = self._next, None
        self._room.release()
        return item

    def close(self) -> None:
        self._is_closed = True
        self._room.release()
        self._thread.join(STOP_SECONDS)
        if not self._thread.is_alive():
            self._own.stream.close()


class _ProcessLoader(StepLoader):
    """Reads steps in worker processes: step s in worker s mod ``workers``."""

    def __init__(self, job: LoaderJob, should_stop: Callable[[], bool], workers: int) -> None:
        super().__init__(job, should_stop)
        self._workers: list[_Worker] = []
        try:
            for number in range(workers):
                self._workers.append(_Worker(job))
                self._workers[-1].connection.send((job, number, workers))
        except BaseException:
            self.close()
            raise

    def _is_ready(self, step: int, seconds: float) -> bool:
        return self._workers[step % len(self._workers)].connection.poll(seconds)

    def _take(self, step: int) -> tuple[Batch, ...]:
        worker = self._workers[step % len(self._workers)]
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionError):
            raise self._explain(worker) from None
        if isinstance(message[0], BaseException):
            error, trace = message
            raise error from _WorkerTracebackError(trace)
        number, slot, pickled, places = message
        assert number == step, f"a worker sent step {number} for step {step}"
        batches = load(pickled, places, worker.slots[slot])
        with suppress(ConnectionError):  # it died after this step; the next one says so
            worker.connection.send(slot)
        return batches

    def _explain(self, worker: _Worker) -> LmscaleError:
        """Why the worker is gone. SIGBUS comes of a file that ends before what was mapped of it."""
        if worker.wait() != -signal.SIGBUS:
            return TransientError(worker.describe_death())
        datasets = self._job.stream.datasets.values()
        wrong = [problem for dataset in datasets for problem in dataset.find_wrong_shards()]
        found = (
            f"A loader worker (process {worker.process.pid}) ended by signal SIGBUS: a file was "
            "cut while it was read, or its disk failed."
        )
        if wrong:
            return DataError([found, *wrong])
        return TransientError(
            f"{found} All local shards have their size. Start the run again; if it stays so, run "
            "`lmscale shards verify` on the sources, and delete stream.cache.folder."
        )

    def close(self) -> None:
        for worker in self._workers:
            worker.connection.close()  # the sign to end
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self._workers:
            try:
                worker.process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


class _Worker:
    """A running worker process, the connection to it, and the memory shared with it."""

    def __init__(self, job: LoaderJob) -> None:
        size = job.stream.config.prefetch_steps * job.slot_bytes
        descriptor = _open_shared_memory(size)
        self.connection, theirs = Pipe()
        try:
            self.slots = cut_slots(mmap.mmap(descriptor, size), job.slot_bytes)
            self.process = _start(theirs, descriptor)
        finally:
            theirs.close()
            os.close(descriptor)

    def wait(self) -> int | None:
        """The exit code, or None where it runs on."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=STOP_SECONDS)
        return None

    def describe_death(self) -> str:
        code = self.wait()
        if code is None:
            return (
                f"A loader worker (process {self.process.pid}) closed its connection but runs on."
            )
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        hint = " The kernel does that when memory runs out." if code == -signal.SIGKILL else ""
        return (
            f"A loader worker (process {self.process.pid}) ended {how}.{hint} Nothing is lost: "
            f"start the run again; stream.workers=0 reads in the rank itself."
        )


def _start(connection: Connection, memory_descriptor: int) -> subprocess.Popen:
    """Start a worker with the signals blocked, so that none kills it before it ignores them."""
    descriptors = (connection.fileno(), memory_descriptor)
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _WORKER_PROGRAM, json.dumps(sys.path), *map(str, descriptors)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            env=os.environ | one_thread,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _open_shared_memory(size: int) -> int:
    """A descriptor of anonymous memory. Not /dev/shm, which containers limit to 64 MB."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("lmscale-loader")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
