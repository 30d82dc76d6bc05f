"""The log files of all ranks read as one, in the order of time, also while they grow."""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PIECE_BYTES = 1 << 16
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.,]?\d*")  # sorts as text
_NUMBERS = re.compile(r"\d+")


class LogLine(NamedTuple):
    """A log line without its line end, and its file. Lines sort by time, then by file."""

    time: str
    """The line's time, or the time of the last line before that has a time."""
    number: tuple[int, ...]
    """Of the file: the rank, or the job."""
    text: str
    path: Path


@dataclass(kw_only=True)
class _LogFile:
    """How far a file was read. It is open only while a piece is read: ranks may be thousands."""

    path: Path
    number: tuple[int, ...]
    offset: int = 0
    torn: bytes = b""
    """The line that was being written at the last look."""
    time: str = ""

    def lines(self, *, with_torn: bool) -> Iterator[LogLine]:
        """The lines since the last time, piece by piece."""
        while piece := self._read_piece():
            self.offset += len(piece)
            *whole, self.torn = (self.torn + piece).split(b"\n")
            yield from map(self._to_line, whole)
        if with_torn and self.torn:
            yield self._to_line(self.torn)
            self.torn = b""

    def _read_piece(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return file.read(PIECE_BYTES)
        except FileNotFoundError:
            return b""

    def _to_line(self, raw: bytes) -> LogLine:
        text = raw.decode("utf-8", "replace").rstrip("\r")
        time = _TIME.match(text)
        # A clock that was set back must not tear a file's own order.
        self.time = max(self.time, time[0]) if time else self.time
        return LogLine(self.time, self.number, text, self.path)


class LogFiles:
    """The files of a folder that match a pattern, read together; new ones are found on the way."""

    def __init__(self, folder: str | Path, pattern: str, *, by_time: bool = True) -> None:
        """``by_time`` False takes one file after another, by their numbers."""
        self._folder, self._pattern, self._by_time = Path(folder), pattern, by_time
        self._files: dict[Path, _LogFile] = {}

    @property
    def place(self) -> Path:
        return self._folder / self._pattern

    def find(self) -> list[Path]:
        """The files there are, by their numbers."""
        return sorted(self._folder.glob(self._pattern), key=_number_of)

    def skip_to_last(self, lines: int) -> None:
        """Leave out what cannot be among the last ``lines`` lines of all files together."""
        for file, size in self._look():
            file.offset = _offset_of_last(file.path, size, lines)

    def read(self, *, with_torn: bool) -> Iterator[LogLine]:
        """Every line since the last time; ``with_torn`` also one that has no end yet."""
        streams = [
            file.lines(with_torn=with_torn)
            for file, size in self._look()
            if size > file.offset or file.torn
        ]
        return heapq.merge(*streams) if self._by_time else itertools.chain(*streams)

    def _look(self) -> list[tuple[_LogFile, int]]:
        """The files and their sizes."""
        files = []
        for path in self.find():
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue
            file = self._files.setdefault(path, _LogFile(path=path, number=_number_of(path)))
            if size < file.offset:  # somebody emptied it, or put another one in its place
                file.offset, file.torn, file.time = 0, b"", ""
            files.append((file, size))
        return files


def _number_of(path: Path) -> tuple[int, ...]:
    """``rank-00012.log`` → 12; ``job-34_5.out`` → 34, 5."""
    return tuple(map(int, _NUMBERS.findall(path.name)))


def _offset_of_last(path: Path, size: int, lines: int) -> int:
    """Where the last ``lines`` lines of a file begin."""
    start, num_bytes = size, PIECE_BYTES
    with open(path, "rb") as file:
        while start > 0:
            start, num_bytes = max(0, size - num_bytes), 2 * num_bytes
            file.seek(start)
            before, *last = file.read(size - start).removesuffix(b"\n").rsplit(b"\n", lines)
            if len(last) == lines:
                return start + len(before) + 1
    return 0
