"""The encoding of a text, guessed from its first bytes."""

from __future__ import annotations

import codecs
import re

HEAD_BYTES = 1 << 16
# How a file begins that says its encoding; the longer one first.
_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32"}
_MARKS |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8"}
# How files begin that are no text, whatever they are named; what is packed is unpacked.
_KINDS = {b"PK\x03\x04": "zip", b"PAR1": "Parquet", b"%PDF-": "PDF", b"ARROW1": "Arrow"}
BYTE_ENCODINGS = ("cp1252", "latin-1")
_MOST_NULS = 8  # in a few words of UTF-16 there are more
DETECTED_BYTES = 4096  # of lines that are not ASCII: more does not make the detector surer
# What files under one encoding's name really hold, as the WHATWG's standard maps its labels. Keys
# are the names that ``codecs.lookup`` gives.
MEANT = {
    **dict.fromkeys(("iso8859-1", "ascii"), "cp1252"),
    "iso8859-9": "cp1254",
    **dict.fromkeys(("iso8859-11", "tis-620"), "cp874"),
    **dict.fromkeys(("gb2312", "gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift_jis_2004"), "cp932"),
    "euc_jis_2004": "euc_jp",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}
_LETTER_BESIDE = re.compile(rb"[A-Za-z][\x91-\x97\xa0-\xff]|[\x91-\x97\xa0-\xff][A-Za-z]")
_CONTROLS = re.compile("[\x80-\x84\x86-\x9f]")


def find_mark(content: bytes) -> str | None:
    """The encoding that a file's first bytes say by a byte order mark."""
    return next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)


def find_other_kind(content: bytes) -> str:
    """``a zip file`` for the first bytes of one, or of another that is no text; "" for text."""
    kind = next((kind for magic, kind in _KINDS.items() if content.startswith(magic)), "")
    return f"a{'n' * (kind == 'Arrow')} {kind} file" if kind else ""


def guess_encoding(content: bytes) -> str:
    """The encoding of a file's first bytes: UTF-8 wherever they are that, else what gives text."""
    if mark := find_mark(content):
        return mark
    if name := looks_like_utf16(content[:HEAD_BYTES]):
        return name
    if not _is_other(content):
        return "utf-8"
    for has_iso in (True, False):
        name = _detect(content[:HEAD_BYTES], has_iso)
        text = _decode(content, name) if name else None
        # ISO's tables hold control characters where those of Windows hold quotation marks.
        if name and text is not None and not _CONTROLS.search(text):
            return "cp1252" if text == _decode(content, "cp1252") else name
    return "cp1252" if decodes(content, "cp1252") else "latin-1"


def _detect(content: bytes, has_iso: bool) -> str | None:
    """What chardet takes the lines that are not ASCII for, by Python's name; among the encodings of
    Windows, of East Asia and KOI8, and those of ISO 8859.
    """
    import chardet
    from chardet.enums import EncodingEra

    web = EncodingEra.MODERN_WEB
    eras = web | EncodingEra.LEGACY_ISO if has_iso else web
    part = b"\n".join(line for line in content.splitlines() if not line.isascii())
    found = chardet.detect(part[:DETECTED_BYTES], encoding_era=eras)["encoding"]
    try:
        name = codecs.lookup(found or "").name
    except LookupError:
        return None
    return MEANT.get(name, name)


def _is_other(content: bytes) -> bool:
    """Whether it is not UTF-8: if a few bytes of many are wrong, they are, and not the encoding.

    Where nothing else is beyond ASCII, one such byte beside a letter is enough.
    """
    if _decode(content, "utf-8") is not None:
        return False
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(content[:HEAD_BYTES])
    wrong = text.count("\ufffd")
    others = sum(char > "\x7f" for char in text)
    if others == wrong and _LETTER_BESIDE.search(content[:HEAD_BYTES]):
        return True
    return wrong >= 3 and others <= 2 * wrong


def decodes(content: bytes, encoding: str) -> bool:
    """Whether the bytes are a text in it, of which the last character may be cut."""
    return _decode(content, encoding) is not None


def _decode(content: bytes, encoding: str) -> str | None:
    """The text of the bytes, of which the last character may be cut; None if they are none."""
    try:
        return codecs.getincrementaldecoder(encoding)("strict").decode(content, final=False)
    except UnicodeDecodeError:
        return None


def looks_like_utf16(content: bytes | str) -> str | None:
    """UTF-16 without its mark, which is UTF-8, too, with a NUL beside every ASCII character."""
    nul = "\0" if isinstance(content, str) else b"\0"
    num = content.count(nul)  # pyright: ignore[reportArgumentType]
    if num < _MOST_NULS or num * _MOST_NULS < len(content):
        return None
    first = content[::2].count(nul)  # pyright: ignore[reportArgumentType]
    return "utf-16-be" if 2 * first > num else "utf-16-le"
