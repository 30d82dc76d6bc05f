"""Where an export goes: a place on this machine, or one behind a URL, by way of this machine.

::

    PATH               written beside it, verified, renamed
    s3://bucket/place  written and verified in a folder of this machine
                       → BEGUN, what stood there goes, the files, the mark, BEGUN goes

An export behind a URL is one as long as its mark (``lmscale_export.json``) is there; what a broken
upload leaves has none. A file of its own, as of gguf, comes to be there in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lmscale.checkpoint.layout import MANIFEST
from lmscale.checkpoint.places.place import OWNER_FILE
from lmscale.errors import ConfigError, DataError
from lmscale.exchange.exported import HEAD_BYTES, MARK, Bar, is_own_file
from lmscale.files.atomic import to_json_bytes, writing
from lmscale.files.locations import join_location, local_path, protocol_of
from lmscale.files.output_folder import work_folder
from lmscale.files.redact import find_url_secrets
from lmscale.files.remote import Purpose, TransferError, open_filesystem, with_retries
from lmscale.files.sending import abort_uploads, send_pieces

Result = TypeVar("Result")

BEGUN = "lmscale_uploading.json"
"""What an upload that is under way, or broken, has in its folder."""
PROBE = "lmscale_may_write.json"
"""What is written and removed at once, to see whether it can be. It makes no folder lmscale's."""
PIECE_BYTES = 2**24
_OF_CHECKPOINTS = (MANIFEST, OWNER_FILE)
READING = Purpose(
    done="read",
    error=DataError,
    missing=DataError,
    if_missing="there is no such bucket or folder. Make the bucket, or correct --out "
    "(export.folder).",
    if_damaged="Run the same again.",
    retries_key="checkpoint.retries",
)
WRITING = replace(READING, done="written")


