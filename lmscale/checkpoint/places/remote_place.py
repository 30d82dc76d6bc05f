"""Checkpoints behind a URL that fsspec knows: S3 and what speaks like it, Google's, memory.

Nothing is staged on a disk: a file goes out in parts, from memory. A manifest is put last, and only
where there is none yet, if the store can do that (S3: ``If-None-Match``; of two writers to a store
that cannot, the last one wins). Listings are always the store's own, never fsspec's cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from errno import EINVAL, ENOSYS
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lmscale.checkpoint.layout import MANIFEST
from lmscale.checkpoint.manifest import FileEntry
from lmscale.checkpoint.places.place import OWNER_FILE, Place, check_owner
from lmscale.errors import CheckpointError, TransientError
from lmscale.files import fault_points
from lmscale.files.atomic import sha256_of, to_json_bytes
from lmscale.files.cache import NodeCache
from lmscale.files.locations import join_location, protocol_of
from lmscale.files.remote import Purpose, open_filesystem, with_retries
from lmscale.files.run_files import STEP_FOLDER
from lmscale.files.sending import PART_BYTES, abort_uploads, send_pieces

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

READ_BYTES = 16 * 2**20
READING = Purpose(
    done="read",
    error=CheckpointError,
    missing=CheckpointError,
    if_missing="there is no such file, bucket or folder. Make the bucket, or correct "
    "checkpoint.folder.",
    if_damaged="If it stays so, this checkpoint is damaged: resume from an older one.",
    retries_key="checkpoint.retries",
)
WRITING = replace(
    READING,
    done="written",
    if_damaged="If it stays so, the store loses what it is given: name another checkpoint.folder.",
)


class RemotePlace(Place):
    """A root of checkpoints behind ``url``; ``cache`` takes the files that are being read."""

    def __init__(self, url: str, *, retries: int, cache: NodeCache) -> None:
        self.location = url
        self._retries = retries
        self._cache = cache

    def claim(self, run_name: str) -> None:
        url = join_location(self.location, OWNER_FILE)

        def attempt(filesystem: Any, path: str) -> None:
            owner = to_json_bytes({"run": run_name})
            check_owner(_put_once(filesystem, path, owner), run_name, self.location)
            filesystem.pipe_file(path, owner)  # its own: it shows that saves can be written as well

        self._do(attempt, url, WRITING)
        self.list_steps()

    def list_steps(self, *, committed: bool = True) -> list[int]:
        has_manifest: dict[int, bool] = {}
        for step, name in self._do(_list_files, self.location, READING):
            has_manifest[step] = has_manifest.get(step, False) or name == MANIFEST
        steps = (step for step, is_there in has_manifest.items() if is_there == committed)
        return sorted(steps, reverse=True)

    def read_manifest(self, step: int) -> str:
        url = self._url(step, MANIFEST)
        content = self._do(_read_or_none, url, READING)
        if content is None:
            raise FileNotFoundError(url)
        return content.decode()

    def begin(self, step: int) -> None:
        self.delete(step)

    def write_file(self, step: int, name: str, pieces: Iterable[memoryview]) -> None:
        failure: list[BaseException] = []  # of whoever makes the pieces: not the store's

        def given() -> Iterator[memoryview]:
            try:
                yield from pieces
            except BaseException as error:
                failure.append(error)
                raise

        def attempt(filesystem: Any, path: str) -> tuple[int, int]:
            return _upload(filesystem, path, given()), filesystem.info(path)["size"]

        url = self._url(step, name)
        try:  # once: the pieces do not come again
            size, arrived = self._do(attempt, url, WRITING, retries=0)
        except Exception:
            if failure:
                raise failure[0] from None
            raise
        if arrived != size:  # which whoever makes the pieces may try again
            raise TransientError(
                f"{url}: could not be written: {arrived} bytes arrived of {size}. "
                f"{WRITING.if_damaged}"
            )
        fault_points.hit("save.written", step=step)

    def commit(self, step: int, manifest: bytes) -> bytes:
        put_once = partial(_put_once, content=manifest)
        standing = self._do(put_once, self._url(step, MANIFEST), WRITING)
        fault_points.hit("save.committed", step=step)
        return standing

    def delete(self, step: int) -> None:
        def remove_manifest(filesystem: Any, path: str) -> None:
            with suppress(FileNotFoundError):
                filesystem.rm_file(path)

        def remove_rest(filesystem: Any, path: str) -> None:
            paths = filesystem.find(path)
            if paths:
                with suppress(FileNotFoundError):
                    filesystem.rm(paths)

        self._do(remove_manifest, self._url(step, MANIFEST), WRITING)
        self._do(remove_rest, self.name_of(step), WRITING)

    def discard_uncommitted(self) -> None:
        if protocol_of(self.location) in ("s3", "s3a"):
            self._do(_abort_uploads, self.location, WRITING)
        for step in self.list_steps(committed=False):
            logger.warning("%s was never committed: it is cleared away", self.name_of(step))
            if self._do(_read_or_none, self._url(step, MANIFEST), READING) is None:
                self.delete(step)

    def describe_damage(self, step: int, entry: FileEntry) -> str | None:
        url = self._url(step, entry.name)

        def attempt(filesystem: Any, path: str) -> str | None:
            try:
                size = filesystem.info(path)["size"]
            except FileNotFoundError:
                return f"{url} is missing"
            if size != entry.bytes:
                return f"{url} has {size} bytes instead of {entry.bytes}"
            with filesystem.open(path, "rb", block_size=READ_BYTES) as file:
                if sha256_of(file) != entry.sha256:
                    return f"{url} does not have the hash that its manifest gives"
            return None

        return self._do(attempt, url, READING)

    @contextmanager
    def opened(self, step: int, entry: FileEntry) -> Iterator[Path]:
        url = self._url(step, entry.name)
        try:
            size, sha256 = entry.bytes, entry.sha256
            with self._cache.fetch(url, size=size, sha256=sha256, purpose=READING) as file:
                yield file.path
        finally:
            self._cache.clear()

    def _url(self, step: int, name: str) -> str:
        return join_location(self.name_of(step), name)

    def _do(
        self,
        action: Callable[[Any, str], Result],
        url: str,
        purpose: Purpose,
        retries: int | None = None,
    ) -> Result:
        """``action(filesystem, path)``, again when it fails for a reason that may pass."""

        def attempt() -> Result:
            # Asked for every time: fsspec's objects are of one thread, and this place is not.
            return action(*open_filesystem(url, use_listings_cache=False))

        retries = self._retries if retries is None else retries
        return with_retries(attempt, url=url, retries=retries, purpose=purpose)


def _list_files(filesystem: Any, root: str) -> list[tuple[int, str]]:
    """(step, name) of every file of a checkpoint, by one listing."""
    files = []
    for path in filesystem.find(root):
        folder, _, name = path[len(root.rstrip("/")) + 1 :].partition("/")
        match = STEP_FOLDER.fullmatch(folder)
        if match:
            files.append((int(match[1]), name))
    return files


def _read_or_none(filesystem: Any, path: str) -> bytes | None:
    try:
        return filesystem.cat_file(path)
    except FileNotFoundError:
        return None


def _put_once(filesystem: Any, path: str, content: bytes) -> bytes:
    """Write a file unless it is there; returns what stands there."""
    try:
        filesystem.pipe_file(path, content, mode="create")
    except FileExistsError:
        pass
    except OSError as refused:
        # A store that says only that its condition was not met, or that it knows no conditions.
        if refused.errno not in (EINVAL, ENOSYS):
            raise
        if _read_or_none(filesystem, path) is None:
            if refused.errno == EINVAL:
                raise
            filesystem.pipe_file(path, content)
    return filesystem.cat_file(path)


def _upload(filesystem: Any, path: str, pieces: Iterable[memoryview]) -> int:
    return send_pieces(filesystem, path, pieces, part_bytes=PART_BYTES)


def _abort_uploads(filesystem: Any, root: str) -> None:
    abort_uploads(filesystem, root, begins_with="step-")
