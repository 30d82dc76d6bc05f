"""Files of one JSON object a line, appended while a run goes on and read after any kind of end."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, TypeVar

from pydantic import TypeAdapter

from lmscale.errors import DataError, LmscaleError, TransientError
from lmscale.files.atomic import atomic_path, fsync_folder, may_pass, writing
from lmscale.files.reading import open_plain, read_plain
from lmscale.files.strangers import ImplausibleError, checked, is_count, parse_json, tame

Row = dict[str, Any]
TAIL_BYTES = 1 << 16
_SEAL = re.compile(rb', "crc": "([0-9a-f]{8})"\}$')
Value = TypeVar("Value")


def append_row(path: str | Path, row: Mapping[str, Any]) -> None:
    """Add a line in a single write: a kill leaves at most one torn line, at the end.

    Numbers that are not finite become null. A full disk is a ``DataError``, and adds nothing.
    """
    append_rows(path, [row], is_sealed=True)


def append_rows(
    path: str | Path, rows: Iterable[Mapping[str, Any]], *, is_sealed: bool = False
) -> None:
    """``append_row`` for several rows, in a single write; ``is_sealed`` as of a ``RowFile``."""
    lines = map(_to_line, rows)
    content = b"".join(map(_seal, lines) if is_sealed else lines)
    with writing(Path(path).name, Path(path).parent), _open_end(path) as file:
        _write_whole(file, content)


def append_durable_row(
    path: str | Path, row: Mapping[str, Any], *, no_space: type[LmscaleError] = DataError
) -> None:
    """Add a line that outlives this machine once this returns, behind the last whole one."""
    path = Path(path)
    mend_tail(path)
    with writing(path.name, path.parent, no_space=no_space):
        with closing(RowFile(path, is_sealed=True, no_space=no_space)) as file:
            file.append(row)
            file.sync()
        fsync_folder(path.parent)


class RowFile:
    """Appends rows to the very file that it opened; ``is_sealed``: each with its own checksum."""

    def __init__(
        self, path: Path, *, is_sealed: bool = False, no_space: type[LmscaleError] = DataError
    ) -> None:
        self.path = path
        self._is_sealed = is_sealed
        self._file = _open_end(path)
        self._no_space = no_space

    def append(self, row: Mapping[str, Any]) -> None:
        """As ``append_row``: it outlives this process and, once ``sync`` is called, the machine."""
        with writing(self.path.name, self.path.parent, no_space=self._no_space):
            line = _to_line(row)
            _write_whole(self._file, _seal(line) if self._is_sealed else line)
            # Closing any descriptor of a file is what makes NFS send it off, for others to see.
            os.close(os.dup(self._file.fileno()))

    def sync(self) -> None:
        """Raises ``DataError`` also where the file is not in its folder any more."""
        with writing(self.path.name, self.path.parent, no_space=self._no_space):
            os.fsync(self._file.fileno())
            is_gone = os.fstat(self._file.fileno()).st_nlink == 0
        if is_gone:
            raise DataError(
                f"{self.path} was removed or replaced while rows were appended to it; they are "
                "lost. Leave the file to the run that writes it, and start the same command again."
            )

    def close(self) -> None:
        self._file.close()


def renew_rows(
    path: str | Path,
    last_step: int | None = None,
    *,
    is_sealed: bool = False,
    no_space: type[LmscaleError] = DataError,
) -> RowFile:
    """Put a copy without the rows of steps beyond ``last_step`` in the file's place, and open the
    copy for more. What is no row, or has no step, stays as it stands, for a person to see.

    An older copy of the same run goes on writing to what is no longer there.
    """
    path = Path(path)
    with writing(path.name, path.parent, no_space=no_space):
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.writelines(
                line
                for line in _read_lines(path)
                if line.endswith(b"\n") and (last_step is None or _step_of(line) <= last_step)
            )
        return RowFile(path, is_sealed=is_sealed, no_space=no_space)


def _seal(line: bytes) -> bytes:
    """A rendered row with a checksum of what comes before it, as the last key."""
    body = line.removesuffix(b"}\n")
    return line if body == b"{" else b'%s, "crc": "%08x"}\n' % (body, zlib.crc32(body))


def _step_of(line: bytes) -> int:
    step: Any = (_parse(line) or {}).get("step")
    return step if is_count(step) else -1


def _open_end(path: str | Path) -> BinaryIO:
    """A file to append to. A pipe in its place that nobody reads is an ``OSError`` at once."""

    def open_at_once(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK, 0o666)

    return open(path, "ab", buffering=0, opener=open_at_once)


def _write_whole(file: BinaryIO, content: bytes) -> None:
    """Append the whole ``content`` or nothing; a disk that fills up takes a part and then fails."""
    end = file.seek(0, os.SEEK_END)
    try:
        num_written = 0
        while num_written < len(content):
            num_written += file.write(content[num_written:])
    except OSError:
        with suppress(OSError):  # the first error is the one to tell
            os.truncate(file.fileno(), end)
        raise


def _to_line(row: Mapping[str, Any]) -> bytes:
    """In UTF-8; half a character, as in a file name that is none, as JSON's escape: ``\\udce9``."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return f"{json.dumps(finite, ensure_ascii=False)}\n".encode(errors="backslashreplace")


