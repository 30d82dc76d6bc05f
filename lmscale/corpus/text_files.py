"""Text out of plain, gzip and zstd files: strictly decoded, with the byte where it fails."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from lmscale.errors import DataError

PIECE_BYTES = 1 << 20


def missing_extra(what: str, package: str) -> DataError:
    return DataError(f"{what} needs {package}: pip install '.[corpus]' in the clone.")


def read_text(path: Path, source: str, encoding: str) -> str:
    """A whole file's text; a byte order mark is dropped. Raises ``DataError``."""
    return "".join(_decoded(path, source, encoding))


def read_lines(path: Path, source: str, encoding: str) -> Iterator[str]:
    """The lines of a file without their LF; U+2028 is text. Raises ``DataError``."""
    rest: list[str] = []
    for text in _decoded(path, source, encoding):
        first, *others = text.split("\n")
        rest.append(first)
        if others:
            yield "".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    if last := "".join(rest):
        yield last


def _decoded(path: Path, source: str, encoding: str) -> Iterator[str]:
    setting = f"corpus.sources.{source}.encoding"
    try:
        # Refuses what is no encoding of text, such as hex.
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError:
        raise DataError(f"{setting} = {encoding!r}: Python knows no such encoding.") from None
    offset = 0  # of the first byte that the decoder has not finished with
    is_first = True
    try:
        for piece in chain(_pieces(path), [b""]):  # which tells the decoder that the file ends
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                at = offset - pending + error.start
                unpacked = " of the unpacked text" if path.suffix in (".gz", ".zst") else ""
                raise DataError(
                    f"{path}: not {encoding}: byte {at:,}{unpacked} is "
                    f"0x{error.object[error.start]:02X} ({error.reason}). "
                    f"Set {setting} to the file's encoding, for example gb18030 or cp1252."
                ) from None
            offset += len(piece)
            if is_first and text:
                text = text.removeprefix("\ufeff")
                is_first = False
            yield text
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None


def _pieces(path: Path) -> Iterator[bytes]:
    """The unpacked bytes in pieces that are never empty."""
    if path.suffix == ".zst":
        yield from _zstd_pieces(path)
        return
    is_gzip = path.suffix == ".gz"
    try:
        with gzip.open(path) if is_gzip else open(path, "rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the gzip data is cut or damaged: {error}.") from None


def _zstd_pieces(path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise missing_extra(f"{path}: reading .zst", "zstandard") from None
    # Not stream_reader: at a cut file it just ends, as if the text were shorter.
    unpacker = zstandard.ZstdDecompressor()
    frame = None
    try:
        with open(path, "rb") as file:
            while packed := file.read(PIECE_BYTES):
                while packed:
                    frame = frame or unpacker.decompressobj()
                    if piece := frame.decompress(packed):
                        yield piece
                    packed = frame.unused_data if frame.eof else b""
                    frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise DataError(f"{path}: the zstd data is damaged: {error}.") from None
    if frame is not None:
        raise DataError(f"{path}: the zstd data is cut: its last frame has no end.")
