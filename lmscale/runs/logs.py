"""Log files, one a rank, and rank 0's lines on the terminal."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from rich.logging import RichHandler

from lmscale.errors import DataError
from lmscale.files.atomic import writing
from lmscale.files.progress import terminal
from lmscale.files.redact import printable, redact
from lmscale.ranks.ranks import Ranks

_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"
IN_FILE_ALONE = {"in_file_alone": True}  # as a record's ``extra``: nothing for the terminal
_OWNED = "lmscale-owned"  # marks our handlers on the root logger


def log_path(folder: str | Path, rank: int) -> Path:
    return Path(folder) / "logs" / f"rank-{rank:05d}.log"


def setup_logging(folder: str | Path, ranks: Ranks) -> None:
    """Append this rank's records to ``folder/logs/rank-00000.log``; rank 0's also to the terminal.

    lmscale's own records from INFO on, other libraries' and Python's warnings from WARNING on.
    Calling it again moves the records to the new place. Raises ``DataError`` for an unwritable one.
    """
    close_logging()
    path = log_path(folder, ranks.rank)
    with writing("log files", path.parent, DataError):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(_SafeFormatter(_FORMAT, datefmt="%Y-%m-%dT%H:%M:%S"))
    handlers: list[logging.Handler] = [file]
    if ranks.is_first:
        terminal = _terminal_handler()
        # Libraries warn about their own future; the file keeps it, a person cannot act on it.
        terminal.addFilter(lambda record: record.name != "py.warnings")
        terminal.addFilter(lambda record: not hasattr(record, *IN_FILE_ALONE))
        handlers.append(terminal)
    root = logging.getLogger()
    for handler in handlers:
        handler.set_name(_OWNED)
        root.addHandler(handler)
    logging.getLogger("lmscale").setLevel(logging.INFO)
    logging.captureWarnings(True)


def close_logging() -> None:
    root = logging.getLogger()
    for handler in [h for h in root.handlers if h.get_name() == _OWNED]:
        root.removeHandler(handler)
        handler.close()
    logging.captureWarnings(False)


def _terminal_handler() -> logging.Handler:
    console = terminal()
    if console.is_terminal:
        rich = RichHandler(
            console=console,
            show_path=False,
            show_level=False,
            omit_repeated_times=False,
            log_time_format="%H:%M:%S",
        )
        rich.setFormatter(_SafeFormatter("%(message)s"))
        return rich
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_SafeFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return handler


class _SafeFormatter(logging.Formatter):
    """Without the secrets that a message or a traceback may quote, and what steers a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(super().format(record)))
