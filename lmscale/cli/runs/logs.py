"""``lmscale runs logs``: all ranks' logs as one, one rank's, or what the batch script wrote."""

from __future__ import annotations

import heapq
import itertools
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from lmscale.cli.options import RunArgument
from lmscale.errors import ConfigError, DataError, LmscaleError
from lmscale.files.printing import say, say_lines
from lmscale.files.run_files import DATA_SLURM_FOLDER
from lmscale.runs.sweep_folder import job_outputs, refuse_sweep

POLL_SECONDS = 0.5
FILES_PER_SECOND = 500  # looked at while following: thousands of ranks share a file system
EXIT_INTERRUPTED = 130
PIECE_BYTES = 1 << 16
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.,]?\d*")  # sorts as text
_NUMBERS = re.compile(r"\d+")


def logs(
    run: RunArgument,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on as it grows, over restarts.")
    ] = False,
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=0, help="Only this rank's.", show_default="all ranks"),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="What ranks wrote outside their log, such as a crash; not rank 0."
        ),
    ] = False,
    job: Annotated[
        bool, typer.Option("--job", help="The Slurm batch scripts' output, with rank 0's.")
    ] = False,
    lines: Annotated[
        int | None,
        typer.Option("-n", "--lines", min=1, help="Only the last N.", show_default="all"),
    ] = None,
) -> None:
    """Print what a run logged: all ranks in the order of time, each line behind its rank.

    A line without a time stays with the one before it. Ctrl-C ends --follow.
    """
    if job and (raw or rank is not None):
        raise ConfigError("--job prints what no rank has logged: leave --rank and --raw out.")
    refuse_sweep(run)
    files = _choose(run, rank, raw=raw, job=job)
    _check(run, files, follow=follow)
    log_lines = _read(run, files, follow=follow, last=lines)
    try:
        say_lines(_render(log_lines, with_rank=not job and rank is None, with_file=job))
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _choose(run: Path, rank: int | None, *, raw: bool, job: bool) -> LogFiles:
    if job:
        folder, pattern = job_outputs(run)
        data = run / DATA_SLURM_FOLDER  # of a corpus or of shards
        return LogFiles(data if data.is_dir() else folder, pattern, by_time=False)
    ending = "out" if raw else "log"
    number = "*" if rank is None else f"{rank:05d}"
    return LogFiles(run / "logs", f"rank-{number}.{ending}", by_time=not raw)


def _check(run: Path, files: LogFiles, *, follow: bool) -> None:
    """Where there is nothing to show, say what there is; who follows may wait for it."""
    if files.find():
        return
    if not run.is_dir():
        raise ConfigError(f"{run}: there is no such folder. `lmscale runs list` shows the runs.")
    if follow:
        say(f"{files.place}: nothing there yet; waiting", err=True)
        return
    names = sorted(p.name for pattern in ("*.log", "*.out") for p in (run / "logs").glob(pattern))
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    there = f"There: {shown}." if names else "It holds no logs yet; -f waits for them."
    raise DataError(f"{files.place}: there is no such log. {there}")


def _read(run: Path, files: LogFiles, *, follow: bool, last: int | None) -> Iterator[LogLine]:
    """The last lines, or all, and with ``follow`` those to come."""
    if last is not None:
        files.skip_to_last(last)
    first = files.read(with_torn=not follow)
    yield from first if last is None else deque(first, last)
    if follow:
        sys.stdout.flush()
        _say_if_ended(run)
    while follow:
        time.sleep(max(POLL_SECONDS, len(files.find()) / FILES_PER_SECOND))
        yield from files.read(with_torn=False)
        sys.stdout.flush()


def _say_if_ended(run: Path) -> None:
    """Who follows a run that has ended would wait without knowing what for."""
    from lmscale.cli.runs.look import look_at

    look = look_at([run]).runs[run]
    if isinstance(look, LmscaleError) or look.state.is_active or look.state.name == "not started":
        return  # one that is no run, such as shards being built, is followed all the same
    text = f"the run has ended: {look.state.line}; waiting for a next start, Ctrl-C ends this"
    say(text, err=True)


def _render(lines: Iterable[LogLine], *, with_rank: bool, with_file: bool) -> Iterator[str]:
    """``with_file``: a chain has a file for each of its jobs; say whenever another one begins."""
    last: Path | None = None
    for line in lines:
        if with_file and last not in (None, line.path):
            yield f"==> {line.path.name} <==\n"
        last = line.path
        yield f"[{line.number[0]}] {line.text}\n" if with_rank else f"{line.text}\n"


class LogLine(NamedTuple):
    """A log line without its line end, and its file. Lines sort by time, then by file."""

    time: str  # the line's time, or the time of the last line before that has a time
    number: tuple[int, ...]  # of the file: the rank, or the job
    text: str
    path: Path


@dataclass(kw_only=True)
class _LogFile:
    """How far a file was read. It is open only while a piece is read: ranks may be thousands."""

    path: Path
    number: tuple[int, ...]
    offset: int = 0
    torn: bytes = b""  # the line that was being written at the last look
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
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}.") from None

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
        """The files there are, by their numbers; what is no file has no lines."""
        files = filter(Path.is_file, self._folder.glob(self._pattern))
        return sorted(files, key=_number_of)

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
    # One that cannot be read is told by whoever reads it from here on.
    with suppress(OSError), open(path, "rb") as file:
        while start > 0:
            start, num_bytes = max(0, size - num_bytes), 2 * num_bytes
            file.seek(start)
            before, *last = file.read(size - start).removesuffix(b"\n").rsplit(b"\n", lines)
            if len(last) == lines:
                return start + len(before) + 1
    return 0
