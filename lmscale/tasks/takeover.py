"""A lock between nodes that needs nothing of the file system but exclusive creation.

``flock`` is local to a node, or missing, on some network file systems. Here a holder creates the
file of the next number, which only one can, and changes it every few seconds. Who sees the file
unchanged for long enough, by a clock of one's own, takes the holder for dead and creates the next.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from lmscale.errors import DataError
from lmscale.files.jsonl import read_object
from lmscale.files.reading import read_plain
from lmscale.files.strangers import parse_json
from lmscale.watch.process import is_gone, own_process

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # longer than a network file system stalls now and then
POLL_SECONDS = 0.5


class Turn:
    """The lock, held by one process at a time; ``check`` before what cannot be undone."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number = folder, number

    def check(self) -> None:
        """Raise ``DataError`` if this process was taken for dead and another has its turn."""
        if _newest(self._folder) != self._number:
            raise DataError(
                f"{self._folder}: this process was silent for so long that another one, "
                f"{holder_of(self._folder)}, has taken over. Nothing is lost; it goes on there."
            )


@contextmanager
def take_turn(folder: Path) -> Iterator[Turn | None]:
    """Hold the lock that lives in ``folder``, or None if another living process holds it or did.

    A holder that is gone is found at once on the same machine, else after ``STALE_SECONDS``. The
    files in ``folder`` are removed at the end, but not the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = _acquire(folder)
    except FileNotFoundError:  # who held it has removed the folder this moment
        number = None
    if number is None:
        yield None
        return
    is_over = threading.Event()
    beat = threading.Thread(target=_beat, args=(_path(folder, number), is_over), daemon=True)
    beat.start()
    try:
        yield Turn(folder, number)
    finally:
        is_over.set()
        beat.join()
        _path(folder, number).unlink(missing_ok=True)


def holder_of(folder: Path) -> str:
    """``HOST, process PID`` of the newest holder, for messages."""
    holder = read_object(_path(folder, _newest(folder)))
    if not holder.keys() >= {"host", "pid"}:
        return "another process"
    return f"{holder['host']}, process {holder['pid']}"


def fresh_names(folder: Path) -> list[str]:
    """The names in ``folder`` as the server of a network file system knows them now.

    A client may show a list that is a minute old, but not after a change of its own. Names that
    begin with a dot are left out, and a folder that is not there has none.
    """
    probe = folder / f".{secrets.token_hex(8)}.probe"
    try:
        probe.touch()
        probe.unlink()
    except PermissionError:
        pass  # who may only look sees what there is to see
    except FileNotFoundError:
        return []
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _acquire(folder: Path) -> int | None:
    while True:
        newest = _newest(folder)
        if newest:
            state = _watch(_path(folder, newest))
            if state == "alive":
                return None
            if state == "gone":
                continue
        try:
            with open(_path(folder, newest + 1), "xb") as file:
                file.write(_identity(beat=0))
        except FileExistsError:
            continue  # somebody was faster: see whether it lives
        return newest + 1


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _newest(folder: Path) -> int:
    return max((int(name[:6]) for name in fresh_names(folder) if name[:6].isdigit()), default=0)


def _watch(path: Path) -> Literal["alive", "dead", "gone"]:
    """Whether a holder keeps changing its file, has stopped, or has removed it."""
    began = time.monotonic()
    first = None
    while time.monotonic() - began < STALE_SECONDS:
        try:
            content = read_plain(path)
        except FileNotFoundError:
            return "gone"
        except OSError:  # a folder or a pipe in its place, which no holder changes
            content = b""
        if first is not None and content != first:
            return "alive"
        if _is_known_dead(content):
            return "dead"
        first = content
        time.sleep(POLL_SECONDS)
    return "dead"


def _is_known_dead(content: bytes) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    try:
        return is_gone(parse_json(content)) is True
    except ValueError:
        return False  # created, and not written yet


def _identity(beat: int) -> bytes:
    beats = {"beat": f"{beat:012d}"}  # so that the file keeps its length
    return json.dumps({"host": socket.gethostname(), **own_process(), **beats}).encode()


def _beat(path: Path, is_over: threading.Event) -> None:
    number = 0
    while not is_over.wait(BEAT_SECONDS):
        number += 1
        try:
            with open(path, "r+b") as file:  # never created again: another may have taken over
                file.write(_identity(number))
        except OSError:
            continue  # gone, or a stall of the file system: check() finds out who holds it
