"""Files that lmscale reads back: plain files only, whole, and with what was written into them.

What stands in a file's place and is none (a folder, a pipe that nobody writes to, a loop of links)
is an ``OSError`` at once. JSON that no person writes carries its own hash (``seal``).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lmscale.errors import DataError, LmscaleError, TransientError
from lmscale.files.atomic import may_pass, sha256_of
from lmscale.files.strangers import parse_json

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def open_plain(path: str | Path) -> BinaryIO:
    """A plain file, open for reading. Raises ``OSError``, also for what is none."""
    # Without waiting, as a pipe would have it; of a plain file nothing else changes.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            what = f"{_KINDS.get(kind, 'a device')} stands where a file should be"
            raise OSError(errno.EISDIR, what, str(path))  # which `writing` knows
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_plain(path: str | Path) -> bytes:
    with open_plain(path) as file:
        return file.read()


def sha256_file(path: str | Path) -> str:
    """The hash of a plain file, in hexadecimal. Raises ``OSError``."""
    with open_plain(path) as file:
        return sha256_of(file)


@contextmanager
def reading(
    path: str | Path, advice: str, error: type[LmscaleError] = DataError, *, missing: str = ""
) -> Iterator[None]:
    """Turn what keeps the file from being read, and every ``ValueError`` of its content, into an
    ``error`` that names it and ends in ``advice``, or in ``missing`` where there is no such file.

    A disk or a network file system that fails is a ``TransientError``.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as failure:
        problem = missing or f"there is no such file ({failure.strerror}). {advice}"
        raise error(f"{path}: {problem}") from None
    except OSError as failure:
        kind = TransientError if may_pass(failure) else error
        raise kind(f"{path}: cannot be read: {failure.strerror or failure}. {advice}") from None
    except ValueError as failure:
        raise error(f"{path}: damaged: {str(failure).rstrip('.')}. {advice}") from None


def sealed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object with one key more, ``sha256``: the hash of all the others."""
    return {**tree, "sha256": _hash(tree)}


def seal(tree: Mapping[str, Any]) -> bytes:
    """The file of ``sealed``."""
    return (json.dumps(sealed(tree), indent=1) + "\n").encode()


def unseal(content: bytes) -> dict[str, Any]:
    """The object that ``seal`` was given. Raises ``ValueError`` for all that it did not write."""
    tree = parse_json(content)
    if not isinstance(tree, dict):
        raise ValueError("it holds no JSON object")
    if tree.pop("sha256", None) != _hash(tree):
        raise ValueError("it does not match its own sha256")
    return tree


def _hash(tree: Mapping[str, Any]) -> str:
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
