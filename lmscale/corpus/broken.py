"""Records and files that cannot be read: of a kind one line, with the first of them named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lmscale.corpus.text_files import read_pieces
from lmscale.errors import LmscaleError
from lmscale.files.found import FoundFile

NAMED = 3  # places of one kind
HEAD_BYTES = 1 << 16
# How a file begins that says its encoding; the longer one first.
_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32"}
_MARKS |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8"}
_MOST_NULS = 8  # in a few words of UTF-16 there are more
_HAN = re.compile("[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef]")


class Broken(NamedTuple):
    """One that was not read. ``what`` is its kind, ``detail`` what only this one has."""

    where: str
    what: str
    detail: str = ""


def describe_broken(broken: Iterable[Broken]) -> Iterator[str]:
    """A line for each kind, in the order in which they came."""
    kinds: dict[str, list[Broken]] = {}
    for each in broken:
        kinds.setdefault(each.what, []).append(each)
    for what, group in kinds.items():
        where = ", ".join(each.where for each in group[:NAMED])
        detail = group[0].detail
        if len(group) == 1:
            told = f": {detail}" if detail else ""
        else:
            where += f" and {len(group) - NAMED:,} more" if len(group) > NAMED else ""
            told = f"; the first: {detail}" if detail else ""
        yield f"{where}: {what}{told}."


def guess_encoding(file: FoundFile) -> str:
    """What the beginning of a file that is not of its encoding seems to be, in words, or nothing.

    Nothing where a few bytes of many are wrong: then they are, and not the encoding.
    """
    if file.ending in (".parquet", ".tar"):
        return ""
    try:
        head = b""
        for piece in read_pieces(file):
            head += piece[:HEAD_BYTES]
            if len(head) >= HEAD_BYTES:
                break
    except LmscaleError:
        return ""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return f"the file begins with the mark of {name}" if name != "utf-8" else ""
    if name := looks_like_utf16(head):
        return f"it looks like {name}"
    text = head.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    if wrong < 3 or sum(char > "\x7f" for char in text) > 2 * wrong:
        return ""
    chinese = head.decode("gb18030", "replace")
    others = [char for char in chinese if char > "\x7f"]
    if len(_HAN.findall(chinese)) > 0.8 * len(others) and chinese.count("\ufffd") <= 1:
        return "it looks like gb18030"
    return "it may be latin-1 or cp1252, or another encoding of a byte a character"


def looks_like_utf16(content: bytes | str) -> str | None:
    """UTF-16 without its mark, which is UTF-8, too, with a NUL beside every ASCII character."""
    nul = "\0" if isinstance(content, str) else b"\0"
    num = content.count(nul)  # pyright: ignore[reportArgumentType]
    if num < _MOST_NULS or num * _MOST_NULS < len(content):
        return None
    first = content[::2].count(nul)  # pyright: ignore[reportArgumentType]
    return "utf-16-be" if 2 * first > num else "utf-16-le"
