"""Work that several processes of a machine share: a pool of tasks, and a lock."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lmscale.errors import DataError, LmscaleError
from lmscale.files.locks import locked_file
from lmscale.files.meter import count_into, counter
from lmscale.ranks.device import num_cores

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

LOOK_SECONDS = 0.2  # at what a pool's processes have counted
Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, processes: int
) -> Iterator[tuple[Task, Result]]:
    """Yield (task, result) as tasks finish, in any order; ``processes`` 0 means one per core.

    A single process or task runs in this process. Otherwise ``work`` and the tasks are pickled to
    processes that end with this one, even if it is killed; what they count (``files/meter.py``)
    counts here. After the first ``LmscaleError`` no new task is begun; the errors of the tasks that
    ran are raised together.
    """
    count = min(processes or num_cores(), len(tasks))
    if count <= 1:
        for task in tasks:
            yield task, work(task)
        return
    errors: list[LmscaleError] = []
    # Not fork: this process may have threads, which a forked child would find half dead.
    context = multiprocessing.get_context("spawn")
    counted = context.Value("d", 0.0)
    with (
        _counting(counted),
        ProcessPoolExecutor(count, context, initializer=_begin, initargs=(counted,)) as pool,
    ):
        futures = {pool.submit(work, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                try:
                    yield futures[future], future.result()
                except LmscaleError as error:
                    errors.append(error)
                    for other in futures:
                        other.cancel()  # has no effect on what has begun
        except BrokenProcessPool:
            raise DataError(
                f"One of {count} worker processes ended without a word: it was killed, as where "
                "memory is short, or a library crashed on a damaged file. Finished work is kept: "
                "run the same command again, with fewer processes if memory is short."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if errors:
        kinds = [error for error in errors if type(error) is type(errors[0])]
        problems = dict.fromkeys(problem for error in kinds for problem in error.problems)
        raise type(errors[0])(list(problems))


@contextmanager
def _counting(counted: Synchronized[float]) -> Iterator[None]:
    """Count here what the processes of a pool add up in ``counted``."""
    count_here, has_ended = counter(), threading.Event()

    def look() -> None:
        told, is_last = 0.0, False
        while not is_last:
            is_last = has_ended.wait(LOOK_SECONDS)
            now = counted.get_obj().value  # without the lock, which a process may be killed with
            count_here(now - told)
            told = now

    watcher = threading.Thread(target=look, name="counting", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        has_ended.set()
        watcher.join()


def _begin(counted: Synchronized[float]) -> None:
    """In each process of a pool."""

    def add(amount: float) -> None:
        lock = counted.get_lock()
        if lock.acquire(timeout=1.0):  # else one was killed that held it, and all of them end
            counted.get_obj().value += amount
            lock.release()

    count_into(add)
    _end_with_parent()


def _end_with_parent() -> None:
    """A killed parent leaves its pool's processes waiting for ever; this ends them."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, or raise ``DataError`` at once. A kill releases it.

    A file system without locks is a ``DataError`` too: two builds would remove each other's work.
    """
    with ExitStack() as stack:
        try:
            is_locked = stack.enter_context(locked_file(path, 0))
        except BlockingIOError:
            raise DataError(
                f"{path}: another process is building {what}. Wait until it has finished, or stop "
                "it."
            ) from None
        if not is_locked:
            raise DataError(
                f"{path}: the file system here has no locks (flock), so nothing would keep another "
                f"process from building {what} at the same time. Name a folder on a file system "
                "with locks (Lustre: mounted with -o flock), or add --task 0/1 and start no second "
                "build of it."
            )
        yield
