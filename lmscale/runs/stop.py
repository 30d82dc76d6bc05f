"""Requests to stop early, or to save and go on: a signal, or a file in the run's folder."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from lmscale.errors import EXIT_RESUMABLE
from lmscale.files.run_files import SAVE_FILE, STOP_FILE
from lmscale.ranks.exits import leave

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SAVE_SIGNAL = signal.SIGUSR2
# One `scancel --signal`, or one launcher that passes it on, reaches all ranks within this: what
# comes so soon after a save has begun asked for that one.
SAME_REQUEST_SECONDS = 2.0
# How often a rank that waits looks for the file, if it is not the one that looks at every step.
FILE_SECONDS = 5.0
_END = b"\0"  # no signal has this number


class StoppedError(Exception):
    """All ranks have agreed to stop; what was done is saved. Not an error for the user."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StopRequests:
    """Remembers this rank's first request to stop, for the time of a ``with`` block.

    Only the calling rank knows: the train loop spreads it in the step's own reduction. A second
    SIGINT raises ``KeyboardInterrupt``, for a person who will not wait for the checkpoint. Each is
    answered at once by a line of the log, for a step may take minutes. SIGUSR2 and the file
    ``save`` ask for a checkpoint and end nothing, at any time.

    The signals are blocked in the main thread and taken by one of this object's own. So a main
    thread that waits in native code is no hindrance, and whatever it starts, compilers included,
    inherits them blocked: `scancel --signal` and Ctrl-C reach every process of a job.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        watch_file: bool = True,
        signals: Sequence[signal.Signals] = SIGNALS,
        leaves_at_once: bool = False,
    ) -> None:
        """``watch_file``: one rank is enough; spare the shared file system the others.
        ``leaves_at_once``: as ``leave_unless`` with no work, from the first moment on.
        """
        self._file = Path(folder) / STOP_FILE
        self._save_file = Path(folder) / SAVE_FILE
        self._watch_file = watch_file
        self._signals = tuple(signals)
        self._heard = (*self._signals, SAVE_SIGNAL)
        self._save_signalled = False
        self._saved_at = -SAME_REQUEST_SECONDS
        self._reason: str | None = None
        self._interrupts = 0
        self._answered: set[int] = set()  # signals
        # None: a request waits until it is asked for, whatever there is to do.
        self._has_work: Callable[[], bool] | None = (lambda: False) if leaves_at_once else None
        self._finish: Callable[[str], None] | None = None
        self._stale: tuple[int, int] | None = None
        self._obeyed_save: tuple[int, int] | None = None
        self._obeyed_step: int | None = None  # of the save, until it is committed
        self._looked_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequests:
        self._stale = _identify(self._file)
        self._wakes, self._wake_end = os.pipe()
        os.set_blocking(self._wake_end, False)
        for number in self._heard:
            self._previous[number] = signal.signal(number, self._remember)
        self._previous_wakeup = signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="stop requests", daemon=True)
        self._thread.start()  # before the next line: it must not inherit the mask
        self._previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._heard)
        return self

    def __exit__(self, *exception: object) -> None:
        self._has_work = None
        signal.pthread_sigmask(signal.SIG_SETMASK, self._previous_mask)
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        os.write(self._wake_end, _END)
        self._thread.join()
        os.close(self._wakes)
        os.close(self._wake_end)

    def requested(self, *, is_waiting: bool = False) -> str | None:
        """Why to stop (``SIGTERM``, ``SIGUSR1``, ``SIGINT``, ``stop file``), or None.

        A rank that waits for something which may never come looks for the file itself.
        """
        looks = self._watch_file
        if not looks and is_waiting and time.monotonic() - self._looked_at >= FILE_SECONDS:
            self._looked_at, looks = time.monotonic(), True
        if self._reason is None and looks and _identify(self._file) not in (None, self._stale):
            self._reason = "stop file"
        return self._reason

    def save_asked(self) -> bool:
        """Whether a save is asked for: by SIGUSR2 to this rank, or by the file, of any age.

        A file from before the start has asked an attempt that could not answer any more. One that
        was obeyed and cannot be removed asks again when it is touched.
        """
        if self._save_signalled or not self._watch_file:
            return self._save_signalled
        return _identify(self._save_file) not in (None, self._obeyed_save)

    def obey_save(self, step: int) -> None:
        """The save that was asked for begins now, on all ranks: ask for no second one."""
        self._saved_at = time.monotonic()
        self._save_signalled = False
        if self._watch_file:
            self._obeyed_save, self._obeyed_step = _identify(self._save_file), step

    def consume_save(self, committed_step: int | None) -> None:
        """Remove the file ``save`` once the save is committed; until then a failure or a kill
        leaves the file for the next attempt. A file that was touched since asks for another save.
        """
        if self._obeyed_step is None or committed_step is None:
            return
        if committed_step >= self._obeyed_step:
            self._obeyed_step = None
            if _identify(self._save_file) == self._obeyed_save:
                _remove(self._save_file)

    def wait(self, seconds: float) -> str | None:
        """The request, when one comes within ``seconds``."""
        deadline = time.monotonic() + seconds
        while self.requested() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._reason

    def leave_unless(
        self, has_work: Callable[[], bool], finish: Callable[[str], None] | None = None
    ) -> None:
        """From here on a signal ends the process at once, with the exit code of a good stop, unless
        ``has_work()``: then the request waits until it is asked for.

        ``has_work`` and ``finish``, which is called with the reason first, run in another thread. A
        signal that came before is obeyed in this call.
        """
        self._finish, self._has_work = finish, has_work
        if self._reason is not None and self._reason != "stop file" and not has_work():
            self._leave()

    def wait_to_be_asked(self) -> None:
        """From here on every request waits until it is asked for."""
        self._has_work = None

    def ignore_from_here(self) -> None:
        """All is done: more signals, such as Slurm's second SIGTERM, may not change how it ends."""
        for number in self._heard:
            signal.signal(number, signal.SIG_IGN)
        self._previous.clear()

    def discard_stale_file(self) -> None:
        """Remove a stop file that was meant for an earlier start, once the folder is this run's."""
        if self._watch_file and self._stale is not None and _identify(self._file) == self._stale:
            if _remove(self._file):
                logger.info("%s was there before this start: removed, and not obeyed", self._file)

    def consume_file(self) -> None:
        """Remove the stop file after it was obeyed, or the next attempt would find it."""
        if self._watch_file:
            _remove(self._file)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        """Python's own handler: in the main thread, when that comes to it."""
        self._note(number)
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt

    def _listen(self) -> None:
        """Python's C handler writes the number of every signal at once, whatever thread it hits."""
        # A launcher starts a rank with SIGUSR2 blocked, so that it waits for somebody who listens.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._heard)
        while True:
            for number in os.read(self._wakes, 64):
                if number == _END[0]:
                    return
                self._note(number)
                is_new_save = time.monotonic() - self._saved_at >= SAME_REQUEST_SECONDS
                if number == SAVE_SIGNAL and is_new_save:
                    self._save_signalled = True
                if self._reason is not None and self._has_work and not self._has_work():
                    self._leave()
                self._answer(number)

    def _answer(self, number: int) -> None:
        """Say what becomes of a request that waits."""
        if number not in self._signals:
            return
        is_interrupt = number == signal.SIGINT
        if is_interrupt and signal.SIGINT in self._answered:
            logger.warning("Ctrl-C again: the run ends at once, and saves nothing more")
        elif is_interrupt or not self._answered:
            more = "; Ctrl-C again ends it at once, without" if is_interrupt else ""
            name = signal.Signals(number).name
            logger.info(
                "%s: stops after the step under way, if there is one, and saves it%s", name, more
            )
        self._answered.add(number)

    def _note(self, number: int) -> None:
        if self._reason is None and number in self._signals:
            self._reason = signal.Signals(number).name

    def _leave(self) -> None:
        reason = self._reason or ""
        if self._finish is not None:
            with suppress(Exception):
                self._finish(reason)
        leave(EXIT_RESUMABLE, f"stopped by {reason}; there was nothing to save")


def _identify(file: Path) -> tuple[int, int] | None:
    """Identity of a file as it was last touched, or None without a file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def _remove(file: Path) -> bool:
    """A folder of that name, or another user's file, may not end the run."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s cannot be removed, please do: %s", file, error)
        return False
    return True
