"""The encoding of an HTML page, as the HTML standard finds it: by its mark, or as it declares."""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

from lmscale.corpus.encodings import MEANT, find_mark

AUTO = "auto"
"""Of ``corpus.sources.NAME.encoding``: UTF-8, and of a page what it declares."""
HEAD_BYTES = 4096  # of a page, where it declares it; browsers look through 1024

_COMMENT = re.compile(rb"<!--.*?(-->|\Z)", re.DOTALL)
_META = re.compile(rb"<meta[\s/]([^>]*)", re.IGNORECASE)
_ATTRIBUTE = re.compile(rb"""([^\s=/"'>]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([^\s;"']+)""", re.IGNORECASE)
_XML = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([^"'>]+)""", re.IGNORECASE)

# The standard's labels that mean another encoding than Python's of that name.
_MEANT = {
    **MEANT,
    # Bytes in which ASCII could be read are none of these.
    **dict.fromkeys(("utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"), "utf-8"),
}
# Labels that Python does not know, or knows as another encoding.
_LABELS = {
    "x-sjis": "cp932",
    "windows-31j": "cp932",
    "x-gbk": "gb18030",
    "x-x-big5": "big5hkscs",
    "unicode-1-1-utf-8": "utf-8",
    "unicode": "utf-8",
    "x-cp1250": "cp1250",
    "x-cp1251": "cp1251",
    "x-cp1252": "cp1252",
    "iso-8859-8-i": "iso8859-8",
    "windows-874": "cp874",
    "windows-949": "cp949",
    "x-euc-jp": "euc_jp",
    "x-mac-roman": "mac-roman",
    "x-mac-cyrillic": "mac-cyrillic",
}
# Python's that leave ASCII as it is, and no page is of them.
_NO_TEXT = ("utf-7", "idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape")


class TextEncoding(NamedTuple):
    """By which a text is decoded, and the label by which it says so, if it does."""

    name: str
    declared: str = ""


def find_page_encoding(head: bytes) -> TextEncoding:
    """The encoding of a page that begins so: its mark's, else what it declares, else UTF-8.

    A label that stands for no encoding declares none.
    """
    if mark := find_mark(head):
        return TextEncoding(mark)
    head = _COMMENT.sub(b"", head[:HEAD_BYTES])
    labels = [label for tag in _META.finditer(head) if (label := _label_of(tag[1]))]
    if found := _XML.match(head):
        labels.append(found[1])
    for label in labels:
        declared = label.decode("ascii", "replace").strip().lower()
        if name := _encoding_of(declared):
            return TextEncoding(name, declared)
    return TextEncoding("utf-8")


def _label_of(attributes: bytes) -> bytes | None:
    """What a ``<meta>`` with these attributes declares."""
    found: dict[bytes, bytes] = {}
    for match in _ATTRIBUTE.finditer(attributes):
        found.setdefault(match[1].lower(), match[2] or match[3] or match[4] or b"")
    if b"charset" in found:
        return found[b"charset"]
    if found.get(b"http-equiv", b"").strip().lower() != b"content-type":
        return None
    charset = _CHARSET.search(found.get(b"content", b""))
    return charset[1] if charset else None


def _encoding_of(label: str) -> str | None:
    """Python's name of the encoding that a label means; None if it means none."""
    if label in _LABELS:
        return _LABELS[label]
    try:
        name = codecs.lookup(label).name
        name = _MEANT.get(name, name)
        is_one = name not in _NO_TEXT and b"<meta".decode(name) == "<meta"  # not so utf-32, cp037
    except (LookupError, ValueError):  # of hex and the like, too
        return None
    return name if is_one else None
