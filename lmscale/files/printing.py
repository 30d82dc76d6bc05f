"""The one way of text to standard output and error. Whoever made it may want to steer the terminal.

What cannot be printed is shown by its number: control characters (``\\x1b``), what the terminal's
encoding lacks, and the bytes of a file's name that is not UTF-8.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Collection, Iterable, Sequence

from lmscale.files.redact import printable


def say(text: object = "", *, err: bool = False, end: str = "\n") -> None:
    """Print ``text`` now, without what would steer a terminal; line breaks and tabs stay."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{printable(str(text))}{end}")
    stream.flush()


def say_text(text: str) -> None:
    """What a model has written, now and as it is; to a terminal, which it is not to steer, as
    everything else.
    """
    if sys.stdout.isatty():
        say(text, end="")
    else:
        sys.stdout.write(text)
        sys.stdout.flush()


def count_of(number: int, noun: str) -> str:
    """``1 rank``, ``2 ranks``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def say_lines(lines: Iterable[str]) -> None:
    """Print lines that have their ends, many at a time."""
    sys.stdout.writelines(map(printable, lines))


def take_any_text() -> None:
    """Have this process's standard output and error take what their encoding has not, also from
    libraries, such as the one that renders ``--help``.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def align_rows(rows: Iterable[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Rows of cells as aligned lines; the columns ``left`` begin together, all others end so."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{'<' if column in left else '>'}{widths[column]}}"
            for column, cell in enumerate(row)
        ).rstrip()
        for row in rows
    )


def render_bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def render_time(instant: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(instant))


def render_duration(seconds: float) -> str:
    """``3 d 4 h``, ``5 min``, ``12 s``: two units at most."""
    left = max(0, round(seconds))
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count:,} {unit}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"
