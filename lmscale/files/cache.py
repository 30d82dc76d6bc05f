"""A bounded folder of files that all processes of a node share: each file is made once.

Locks (``files/locks.py``) end with their holder, so a killed process leaves nothing locked:

- ``locks/KEY``: held exclusively while a file is made, so that the others wait for it and leave
  what is half made (``.part-SIZE-KEY-PROCESS``) alone; ``locks/evict``: while room is made;
- a file itself: held shared by whoever uses it, and then never evicted.

Whoever holds a file of ``locks/`` removes it when done. Without locks there is no cache.

A file is looked at when it is taken, a large one once a day (``once``), and made anew where it is
damaged. Between two looks it is believed, so nobody else may put anything in: a folder is made
with mode 0700, another user's or one that all may write to is refused, and so is every file in it
that is a link or another user's.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lmscale.errors import ConfigError, DataError
from lmscale.files.atomic import atomic_path, fsync_file, fsync_folder, writing
from lmscale.files.locks import lock
from lmscale.files.private_folder import find_risk, is_own_file, make_private
from lmscale.files.reading import reading, sha256_file
from lmscale.files.remote import SHARDS, Purpose, TransferError, open_filesystem, with_retries

PRUNE_SECONDS = 24 * 3600  # after which a look is taken again: disks forget without a sign
logger = logging.getLogger(__name__)


class CachedFile(AbstractContextManager["CachedFile"]):
    """A file in the cache that stays there until ``close``."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def close(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)  # drops the flock
            self._descriptor = None

    __exit__ = __del__ = close


@dataclass(frozen=True, kw_only=True)
class NodeCache:
    """The cache in ``folder``, at most ``max_bytes`` large. Picklable: it holds no file open."""

    folder: Path
    max_bytes: int
    retries: int
    look: str = ""
    """A word of an audit's own: nothing counts that was looked at, or made, under another."""

    def fetch(self, url: str, *, size: int, sha256: str, purpose: Purpose = SHARDS) -> CachedFile:
        """A local copy of ``url``, downloaded once per node and checked against its size and hash.

        Keyed by the whole URL and the hash: two shards of one basename never meet, and a shard
        that was rebuilt is another file. Raises the purpose's error or ``ConfigError`` naming the
        URL.
        """

        def copy(path: Path) -> None:
            filesystem, remote_path = open_filesystem(url)
            filesystem.get_file(remote_path, str(path))
            num_bytes = path.stat().st_size
            if num_bytes != size:
                raise TransferError(f"{num_bytes} bytes arrived, the manifest says {size}")
            digest = sha256_file(path)
            if digest != sha256:
                raise TransferError(f"its sha256 is {digest}, the manifest says {sha256}")

        def write(path: Path) -> None:
            with_retries(lambda: copy(path), url=url, retries=self.retries, purpose=purpose)

        def is_sound(path: Path) -> bool:
            try:
                self.once(path, sha256, lambda: check_hash(path, sha256))
            except DataError:
                return False
            return True

        name = url.partition("?")[0].rsplit("/", 1)[-1]
        key = f"{url}\0{sha256}"
        return self.make(key, name=name, size=size, write=write, is_sound=is_sound)

    def clear(self) -> None:
        """Remove every file that nobody uses at the moment."""
        with suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                if path.is_file() and not path.name.startswith(".part-"):
                    _remove_unless_held(path)

    def make(
        self,
        key: str,
        *,
        name: str,
        size: int,
        write: Callable[[Path], None],
        is_sound: Callable[[Path], bool] = lambda path: True,
    ) -> CachedFile:
        """The cached file of ``key``, made by ``write`` if the cache has none that ``is_sound``.

        Only one process of the node makes it; the others wait. ``size``: its bytes, or an upper
        estimate, for which room is made first.
        """
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        path = self.folder / f"{digest}-{name}"
        self._refuse_risk()
        with writing("a cached file (stream.cache.folder)", self.folder):
            if cached := _hold(path, is_sound):
                return cached
            make_private(self.folder)
            self._refuse_risk()  # another user may have made it since
            make_private(self.folder / "locks")
            with _locked(self._lock_path(digest)):
                if cached := _hold(path, is_sound):
                    return cached
                if is_own_file(path):
                    logger.warning("%s: damaged; it is made again", path)
                    path.unlink(missing_ok=True)
                return self._write(path, digest, size, write)

    def _refuse_risk(self) -> None:
        if risk := find_risk(self.folder):
            raise ConfigError(
                f"{self.folder} is no safe place for cached shards: {risk}. Set "
                "stream.cache.folder to a folder that only you can write to, or TMPDIR where it "
                "is not set."
            )

    def _lock_path(self, digest: str) -> Path:
        return self.folder / "locks" / digest

    def _write(
        self, path: Path, digest: str, size: int, write: Callable[[Path], None]
    ) -> CachedFile:
        """Make the file. The caller holds ``locks/digest``."""
        for stale in self.folder.glob(f".part-*-{digest}-*"):
            stale.unlink(missing_ok=True)
        part = self.folder / f".part-{size}-{digest}-{os.getpid()}"
        try:
            with _locked(self._lock_path("evict")):
                self._make_room(size)
                part.touch()  # claims the room
            write(part)
            # Only now: the writer may have put a new file in place of the first.
            file = CachedFile(path, _open_and_lock(part, os.O_RDONLY, shared=True))
            fsync_file(part)
            os.replace(part, path)
            fsync_folder(self.folder)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return file

    def _make_room(self, size: int) -> None:
        """Evict the files unused for longest until ``size`` more bytes fit, or ``ConfigError``."""
        self._prune_if_due()
        files: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            try:
                if path.name.startswith(".part-"):
                    bytes_, digest = path.name[1:].split("-")[1:3]
                    if _remove_unless_held(self._lock_path(digest)):
                        path.unlink(missing_ok=True)  # its maker was killed
                    else:  # being written: counts with the size it will have
                        files.append((0.0, int(bytes_), path))
                elif path.is_file():
                    status = path.stat()
                    files.append((status.st_atime, status.st_size, path))
            except FileNotFoundError:
                continue  # finished or evicted meanwhile
        total = sum(bytes_ for _, bytes_, _ in files)
        for _, bytes_, path in sorted(files):
            if total + size <= self.max_bytes:
                return
            if not path.name.startswith(".part-") and _remove_unless_held(path):
                total -= bytes_
        if total + size > self.max_bytes:
            raise ConfigError(
                f"stream.cache.max_bytes = {self.max_bytes} is too small: {size} more bytes are "
                f"needed in {self.folder}, and {total} bytes there are in use. Every source needs "
                f"stream.window_shards + 1 shards at once: raise max_bytes or lower window_shards."
            )

    def once(self, path: Path, against: str, check: Callable[[], None]) -> None:
        """Call ``check`` unless this node has done so today, of the file ``path`` as it now is and
        ``against`` the same. Its error passes through, and the next call checks again.

        Where the cache's folder cannot be written or has no locks, or others may write to it, it is
        called each time.
        """
        stamp = _stamp(path, against, self.look)
        digest = hashlib.sha256(stamp).hexdigest()[:32]
        marker = self.folder / "verified" / digest
        try:
            self._refuse_risk()  # others could vouch for the file
            if _is_recent(marker):
                return
            for folder in (self.folder, self.folder / "locks", self.folder / "verified"):
                make_private(folder)
            with _locked(self._lock_path(digest)):
                if not _is_recent(marker):
                    check()
                    with atomic_path(marker, durable=False) as temporary:
                        temporary.write_bytes(stamp)
            self._prune_if_due()
        except (OSError, ConfigError):  # ConfigError: no locks, or others may write there
            check()

    def _prune_if_due(self) -> None:
        """Once a day, drop the markers that count no more, and the locks that killed processes have
        left.
        """
        stamp = self.folder / "verified" / ".pruned"
        if _is_recent(stamp):
            return
        make_private(stamp.parent)
        for marker in stamp.parent.iterdir():
            if not _is_recent(marker):
                marker.unlink(missing_ok=True)
        stamp.touch()
        for path in (self.folder / "locks").iterdir():
            with suppress(FileNotFoundError):
                _remove_unless_held(path)


