"""Text out of plain and packed files, in bounded memory: unpacked, decoded, cut into records.

Every step takes and gives pieces, and what a piece becomes is bounded by what comes out of it, not
by what goes in: a few kilobytes can be packed text of any size.
"""

from __future__ import annotations

import bz2
import codecs
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from lmscale.errors import DataError
from lmscale.files.extras import install_extra
from lmscale.files.found import FoundFile
from lmscale.files.meter import CountedFile

PIECE_BYTES = 1 << 20
# What a packer may look back on, which has to be held in memory. The largest that `zstd --long=31`
# writes; of an .xz nothing needs more than 64 MiB.
MAX_WINDOW_BYTES = 1 << 31
# A separator is looked for across the edges of pieces, but not farther back than this.
OVERLAP_CHARS = 4096
_UNDECODABLE = "lmscale.undecodable"  # the error handler below, by its name


class Packing(NamedTuple):
    """A way to pack: how its files begin, and what unpacks one of the streams in a file."""

    name: str
    magic: re.Pattern[bytes]
    open: Callable[[], Any]
    feed_bytes: int = 1 << 16  # taken from the file at a time


class _ZstdFrame:
    """One frame; its library cannot bound what it gives, so it is fed little at a time."""

    unconsumed_tail = b""

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise missing_extra("reading .zst", "zstandard") from None
        # Not stream_reader: at a cut file it just ends, as if the text were shorter.
        unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        self._frame = unpacker.decompressobj(write_size=1 << 16)
        self._error = zstandard.ZstdError

    def decompress(self, packed: bytes, max_length: int) -> bytes:
        try:
            return self._frame.decompress(packed)
        except self._error as error:
            raise ValueError(error) from None

    def __getattr__(self, name: str) -> Any:  # eof, unused_data
        return getattr(self._frame, name)


PACKINGS = {
    ".gz": Packing("gzip", re.compile(rb"\x1f\x8b"), lambda: zlib.decompressobj(31)),
    ".bz2": Packing("bzip2", re.compile(rb"BZh\d(1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor),
    ".xz": Packing(
        "xz",
        re.compile(rb"\xfd7zXZ\0"),
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW_BYTES),
    ),
    # 1 KiB are at most 256 blocks of 128 KiB, 32 MiB. A file may begin with a frame to be skipped.
    ".zst": Packing(
        "zstd", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _ZstdFrame, 1024
    ),
}
_DAMAGE = (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError)


def missing_extra(what: str, package: str) -> DataError:
    return DataError(f"{what} needs {package}: {install_extra('corpus')} in the clone.")


def read_pieces(raw: FoundFile) -> Iterator[bytes]:
    """The bytes of a file, unpacked if it is packed; no piece is empty. Raises ``DataError``.

    By its first bytes a file is packed, or by its ending: then it has to begin accordingly.
    """
    shown = raw.shown
    try:
        with raw.open() as opened:
            file = CountedFile(opened)
            head = file.read(16)
            packing = next((each for each in PACKINGS.values() if each.magic.match(head)), None)
            packing = packing or PACKINGS.get(raw.ending)
            if packing is None:
                if head:
                    yield head + file.read(PIECE_BYTES - len(head))
                while piece := file.read(PIECE_BYTES):
                    yield piece
                return
            try:
                yield from _unpack(file, packing, head)
            except _DAMAGE as error:
                if isinstance(error, OSError) and error.errno:
                    raise
                raise DataError(
                    f"{shown}: cannot be unpacked as {packing.name}: {error}."
                ) from None
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror}.") from None


def _unpack(file: CountedFile, packing: Packing, head: bytes) -> Iterator[bytes]:
    """The content of the streams (members, frames) that a file holds one behind the other, of which
    the head was read already.
    """
    packed = head + file.read(packing.feed_bytes - len(head))
    while True:
        unpacker = packing.open()
        while not unpacker.eof:
            piece = unpacker.decompress(packed, PIECE_BYTES)
            packed = getattr(unpacker, "unconsumed_tail", b"")
            if piece:
                yield piece
            elif not packed and not unpacker.eof:
                packed = file.read(packing.feed_bytes)
                if not packed:
                    raise EOFError("it is cut: its end is missing")
        packed = unpacker.unused_data
        while not (packed := packed.lstrip(b"\0")):  # padding
            packed = file.read(packing.feed_bytes)
            if not packed:
                return


