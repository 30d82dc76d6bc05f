"""The encoding of a text, guessed from its first bytes."""

from __future__ import annotations

import codecs

HEAD_BYTES = 1 << 16
# How a file begins that says its encoding; the longer one first.
_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32"}
_MARKS |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8"}
BYTE_ENCODINGS = ("cp1252", "latin-1")
_MOST_NULS = 8  # in a few words of UTF-16 there are more
# Characters that make a third of any Chinese text, simplified or traditional, and its marks. In
# text that was decoded by a wrong table they are as rare as any.
_COMMON = frozenset(
    "的一是不了在人有我他这個个們们中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子那得于於著着"
    "下自之年过過发發后後作里裡，。、；：“”「」？！《》　"
)
_TABLES = {
    "gb18030": lambda char: char in _COMMON,
    "big5": lambda char: char in _COMMON,
    "shift_jis": lambda char: "\u3041" <= char <= "\u30fe",
    "euc_kr": lambda char: "\uac00" <= char <= "\ud7a3",
}
_SHARE = 0.15  # of what is not ASCII


def find_mark(content: bytes) -> str | None:
    """The encoding that a file's first bytes say by a byte order mark."""
    return next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)


def guess_encoding(content: bytes) -> str:
    """The encoding of a file's first bytes: UTF-8 wherever they are that, else what gives text."""
    if mark := find_mark(content):
        return mark
    if name := looks_like_utf16(content[:HEAD_BYTES]):
        return name
    if not _is_other(content):
        return "utf-8"
    # Almost any two bytes are some character of these tables, hence the common ones count.
    shares = {name: _share(_decode(content, name), name) for name in _TABLES}
    best = max(shares, key=lambda name: shares[name])
    if shares[best] > _SHARE:
        return best
    text = _decode(content, "cp1252")
    return "latin-1" if text is None else "cp1252"


def _is_other(content: bytes) -> bool:
    """Whether it is not UTF-8: if a few bytes of many are wrong, they are, and not the encoding."""
    if _decode(content, "utf-8") is not None:
        return False
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(content[:HEAD_BYTES])
    wrong = text.count("\ufffd")
    return wrong >= 3 and sum(char > "\x7f" for char in text) <= 2 * wrong


def decodes(content: bytes, encoding: str) -> bool:
    """Whether the bytes are a text in it, of which the last character may be cut."""
    return _decode(content, encoding) is not None


def _decode(content: bytes, encoding: str) -> str | None:
    """The text of the bytes, of which the last character may be cut; None if they are none."""
    try:
        return codecs.getincrementaldecoder(encoding)("strict").decode(content, final=False)
    except UnicodeDecodeError:
        return None


def _share(text: str | None, encoding: str) -> float:
    """Part of what is not ASCII that is a common character of the encoding's languages."""
    others = [char for char in (text or "")[:100_000] if ord(char) > 127]
    return sum(map(_TABLES[encoding], others)) / max(1, len(others))


def looks_like_utf16(content: bytes | str) -> str | None:
    """UTF-16 without its mark, which is UTF-8, too, with a NUL beside every ASCII character."""
    nul = "\0" if isinstance(content, str) else b"\0"
    num = content.count(nul)  # pyright: ignore[reportArgumentType]
    if num < _MOST_NULS or num * _MOST_NULS < len(content):
        return None
    first = content[::2].count(nul)  # pyright: ignore[reportArgumentType]
    return "utf-16-be" if 2 * first > num else "utf-16-le"
