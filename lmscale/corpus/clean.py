"""What happens to one text between its raw file and the corpus: pure functions."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from typing import Literal

import xxhash

from lmscale.corpus.text_files import missing_extra

_INVISIBLE = ("script", "style", "template", "noscript", "head")
_BLOCKS = frozenset(
    "address article aside blockquote br dd details div dl dt fieldset figcaption figure footer "
    "form h1 h2 h3 h4 h5 h6 header hr li main nav ol p pre section summary table td th tr "
    "ul".split()
)


# Behind a line end or a space nothing composes with what is before, nor between these two.
_CUT = re.compile(r"(?<=[\n 、。])(?!\Z)|(?<=\r)(?![\n]|\Z)|(?<=[!-~一-鿿])(?=[ -~一-鿿])")
STRETCH_CHARS = 1 << 20
MOST_STRETCHES = 16  # in one where there is no such place, as in no text that anybody reads


def cut_stretches(pieces: Iterable[str]) -> Iterator[str]:
    """The text that the pieces make, in stretches of about a million characters.

    What a line end or a normal form makes of the text, it makes of its stretches.
    """
    rest = ""
    for piece in pieces:
        start, searched = 0, len(rest)
        rest += piece
        while len(rest) - start > STRETCH_CHARS:
            most = start + MOST_STRETCHES * STRETCH_CHARS
            cut = _CUT.search(rest, max(start + STRETCH_CHARS, searched), most)
            if cut is None and len(rest) <= most:
                break
            end = cut.start() if cut else most
            yield rest[start:end]
            start = end
        rest = rest[start:]
    yield rest


def normalize(text: str, form: Literal["NFC", "NFKC", "none"]) -> str:
    """The text in Unicode normal form NFC or NFKC, or as it is for ``none``."""
    return text if form == "none" else unicodedata.normalize(form, text)


def with_lf(text: str) -> str:
    """The text with LF for every CR LF and CR."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


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


class Sameness:
    """What is the same of all texts that count as one: those that differ in nothing but line ends,
    white space at both ends, and what canonical equivalence (NFC) takes for the same characters.
    """

    def __init__(self, stretches: Iterable[str]) -> None:
        self.all_chars = 0  # of the text as it is
        self.chars = 0  # without the white space at both ends
        digest = xxhash.xxh128()
        until_inner = digest.copy()  # the white space behind counts only if something follows
        between = 0
        for stretch in stretches:
            self.all_chars += len(stretch)
            text = normalize(with_lf(stretch), "NFC")
            text = text if self.chars else text.lstrip()
            inner = text.rstrip()
            if inner:
                digest.update(inner.encode())
                until_inner = digest.copy()
                self.chars += between + len(inner)
                between = 0
            digest.update(text[len(inner) :].encode())
            between += len(text) - len(inner)
        self.digest = until_inner.digest()  # 16 bytes


def digest_of(text: str) -> bytes:
    """xxh128 by which duplicates are found and the held-out part is chosen."""
    return Sameness([text]).digest


def is_heldout(digest: bytes, fraction: float) -> bool:
    """Whether a text is held out. A larger fraction holds out every text of a smaller one."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_text(stretches: Iterable[str], max_chars: int) -> Iterator[str]:
    """Pieces of at most ``max_chars``, which joined give the text that the stretches make.

    A cut falls after the last newline, or else the last space, in the final quarter of a piece, or
    else at ``max_chars``.
    """
    rest = ""
    for stretch in stretches:
        rest += stretch
        start = 0
        while len(rest) - start > max_chars:
            earliest = start + max_chars - max_chars // 4
            end = start + max_chars
            for separator in ("\n", " "):
                cut = rest.rfind(separator, earliest, end)
                if cut >= 0:
                    end = cut + 1
                    break
            yield rest[start:end]
            start = end
        rest = rest[start:]
    yield rest
