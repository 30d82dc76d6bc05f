"""Files of one JSON object a line, appended while a run goes on and read after any kind of end."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lmscale.errors import DataError, LmscaleError
from lmscale.files.atomic import fsync_folder, write_bytes, writing
from lmscale.files.reading import open_plain, read_plain
from lmscale.files.strangers import parse_json

Row = dict[str, Any]
TAIL_BYTES = 1 << 16


def append_row(path: str | Path, row: Mapping[str, Any]) -> None:
    """Add a line in a single write: a kill leaves at most one torn line, at the end.

    Numbers that are not finite become null. A full disk is a ``DataError``, and adds nothing.
    """
    append_rows(path, [row])


def append_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """``append_row`` for several rows, in a single write."""
    content = "".join(_to_line(row) for row in rows).encode()
    with writing(Path(path).name, Path(path).parent), open(path, "ab", buffering=0) as file:
        _write_whole(file, content)


def append_durable_row(
    path: str | Path, row: Mapping[str, Any], *, no_space: type[LmscaleError] = DataError
) -> None:
    """Add a line that outlives this machine once this returns, behind the last whole one."""
    path = Path(path)
    mend_tail(path)
    with writing(path.name, path.parent, no_space=no_space):
        with closing(RowFile(path, no_space=no_space)) as file:
            file.append(row)
            file.sync()
        fsync_folder(path.parent)


class RowFile:
    """Appends rows to the very file that it opened."""

    def __init__(self, path: Path, *, no_space: type[LmscaleError] = DataError) -> None:
        self.path = path
        self._file = open(path, "ab", buffering=0)
        self._no_space = no_space

    def append(self, row: Mapping[str, Any]) -> None:
        """As ``append_row``: it outlives this process and, once ``sync`` is called, the machine."""
        with writing(self.path.name, self.path.parent, no_space=self._no_space):
            _write_whole(self._file, _to_line(row).encode())
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
    keep: Callable[[Row], bool] = lambda row: True,
    *,
    no_space: type[LmscaleError] = DataError,
) -> RowFile:
    """Put a copy with the rows that ``keep`` wants in the file's place, and open the copy for more.
    An older copy of the same run goes on writing to what is no longer there.
    """
    path = Path(path)
    with writing(path.name, path.parent, no_space=no_space):
        rows = filter(keep, read_rows(path))
        write_bytes(path, "".join(map(_to_line, rows)).encode())
        return RowFile(path, no_space=no_space)


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


def _to_line(row: Mapping[str, Any]) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return json.dumps(finite, ensure_ascii=False) + "\n"


def read_rows(path: str | Path) -> list[Row]:
    """All whole lines; no file is no rows. A torn last line is left out.

    Raises ``DataError`` naming the line when one before the end cannot be read.
    """
    rows = []
    for number, line in enumerate(_whole_lines(path, sys.maxsize), start=1):
        row = _parse(line)
        if row is None:
            raise DataError(
                f"{path}, line {number}: not a JSON object. lmscale writes whole lines only, so "
                f"the disk or an editor damaged it; remove that line to go on."
            )
        rows.append(row)
    return rows


def _parse(line: bytes) -> Row | None:
    try:
        row = parse_json(line)
    except ValueError:  # also bytes that are not UTF-8
        return None
    return row if isinstance(row, dict) else None


def read_object(path: str | Path) -> Row:
    """The JSON object in a file; an empty one for a file that is missing, torn or no object."""
    try:
        return _parse(read_plain(path)) or {}
    except OSError:
        return {}


def tail_rows(path: str | Path, *, max_bytes: int = TAIL_BYTES) -> list[Row]:
    """The rows among the last 64 KiB, so that no long file need be read; no file has no rows."""
    rows = map(_parse, _whole_lines(path, max_bytes))
    return [row for row in rows if row is not None]


def _whole_lines(path: str | Path, max_bytes: int) -> list[bytes]:
    try:
        content = read_tail(path, max_bytes=max_bytes)
    except FileNotFoundError:
        return []
    return content.split(b"\n")[:-1]  # the piece after the last newline is empty, or torn


def read_tail(path: str | Path, *, start: int = 0, max_bytes: int = TAIL_BYTES) -> bytes:
    """The end of what a file holds from ``start`` on, at most ``max_bytes``."""
    with open_plain(path) as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - max_bytes))
        return file.read()


def last_row(path: str | Path) -> Row | None:
    """The last whole line, or None."""
    rows = tail_rows(path)
    return rows[-1] if rows else None


def mend_tail(path: str | Path) -> None:
    """Cut a torn last line off, so that the next append begins a line of its own."""
    path = Path(path)
    content = read_plain(path) if path.exists() else b""
    if content and not content.endswith(b"\n"):
        with writing(path.name, path.parent):
            os.truncate(path, content.rfind(b"\n") + 1)
            fsync_folder(path.parent)