def _stamp(path: Path, *more: str) -> bytes:
    """A text that differs for every file, and whenever the file has been written again."""
    status = path.stat()
    parts = (path.resolve(), status.st_size, status.st_mtime_ns, status.st_ino, *more)
    return b"\0".join(os.fsencode(str(part)) for part in parts)


def _is_recent(marker: Path) -> bool:
    """Whether a marker was made within a day; one from the future is of a clock that was wrong."""
    return is_own_file(marker) and 0 <= time.time() - marker.lstat().st_mtime < PRUNE_SECONDS


def check_hash(path: Path, sha256: str) -> None:
    """Raises ``DataError`` where the file's hash is another."""
    advice = "Restore the file, or delete it and run `lmscale shards build` again."
    with reading(path, advice):
        digest = sha256_file(path)
    if digest != sha256:
        raise DataError(
            f"{path}: its content has changed since it was built: sha256 is {digest}, the manifest "
            f"says {sha256}. {advice}"
        )


def _open_and_lock(path: Path, flags: int, *, shared: bool = False) -> int:
    """Open ``path`` and wait for the lock on it. ``ConfigError`` where there are no locks."""
    descriptor = os.open(path, flags, 0o600)
    try:
        if lock(descriptor, shared=shared):
            return descriptor
        raise ConfigError(
            f"{path.parent} is on a file system without locks (flock), so nothing keeps the "
            "processes of a node from removing cached files that others use. Set "
            "stream.cache.folder to a folder on a local disk."
        )
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file ``path``, made for this, exclusively; it is removed at the end."""
    while True:
        descriptor = _open_and_lock(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        if _is_at(path, descriptor):
            break
        os.close(descriptor)  # its holder has removed it: a lock on it means nothing
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file still is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _hold(path: Path, is_sound: Callable[[Path], bool]) -> CachedFile | None:
    """Hold the sound file ``path`` of this user, if there is one, and mark it as used now."""
    if not is_own_file(path):
        return None
    try:
        descriptor = _open_and_lock(path, os.O_RDONLY | os.O_NOFOLLOW, shared=True)
    except FileNotFoundError:
        return None
    file, status = CachedFile(path, descriptor), os.fstat(descriptor)
    # No link: evicted between open and flock.
    if status.st_nlink == 0 or not is_sound(path):
        file.close()
        return None
    # By its time of access, as that of its change says whether it was written again.
    os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
    return file


def _remove_unless_held(path: Path) -> bool:
    """Remove ``path`` unless a process holds it, or may: there are no locks. True if removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        path.unlink(missing_ok=True)  # a link, which nobody of us has made
        return True
    try:
        if not lock(descriptor, 0):
            return False
        if _is_at(path, descriptor):
            path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