class Unpacked(io.RawIOBase):
    """The same to be read like a file, from its beginning to its end."""

    def __init__(self, raw: FoundFile) -> None:
        self._pieces = read_pieces(raw)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _mark(error: UnicodeError) -> tuple[str, int]:
    """A byte that does not decode becomes a lone surrogate, which no text holds."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(0xDC00 + error.object[error.start]), error.end


codecs.register_error(_UNDECODABLE, _mark)


def decode(pieces: Iterable[bytes], encoding: str) -> Iterator[str]:
    """The text of the pieces without a byte order mark; ``find_undecodable`` finds what is none.

    Raises ``LookupError`` for what is no encoding of text.
    """
    io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # refuses hex and the like
    decoder = codecs.getincrementaldecoder(encoding)(_UNDECODABLE)
    is_first = True
    for piece in chain(pieces, [b""]):  # which tells the decoder that the text ends
        text = decoder.decode(piece, final=not piece)
        if is_first and text:
            text, is_first = text.removeprefix("\ufeff"), False
        yield text


def find_undecodable(pieces: Iterable[str]) -> str | None:
    """The first byte in a decoded text that is not of its encoding, in words, or None."""
    num_chars = 0
    for piece in pieces:
        # Not all at once: to encode takes four bytes a character where one is beyond U+FFFF.
        starts = () if piece.isascii() else range(0, len(piece), PIECE_BYTES)
        for start in starts:
            try:
                piece[start : start + PIECE_BYTES].encode()
            except UnicodeEncodeError as error:
                place = start + error.start
                byte = ord(piece[place]) - 0xDC00
                return f"after {num_chars + place:,} characters comes the byte 0x{byte:02X}"
        num_chars += len(piece)
    return None


def cut_records(
    pieces: Iterable[str], separator: re.Pattern[str], max_chars: int
) -> Iterator[str | None]:
    """What stands between separators; None for what is longer than ``max_chars``.

    Behind the last separator an empty rest is no record.
    """
    parts: list[str] = []  # of a record that has begun, and behind them, to be searched, its rest
    rest, is_long = "", False  # is_long: the parts were let go

    def finish(end: str) -> str | None:
        nonlocal parts, is_long
        record = "".join([*parts, end]) if parts else end
        was_long, parts, is_long = is_long, [], False
        return None if was_long or len(record) > max_chars else record

    for piece in chain(pieces, (None,)):
        text, start, records = rest + (piece or ""), 0, []
        for match in separator.finditer(text):
            if piece is not None and not text[match.end() :].strip(" \t\r\n"):
                break  # it may go on in the next piece
            records.append(finish(text[start : match.start()]))
            start = match.end()
        at = max(start, len(text) - OVERLAP_CHARS)
        if at > start:
            parts.append(text[start:at])
        rest = text[at:]
        if piece is None and rest:
            records.append(finish(rest))
        if sum(map(len, parts)) > max_chars:
            parts, is_long = [], True
        records.reverse()
        while records:
            yield records.pop()  # and nothing here holds it any more


_STRUCTURE = re.compile(r'["\\[\]{},]')
_IN_STRING = re.compile(r'["\\\\]')


def cut_array(pieces: Iterable[str], max_chars: int) -> Iterator[str | None]:
    """The items of a JSON array, as they are written, of the text behind its ``[``; None for what
    is longer than ``max_chars``.

    Raises ``ValueError`` where the array does not end, or is not all that there is.
    """
    parts: list[str] = []  # of the item that has begun
    chars = depth = 0
    in_string = is_escaped = is_over = False

    def keep(text: str) -> None:
        nonlocal chars
        chars += len(text)
        if chars <= max_chars + OVERLAP_CHARS:  # white space around an item does not count
            parts.append(text)

    def finish() -> Iterator[str | None]:
        nonlocal chars
        item = "".join(parts).strip()
        is_long = chars > max_chars + OVERLAP_CHARS or len(item) > max_chars
        parts.clear()
        chars = 0
        yield None if is_long else item

    for piece in pieces:
        at = start = 0
        if is_escaped and piece:
            at, is_escaped = 1, False
        while not is_over:
            match = (_IN_STRING if in_string else _STRUCTURE).search(piece, at)
            if match is None:
                break
            sign, at = match[0], match.end()
            if sign == "\\":
                is_escaped = at == len(piece)
                at += not is_escaped
            elif sign == '"':
                in_string = not in_string
            elif sign in "[{":
                depth += 1
            elif sign in "]}" and depth:
                depth -= 1
            elif sign != "}" and not depth:  # a comma, or the array's end
                keep(piece[start : match.start()])
                start, is_over = at, sign == "]"
                if not is_over or "".join(parts).strip():
                    yield from finish()
        if is_over and piece[start:].strip():
            raise ValueError("something follows behind the array")
        if not is_over:
            keep(piece[start:])
    if not is_over:
        raise ValueError("its array does not end: it is cut, or no JSON")


def compile_separator(separator: str) -> re.Pattern[str]:
    """What stands between two documents of a text file; its LF are line ends of any kind."""
    line_end = r"(?:\r\n|\r(?!\n)|\n)"
    if separator == "blank_lines":
        return re.compile(rf"{line_end}(?:[ \t]*{line_end})+")
    return re.compile(line_end.join(map(re.escape, separator.split("\n"))))
