"""A folder that a command makes: it appears whole or not at all, also where it replaces another."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lmscale.errors import ConfigError
from lmscale.files.atomic import fsync_file, fsync_folder, replace_folder
from lmscale.files.locks import lock
from lmscale.files.run_files import EXPORTS

REMOVALS = 20  # tries, while another thread still writes
_unfinished: set[Path] = set()
_replacing = threading.Lock()  # between its renames nothing bears the name


def check_output(path: Path, *, mark: str, force: bool, source: Path) -> None:
    """Raise ``ConfigError`` where something stands that may not be replaced.

    A folder may that has the file ``mark``, as lmscale made it; with ``force`` any may that neither
    is nor holds ``source`` or the folder of this process. In the run ``source`` only what is below
    its exports may, and may be new.
    """
    _check_place(path, source)
    if not (path.exists() or path.is_symlink()):
        return
    _check_link(path)
    if not path.is_dir():
        raise ConfigError(f"{path} exists and is no folder. Name another one.")
    if Path.cwd().is_relative_to(path.resolve()):
        raise ConfigError(f"{path} is the folder that this command runs in. Name another one.")
    if source.resolve().is_relative_to(path.resolve()):
        raise ConfigError(f"{path} holds {source}, which is read. Name another folder.")
    if not (force or (path / mark).is_file() or not any(path.iterdir())):
        raise ConfigError(
            f"{path} exists, and lmscale did not write it (it has no {mark}). Name another folder, "
            "or replace all that is in it: --force"
        )


def check_output_file(
    path: Path, *, is_ours: Callable[[Path], bool], force: bool, source: Path
) -> None:
    """Raise ``ConfigError`` where something stands that may not be replaced; a file that
    ``is_ours`` may, and with ``force`` any file, but none in the run ``source`` beside its exports.
    """
    _check_place(path, source)
    if not (path.exists() or path.is_symlink()):
        return
    _check_link(path)
    if not path.is_file():
        raise ConfigError(f"{path} exists and is no plain file. Name another one.")
    if not (force or is_ours(path)):
        raise ConfigError(
            f"{path} exists, and lmscale did not write it. Name another file, or replace it: "
            "--force"
        )


def _check_place(path: Path, source: Path) -> None:
    if path.name == "..":
        raise ConfigError(f"{path} does not name a place by its own name. Name it without ..")
    run, place = source.resolve(), path.resolve()
    if run in place.parents and run / EXPORTS not in place.parents:
        raise ConfigError(
            f"{path} is in the run {source}, which is read. Name a place outside of it, or in "
            f"{source / EXPORTS}."
        )


def _check_link(path: Path) -> None:
    if path.is_symlink():
        raise ConfigError(
            f"{path} is a symbolic link, which is not replaced. Name what it points to, or another "
            "place."
        )


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``; on success it is durable and named ``path``, and what
    stood there is gone. On any error the new folder is removed.

    What killed processes left beside ``path`` is cleared away first.
    """
    with work_folder(path) as work:
        yield work
        fsync_folder(work)
        with _replacing:
            replace_folder(work, path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``; on success it is durable and named ``path``. Where
    something stands by then, that stays, and it is an ``OSError``. On any error the new folder is
    removed.

    What killed processes left beside ``path`` is cleared away first.
    """
    with work_folder(path) as work:
        yield work
        fsync_folder(work)
        os.rename(work, path)
        fsync_folder(path.parent)


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """Yield where to write the file; on success it is durable and named ``path``, and what stood
    there is gone. On any error nothing is left of it.
    """
    with work_folder(path) as work:
        yield work / path.name
        fsync_file(work / path.name)
        os.replace(work / path.name, path)
        fsync_folder(path.parent)


@contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, which is gone behind the block, and in a process that
    ends by ``discard_unfinished``. What killed processes left of such is cleared away first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        _clear_if_left(left)
    work = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    _unfinished.add(work)
    try:
        work.mkdir()
        descriptor = os.open(work, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems lock no folder
                lock(descriptor, 0)
            yield work
        finally:
            os.close(descriptor)
    finally:
        _unfinished.discard(work)
        shutil.rmtree(work, ignore_errors=True)


def remove_output(path: Path) -> None:
    """Remove a folder or a file that a command has made; a kill leaves none half under its name."""
    with work_folder(path) as work:
        os.replace(path, work / path.name)


def discard_unfinished() -> None:
    """Remove the folders that this process has not finished; from any thread, before it ends."""
    with _replacing:
        for work in tuple(_unfinished):
            for _ in range(REMOVALS):
                shutil.rmtree(work, ignore_errors=True)
                if not work.exists():
                    break
                time.sleep(0.05)


def _clear_if_left(work: Path) -> None:
    """Only where the lock shows that its maker is gone."""
    try:
        descriptor = os.open(work, os.O_RDONLY)
    except OSError:
        return
    try:
        if lock(descriptor, 0):
            shutil.rmtree(work, ignore_errors=True)
    except OSError:
        return
    finally:
        os.close(descriptor)
