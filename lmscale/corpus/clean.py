"""What happens to one text between its raw file and the corpus: pure functions."""

from __future__ import annotations

import re
import unicodedata
import warnings
from typing import Literal

import xxhash

from lmscale.corpus.text_files import missing_extra

_INVISIBLE = ("script", "style", "template", "noscript", "head")
_BLOCKS = frozenset(
    "address article aside blockquote br dd details div dl dt fieldset figcaption figure footer "
    "form h1 h2 h3 h4 h5 h6 header hr li main nav ol p pre section summary table td th tr "
    "ul".split()
)


def normalize(text: str, form: Literal["NFC", "NFKC", "none"]) -> str:
    """The text in Unicode normal form NFC or NFKC, or as it is for ``none``."""
    return text if form == "none" else unicodedata.normalize(form, text)


def strip_html(text: str) -> str:
    """The visible text of markup: entities resolved, scripts gone, blocks on lines of their own.

    Text without ``<`` and ``&`` is returned as it is. Raises ``DataError`` without beautifulsoup4.
    """
    if "<" not in text and "&" not in text:
        return text
    try:
        from bs4 import BeautifulSoup
    except ImportError:
        raise missing_extra("corpus.strip_html", "beautifulsoup4") from None
    with warnings.catch_warnings():  # bs4 warns when a text looks like a file name or a URL
        warnings.simplefilter("ignore")
        tree = BeautifulSoup(text, "html.parser")
    for hidden in tree(_INVISIBLE):
        hidden.decompose()
    for block in tree(lambda tag: tag.name in _BLOCKS):
        if block.name != "pre":
            block.insert_before("\n")
        block.append("\n")
    text = "\n".join(map(str.rstrip, tree.get_text().split("\n")))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")  # at most one empty line in a row


def digest_of(text: str) -> bytes:
    """xxh128 of the text's UTF-8: finds duplicates and decides what is held out."""
    return xxhash.xxh128_digest(text.encode())


def is_heldout(digest: bytes, fraction: float) -> bool:
    """Whether a text is held out. A larger fraction holds out every text of a smaller one."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_text(text: str, max_chars: int) -> list[str]:
    """Pieces of at most ``max_chars``, which joined give the text.

    A cut falls after the last newline, or else the last space, in the final quarter of a piece, or
    else at ``max_chars``.
    """
    pieces = []
    start = 0
    while len(text) - start > max_chars:
        earliest = start + max_chars - max_chars // 4
        end = start + max_chars
        for separator in ("\n", " "):
            cut = text.rfind(separator, earliest, end)
            if cut >= 0:
                end = cut + 1
                break
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces
