"""Files that are either whole or absent: written under a temporary name, fsynced, renamed."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmscale.errors import DataError, LmscaleError, TransientError
from lmscale.files.meter import count

# What a file system says that has no hard links.
_NO_LINKS = {errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What a disk or a network file system says that fails, or is away for a while; Lustre gives the
# last two when its server has dropped a client.
_FAILING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ESHUTDOWN, errno.ENOTCONN}
_WHAT_TO_DO = (
    ({errno.EACCES, errno.EPERM, errno.EROFS}, "Name a place that this user may write to."),
    (
        {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP},
        "A file stands where a folder must be, or the other way round: name another place, or "
        "move it away.",
    ),
    (
        {errno.ENOTEMPTY},
        "Something has appeared there meanwhile: name another place, or move it away.",
    ),
    ({errno.ENAMETOOLONG}, "Name a place with a shorter path."),
    (
        {errno.ENOENT},
        "Something vanished meanwhile: see that nothing else uses the folder, and run the same "
        "command again.",
    ),
    (
        _FAILING,
        "The disk or the network file system failed: run the same command again, and see to it if "
        "it stays so.",
    ),
)


@contextmanager
def atomic_path(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success fsync it and rename it into place.

    On any error the temporary file is removed and nothing at ``path`` has changed. Not ``durable``:
    without fsync, for what the next start of this machine need not know.
    """
    path = Path(path)
    # Not the process's number: on another node a process of the same one may write the same file.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if durable:
            fsync_file(temporary)
        os.replace(temporary, path)
        if durable:
            fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, value: Any) -> None:
    write_bytes(path, to_json_bytes(value))


def to_json_bytes(value: Any) -> bytes:
    # Half a character, as in a file name that is not UTF-8, becomes JSON's own escape: \udce9.
    return f"{json.dumps(value, indent=1, ensure_ascii=False)}\n".encode(errors="backslashreplace")


def write_bytes_once(path: str | Path, content: bytes) -> bytes:
    """Write a file that does not exist yet, and return its content: one writer wins."""
    path = Path(path)
    if not path.exists():
        candidate = path.with_name(f".{path.name}.{secrets.token_hex(4)}.once")
        write_bytes(candidate, content)
        try:
            os.link(candidate, path)  # fails where the file exists, which a rename would not
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.replace(candidate, path)  # the last writer wins
        finally:
            candidate.unlink(missing_ok=True)
        fsync_folder(path.parent)
    return path.read_bytes()


def fsync_file(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


fsync_folder = fsync_file  # makes a rename or a new entry in a folder durable


def replace_folder(work: Path, final: Path) -> None:
    """Name a finished folder ``final``; a kill between the renames leaves the old one beside it,
    which the next one clears away.

    The caller has made sure that what stands at ``final`` may go.
    """
    ours = f".{glob.escape(final.name)}.{'[0-9a-f]' * 8}.old"  # and nobody else's
    for left in final.parent.glob(ours):
        shutil.rmtree(left, ignore_errors=True)
    old = final.with_name(f".{final.name}.{secrets.token_hex(4)}.old")
    if final.exists():
        os.replace(final, old)
    try:
        os.replace(work, final)
    except OSError:
        if old.exists() and not final.exists():
            os.replace(old, final)
        raise
    fsync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def have_sizes(files: Iterable[tuple[Path, int]]) -> bool:
    """Whether every file exists and has as many bytes as its manifest says."""
    return all(path.is_file() and path.stat().st_size == size for path, size in files)


def sha256_of(file: Any) -> str:
    """The digest of the rest of an open binary file, read in 4 MiB pieces, which are counted."""
    digest = hashlib.sha256()
    while piece := file.read(1 << 22):
        digest.update(piece)
        count(len(piece))
    return digest.hexdigest()


def may_pass(failure: BaseException) -> bool:
    """Whether the file system failed by itself, rather than refused what was asked of it."""
    return isinstance(failure, OSError) and failure.errno in _FAILING


def is_full(failure: BaseException) -> bool:
    """Whether the file system has no room left for this user."""
    return isinstance(failure, OSError) and failure.errno in _OUT_OF_SPACE


@contextmanager
def writing(
    what: str,
    folder: str | Path,
    error: type[LmscaleError] = DataError,
    *,
    no_space: type[LmscaleError] | None = None,
) -> Iterator[None]:
    """Turn a file system's refusal inside the block into an ``error`` that a person can act on.

    A disk or a network that fails is a ``TransientError``, and an ``OSError`` that says none of
    this passes through, as a bug. ``no_space``: the class for a full disk, in a run that trains.
    """
    try:
        yield
    except OSError as failure:
        if failure.errno in _OUT_OF_SPACE:
            raise (no_space or error)(
                f"No space is left in {folder} while writing {what}. Nothing half-written counts: "
                "free some space and run the same command again."
            ) from failure
        advice = next((text for codes, text in _WHAT_TO_DO if failure.errno in codes), None)
        if advice:
            kind = TransientError if may_pass(failure) else error
            raise kind(
                f"{folder} cannot be written to while writing {what}: {failure}. {advice}"
            ) from failure
        raise
