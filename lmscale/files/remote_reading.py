"""One remote file, read as if it lay here: what breaks off is taken up where it was."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from lmscale.errors import DataError
from lmscale.files.locations import protocol_of
from lmscale.files.redact import printable_name, redact
from lmscale.files.remote import Purpose, TransferError, open_filesystem, with_retries

BLOCK_BYTES = 8 << 20  # asked for at once, of a store that gives ranges
PIECE_BYTES = 1 << 20  # taken at once from a stream
# By which a server tells one state of a file from another, the surest first.
_VERSIONS = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest")
_VERSIONS += ("Last-Modified", "LastModified", "last_modified", "mtime", "updated", "created")
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html)\b", re.IGNORECASE)

INPUTS = Purpose(
    done="read",
    error=DataError,
    missing=DataError,
    if_missing="there is no such file, folder or bucket. Check the URL.",
    if_damaged="If it stays so, the file changes, or its server is at fault.",
    retries_key="corpus.retries",
)


@dataclass(frozen=True, kw_only=True)
class RemoteStatus:
    """What a server says of a file."""

    url: str
    bytes: int | None
    version: str
    """Empty where it tells nothing by which a change is seen."""


def status_of(url: str, entry: Mapping[str, Any]) -> RemoteStatus:
    """Of what a filesystem of fsspec gives."""
    found = next((str(entry[name]) for name in _VERSIONS if entry.get(name)), "")
    return RemoteStatus(url=url, bytes=entry.get("size"), version=found.removeprefix("W/"))


def look_up(url: str, *, retries: int) -> RemoteStatus:
    """What a server says of one file now. Raises ``DataError`` and ``TransientError``."""

    def ask() -> RemoteStatus:
        filesystem, path = _open(url)
        try:
            entry = filesystem.info(path)
        except FileNotFoundError as error:
            # Over http fsspec says so whatever went wrong.
            raise error.__cause__ or error from None
        if entry["type"] == "directory":
            raise DataError(f"{_shown(url)}: is a folder, and was a file.")
        return status_of(url, entry)

    return with_retries(ask, url=url, retries=retries, purpose=INPUTS)


class RemoteFile(io.RawIOBase):
    """A remote file, to be read from its beginning, or anywhere.

    No byte is lost or given twice where a connection ends early: the next one goes on at its place.
    Where a server gives no ranges, it is read from the beginning up to there. Raises ``DataError``
    and ``TransientError``.
    """

    def __init__(self, status: RemoteStatus, *, retries: int, is_random: bool = False) -> None:
        self._status, self._retries, self._is_random = status, retries, is_random
        self._is_http = protocol_of(status.url) in ("http", "https")
        self._position = 0  # of what is given next
        self._rest = memoryview(b"")  # of what has arrived, from there
        self._stream: Any = None  # of http, which stands behind the rest

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._status.bytes is not None

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._status.bytes or 0}
        position = max(0, starts[whence] + offset)
        ahead = position - self._position
        if 0 <= ahead <= len(self._rest):
            self._rest = self._rest[ahead:]
        else:
            self._rest = memoryview(b"")
            self._end_stream()
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(self._next(len(buffer)))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._position += count
        return count

    def close(self) -> None:
        self._end_stream()
        super().close()

    def _next(self, wanted: int) -> bytes:
        size = self._status.bytes
        if size is not None and self._position >= size:
            return b""
        take = self._take_piece if self._is_http and not self._is_random else self._take_block
        return with_retries(
            lambda: take(wanted), url=self._status.url, retries=self._retries, purpose=INPUTS
        )

    def _take_block(self, wanted: int) -> bytes:
        length = wanted if self._is_random else BLOCK_BYTES
        start, end = self._position, min(self._position + length, self._status.bytes or 0)
        if self._is_http:
            with closing(self._request(start, end)) as stream:
                if stream.r.status != 206:
                    raise DataError(
                        f"{_shown(self._status.url)}: its server gives no parts of files, which "
                        "this format needs: download it."
                    )
                block = b"".join(iter(lambda: stream.read(PIECE_BYTES), b""))
        else:
            filesystem, path = _open(self._status.url)
            block = filesystem.cat_file(path, start=start, end=end)
        if len(block) != end - start:
            raise TransferError(f"{len(block)} bytes arrived of {end - start}")
        return block

    def _take_piece(self, wanted: int) -> bytes:
        position, size = self._position, self._status.bytes
        try:
            if self._stream is None:
                self._stream = self._request(position)
                if self._stream.r.status != 206:
                    self._skip(position)
            piece = self._stream.read(PIECE_BYTES)
            # A web server that says no size is believed when it ends.
            end = position + len(piece)
            if size is not None and (end > size or not piece):
                raise TransferError(f"it ended after {end} bytes, and was to have {size}")
        except BaseException:
            self._end_stream()
            raise
        if position == 0 and _PAGE.match(piece) and not _is_page(self._status.url):
            raise DataError(
                f"{_shown(self._status.url)}: a web page came, and not the file. Does the URL "
                "need a login, or lead to a page about the file? On huggingface.co write "
                "/resolve/ for /blob/, on github.com /raw/."
            )
        return piece

    def _request(self, start: int, end: int | None = None) -> Any:
        """A stream of these bytes or, where its server gives no ranges, of all."""
        filesystem, path = _open(self._status.url)
        headers = {"Accept-Encoding": "identity"}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        # Block size 0: a stream; a size: it is not asked for again.
        stream = filesystem.open(path, block_size=0, size=1, headers=headers)
        answer, known = stream.r, self._status.version
        now = status_of(self._status.url, answer.headers).version
        if known and now and now != known:
            stream.close()
            raise DataError(
                f"{_shown(self._status.url)}: changed while it was read: its server calls it "
                f"{printable_name(now)}, and called it {printable_name(known)}. Run the same "
                "command again when nothing writes to it."
            )
        given = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if answer.status == 206 and (given is None or int(given[1]) != start):
            stream.close()
            raise TransferError(f"bytes from {start} were asked for, and others came")
        return stream

    def _skip(self, left: int) -> None:
        while left:
            piece = self._stream.read(min(left, PIECE_BYTES))
            if not piece:
                raise TransferError(f"it ended {left} bytes before the place that was reached")
            left -= len(piece)

    def _end_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _open(url: str) -> tuple[Any, str]:
    """The filesystem that forgets listings and gives bytes as they are stored."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol_of(url) in ("http", "https"):
        options["client_kwargs"] = {"auto_decompress": False}
    return open_filesystem(url, **options)


def _is_page(url: str) -> bool:
    """Whether a web page is what the URL names."""
    return re.search(r"\.x?html?(\.[a-z0-9]+)?$", url.partition("?")[0].lower()) is not None


def _shown(url: str) -> str:
    return printable_name(redact(url))
