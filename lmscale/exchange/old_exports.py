"""Which exports of a run that trains go when a newer one is there (``export.keep``)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from lmscale.errors import LmscaleError
from lmscale.exchange.destination import open_remote
from lmscale.exchange.exported import HEAD_BYTES, MARK, is_own_file
from lmscale.files.locations import local_path, protocol_of
from lmscale.files.output_folder import remove_output
from lmscale.runs.exports import plan_old_exports

logger = logging.getLogger(__name__)


def remove_old_exports(run_folder: Path, out: str, *, keep: int, retries: int) -> Iterator[str]:
    """Remove all but ``keep`` exports beside ``out``, which is the newest; yields what went.

    0 removes none. Only those go that ``exports.jsonl`` has as done, and that still say themselves
    of which of this run's checkpoints they are. What cannot be removed is told and stays.
    """
    for place, sha256 in plan_old_exports(run_folder, out, keep=keep) if keep else ():
        try:
            if _remove(place, sha256, retries):
                yield place
        except (LmscaleError, OSError) as error:
            logger.warning("%s stays, though export.keep = %d: %s", place, keep, error)


def _remove(place: str, sha256: str, retries: int) -> bool:
    if protocol_of(place) is not None:
        remote = open_remote(place, is_file=place.endswith(".gguf"), retries=retries)
        is_its = sha256.encode() in (remote.read_mark() or b"")
        if is_its:
            remote.remove()
        return is_its
    path = local_path(place)
    if path.is_symlink() or sha256.encode() not in _read_mark(path):
        return False
    remove_output(path)
    return True


def _read_mark(path: Path) -> bytes:
    try:
        if path.is_dir():
            return (path / MARK).read_bytes()
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        return b""
    return head if is_own_file(head) else b""