def read_rows(path: str | Path) -> list[Row]:
    """All whole lines; no file is no rows. A torn last line is left out.

    Raises ``DataError`` naming the line when one before the end cannot be read.
    """
    rows = []
    try:
        for number, line in enumerate(_read_lines(path), start=1):
            if not line.endswith(b"\n"):
                break
            row = _parse(line)
            if row is None:
                raise DataError(
                    f"{path}, line {number}: not a JSON object as lmscale writes it, so "
                    f"the disk or an editor damaged it; remove that line to go on."
                )
            rows.append(row)
    except OSError as error:
        raise unreadable(path, error) from None
    return rows


def unreadable(path: str | Path, error: OSError) -> LmscaleError:
    """The error for a file without which there is no going on."""
    kind = TransientError if may_pass(error) else DataError
    return kind(f"{path} cannot be read: {error.strerror or error}.")


def _parse(line: bytes) -> Row | None:
    """An object that can be walked through, reckoned with and written again, without its seal."""
    if sealed := _SEAL.search(line):
        body = line[: sealed.start()]
        if zlib.crc32(body) != int(sealed[1], 16):
            return None
        line = body + b"}"
    try:
        row = tame(parse_json(line))
    except ValueError:  # also bytes that are not UTF-8
        return None
    return row if isinstance(row, dict) else None


class Sifted(NamedTuple, Generic[Value]):
    """A file's rows that are such, as they stand and as values, and what is wrong with the rest."""

    rows: list[Row]
    values: list[Value]
    problems: list[str]  # at most one sentence, which begins with the file's name
    failure: OSError | None = None  # why the file cannot be read


def sift_rows(
    path: str | Path, kind: TypeAdapter[Value], *, max_bytes: int = sys.maxsize, having: str = ""
) -> Sifted[Value]:
    """Read bookkeeping, which stops nothing: lines that are no rows of ``kind`` are left out, and
    so is a file that cannot be read. ``max_bytes``: of the file's end, by whole lines. ``having``:
    only the lines in which a text of JSON is.
    """
    path, sifted = Path(path), Sifted[Value]([], [], [])
    bad: list[str] = []
    text = json.dumps(having, ensure_ascii=False).encode(errors="replace") if having else b""
    try:
        for number, line in enumerate(_read_lines(path, max_bytes), start=1):
            if not line.endswith(b"\n"):
                bad.append("the last line: it has no end, as a kill or a cut leaves it")
            elif text in line:  # most lines of figures have not the one that is asked for
                row = _parse(line)
                try:
                    sifted.values.append(checked(kind, row))
                    sifted.rows.append(row or {})
                except ImplausibleError as error:
                    where = (
                        f"line {number}" if max_bytes == sys.maxsize else "one of its last lines"
                    )
                    what = error if row is not None else "not a JSON object as it was written"
                    bad.append(f"{where}: {what}")
    except OSError as error:
        return Sifted([], [], [f"{path.name} cannot be read: {error.strerror or error}."], error)
    if bad:
        more = f" (and {len(bad) - 1:,} more lines)" if len(bad) > 1 else ""
        sifted.problems.append(f"{path.name}, {bad[0]}{more}; it is left out.")
    return sifted


def read_value(path: str | Path, kind: TypeAdapter[Value]) -> Value | None:
    """What the JSON in a file says; None for one that is missing, torn, or says anything else."""
    try:
        return parse_value(read_plain(path), kind)
    except OSError:
        return None


def parse_value(content: bytes, kind: TypeAdapter[Value]) -> Value | None:
    """What a JSON object says; None for what is none, or says anything else."""
    try:
        return checked(kind, _parse(content))
    except ImplausibleError:
        return None


def read_object(path: str | Path) -> Row:
    """The JSON object in a file; an empty one for a file that is missing, torn or no object."""
    try:
        return _parse(read_plain(path)) or {}
    except OSError:
        return {}


def _read_lines(path: str | Path, max_bytes: int = sys.maxsize) -> Iterator[bytes]:
    """With their ends, which the last one may lack: a line of figures is not held with all others,
    which are gigabytes in a long run.
    """
    try:
        with open_plain(path) as file:
            start = max(0, file.seek(0, os.SEEK_END) - max_bytes)
            file.seek(start)
            if start:
                file.readline()  # the rest of a line
            for line in file:
                yield line
                if not line.endswith(b"\n"):
                    return  # somebody may write on
    except (FileNotFoundError, NotADirectoryError):
        return


def read_tail(path: str | Path, *, start: int = 0, max_bytes: int = TAIL_BYTES) -> bytes:
    """The end of what a file holds from ``start`` on, at most ``max_bytes``."""
    with open_plain(path) as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - max_bytes))
        return file.read()


def mend_tail(path: str | Path) -> None:
    """Cut a torn last line off, so that the next append begins a line of its own."""
    path = Path(path)
    with writing(path.name, path.parent):
        content = read_plain(path) if path.exists() else b""
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
            fsync_folder(path.parent)