@dataclass(frozen=True, kw_only=True)
class RemoteExport:
    """The place of an export behind ``url``: a folder there, or ``is_file``."""

    url: str
    is_file: bool
    retries: int

    def claim(self, *, force: bool) -> None:
        """Show that files can be written there, before the export is made.

        Raises ``ConfigError`` where something stands that may not be replaced, and the errors of
        ``with_retries``.
        """
        names = self._names()
        if not names.isdisjoint(_OF_CHECKPOINTS):
            raise ConfigError(f"{self.url} holds checkpoints of a run. Name another place.")
        if not self._is_own(names) and not force:
            raise ConfigError(
                f"{self.url} exists, and lmscale did not write it. Name another place, or replace "
                "it: --force"
            )
        probe = f"{self.url}.{PROBE}" if self.is_file else join_location(self.url, PROBE)
        self._write(probe, "asked")
        self._do(_remove, probe)

    def _names(self) -> set[str]:
        """Of the files directly in there."""
        if self.is_file:
            return set()
        found = {path.rpartition("/")[2] for path in self._do(_list_files, self.url, READING)}
        return found - {PROBE}

    def _is_own(self, names: set[str]) -> bool:
        """Whether nothing stands there, or what lmscale wrote."""
        if self.is_file:
            head = self._do(_read_head, self.url, READING)
            return head is None or is_own_file(head)
        return not names or not names.isdisjoint((MARK, BEGUN))

    def read_mark(self) -> bytes | None:
        """What says of which checkpoint it is; None: there is no whole export."""
        if self.is_file:
            head = self._do(_read_head, self.url, READING)
            return head if head and is_own_file(head) else None
        return self._do(_read_or_none, join_location(self.url, MARK), READING)

    def send(self, made: Path, advance: Callable[[float], None]) -> None:
        """Send the folder, or the file, that was made. ``advance`` is called with megabytes."""
        if protocol_of(self.url) in ("s3", "s3a"):
            self._do(partial(abort_uploads, is_file=self.is_file), self.url)
        if self.is_file:
            self._send_file(made, self.url)
            advance(made.stat().st_size / 1e6)
            return
        self._write(self._begun, "begun")  # not before: by it the folder is lmscale's
        self._clear()
        files = sorted(path for path in made.rglob("*") if path.is_file())
        # Last what makes it an export, and before it what it would be loaded by.
        late = (made / "config.json", made / MARK)
        for path in sorted(files, key=lambda path: path in late and late.index(path) + 1):
            url = join_location(self.url, path.relative_to(made).as_posix())
            self._send_file(path, url)
            advance(path.stat().st_size / 1e6)
        self._do(_remove, self._begun)

    def remove(self) -> None:
        """Remove an export of lmscale's. A kill in between leaves what is none any more."""
        if self.is_file:
            self._do(_remove, self.url)
            return
        self._write(self._begun, "removed")
        self._clear()
        self._do(_remove, self._begun)

    @property
    def _begun(self) -> str:
        return join_location(self.url, BEGUN)

    def _write(self, url: str, state: str) -> None:
        content = to_json_bytes({"export": self.url, "state": state})
        self._do(lambda store, path: store.pipe_file(path, content), url)

    def _clear(self) -> None:
        """Remove the files directly in there, the mark first: without it, it is no export."""
        paths = self._do(_list_files, self.url)
        for path in sorted(paths, key=lambda path: path.rpartition("/")[2] != MARK):
            name = path.rpartition("/")[2]
            if name != BEGUN:
                self._do(_remove, join_location(self.url, name))

    def _send_file(self, path: Path, url: str) -> None:
        self._do(partial(_send, path), url)

    def _do(
        self, action: Callable[[Any, str], Result], url: str, purpose: Purpose = WRITING
    ) -> Result:
        def attempt() -> Result:
            return action(*open_filesystem(url, use_listings_cache=False))

        return with_retries(attempt, url=url, retries=self.retries, purpose=purpose)


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where an export shall be, and how."""

    place: str
    """A path, or a URL."""
    is_file: bool
    force: bool
    """What stands there may go, though lmscale did not write it."""
    work: Path
    """The folder in which what goes to a URL is made."""
    retries: int

    @contextmanager
    def open(self, bar: Bar) -> Iterator[Path]:
        """Where to write it; what is behind a URL is made in a folder of its own, and sent when the
        block ends well.

        Raises ``ConfigError`` where a URL may not be replaced or can never be written to; what
        stands at a path is looked at by whoever writes there.
        """
        if protocol_of(self.place) is None:
            yield local_path(self.place)
            return
        remote = open_remote(self.place, is_file=self.is_file, retries=self.retries)
        remote.claim(force=self.force)
        name = remote.url.rpartition("/")[2]
        # One name for all: so the next one clears away what a killed one has left.
        with writing("an export", self.work), work_folder(self.work / "upload") as folder:
            yield folder / name
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            with bar("uploading", size / 1e6, "MB") as advance:
                # If it breaks, BEGUN stays beside what is there: so the next one may replace it.
                remote.send(folder / name, advance)


def open_remote(out: str, *, is_file: bool, retries: int) -> RemoteExport:
    """Raises ``ConfigError`` for a URL that can never hold an export."""
    protocol, _, rest = out.partition("://")
    if protocol in ("http", "https"):
        raise ConfigError(f"{out}: nothing can be written to {protocol}://. Take s3:// or gs://.")
    if any(find_url_secrets({"out": out})) or "?" in out:
        raise ConfigError(
            "The URL of --out has credentials or a query in it, which logs would show. Leave them "
            "out, and give them by environment variables or files, such as ~/.aws/credentials."
        )
    url = out.rstrip("/")
    if "/" not in rest.rstrip("/") and protocol != "memory":
        raise ConfigError(f"{out} is a whole bucket: name a place in it, as {url}/exports/1.")
    return RemoteExport(url=url, is_file=is_file, retries=retries)


def _list_files(store: Any, path: str) -> list[str]:
    """Of a folder, those directly in there; a file of that name counts as one."""
    try:
        found = store.ls(path, detail=True, refresh=True)
    except FileNotFoundError:
        return []
    return [each["name"] for each in found if each["type"] == "file"]


def _read_or_none(store: Any, path: str) -> bytes | None:
    try:
        return store.cat_file(path)
    except FileNotFoundError:
        return None


def _read_head(store: Any, path: str) -> bytes | None:
    try:
        return store.cat_file(path, start=0, end=HEAD_BYTES)
    except FileNotFoundError:
        return None


def _remove(store: Any, path: str) -> None:
    with suppress(FileNotFoundError):
        store.rm_file(path)


def _send(path: Path, store: Any, to: str) -> None:
    with open(path, "rb") as file:
        pieces = iter(lambda: file.read(PIECE_BYTES), b"")
        size = send_pieces(store, to, map(memoryview, pieces))
    arrived = store.info(to)["size"]
    if arrived != size:
        raise TransferError(f"{arrived} bytes arrived of {size}")
