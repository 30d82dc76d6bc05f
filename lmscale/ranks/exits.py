"""How a process ends: at once, or after a peer; and its exit code, in a file for the batch script.

srun gives only the largest exit code of its tasks, which tells apart neither a rank that stopped in
good order (75) nor one that lost its peer by that (1).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from lmscale.files.atomic import atomic_path

FOLDER_VARIABLE = "LMSCALE_EXITS"
# What gloo and NCCL say of a peer that has ended; gloo raises a bare RuntimeError.
_PEER_GONE = (
    *("Connection closed by peer", "Connection reset by peer", "Connection refused"),
    *("Broken pipe", "Socket closed", "Socket Timeout", "Timed out waiting", "recvValue failed"),
    *("DistNetworkError", "DistBackendError"),
)


def says_peer_gone(text: str) -> bool:
    """Whether an error, or a rank's last words, say that another rank went first."""
    return any(words in text for words in _PEER_GONE)


def leave(code: int, words: str) -> NoReturn:
    """End this process now, from any thread, even if other threads hang."""
    say_now(words)
    record_exit(code)
    os._exit(code)


def record_exit(code: int, environ: Mapping[str, str] | None = None) -> None:
    """Write ``code`` into ``rank-00003`` in the folder that ``LMSCALE_EXITS`` names, if set.

    A file that cannot be written does not change how the process ends.
    """
    _write("rank", f"{code}\n", f"exit code {code}", environ)


def record_fault(
    summary: str, bad_nodes: Mapping[str, str], environ: Mapping[str, str] | None = None
) -> None:
    """Write why a run ends with 75 though nobody asked it to into ``fault-00003``, beside the code.

    The first line is ``summary``; every other one a node that is certainly at fault, a tab and the
    reason, as in the preflight's ``bad-nodes``. Every rank writes its own, before its code: srun
    kills the others as soon as the first one has ended.
    """
    rows = (" ".join(row.split("\n")) for row in (f"{n}\t{why}" for n, why in bad_nodes.items()))
    text = "".join(f"{row}\n" for row in (" ".join(summary.split()), *rows))
    _write("fault", text, f"fault '{summary}'", environ)


def _write(kind: str, text: str, what: str, environ: Mapping[str, str] | None) -> None:
    environ = os.environ if environ is None else environ
    folder = environ.get(FOLDER_VARIABLE)
    if not folder:
        return
    rank = environ.get("RANK", "")
    path = Path(folder) / f"{kind}-{int(rank) if rank.isdecimal() else 0:05d}"
    try:
        with atomic_path(path, durable=False) as temporary:
            temporary.write_text(text)
    except OSError as error:
        say_now(f"lmscale: the {what} could not be written to {path}: {error}")


def say_now(words: str) -> None:
    """Past Python's buffers and their locks, which a thread that hangs may hold."""
    try:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{words}\n".encode())
    except (OSError, ValueError):
        pass
