"""A stretch of a text ↔ the tokens of the text that cover it.

The text is encoded as a whole, as it is where nobody knows the stretch: a piece may therefore reach
over its edges, and what the tokens stand for may be longer than the stretch by parts of words.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right

import numpy as np

from lmscale.tokenizer.base import Tokenizer


def find_tokens(
    tokenizer: Tokenizer, text: str, ids: np.ndarray, begin: int, end: int
) -> tuple[int, int]:
    """The first and the last of a text's ``ids`` that cover its characters [begin, end), which are
    not empty.

    Of a tokenizer that is not exact, whose pieces do not say how long they are, whole words are
    covered, by how many tokens the text has up to either edge.
    """
    lengths = tokenizer.token_bytes()
    if lengths is not None:
        edges = lengths[ids].cumsum()  # bytes up to the end of each token
        first_byte = len(text[:begin].encode())
        last_byte = first_byte + len(text[begin:end].encode()) - 1
        first, last = np.searchsorted(edges, [first_byte, last_byte], side="right").tolist()
        return first, last
    edges, most = _word_edges(text), len(ids) - 1
    before = text[: edges[bisect_right(edges, begin) - 1]]
    until = text[: edges[bisect_left(edges, end)]]
    first = min(len(tokenizer.encode(before)), most)
    return first, min(max(first, len(tokenizer.encode(until)) - 1), most)


def find_characters(
    tokenizer: Tokenizer, text: str, ids: np.ndarray, first: int, last: int
) -> tuple[int, int]:
    """The characters [begin, end) of a text that the tokens ``first`` to ``last`` of its ``ids``
    stand for, without the white space at both ends. What ``find_tokens`` gave covers at least that
    of which it was asked.
    """
    lengths = tokenizer.token_bytes()
    if lengths is not None:
        edges, content = [0, *lengths[ids].cumsum().tolist()], text.encode()
        # A piece may begin or end inside of a character, which then belongs to both.
        begin, end = edges[first], edges[last + 1]
        while begin and _goes_on(content, begin):
            begin -= 1
        while _goes_on(content, end):
            end += 1
        begin, end = len(content[:begin].decode()), len(content[:end].decode())
    else:
        words = _word_edges(text)

        def count(edge: int) -> int:
            return len(tokenizer.encode(text[:edge]))

        begin = words[max(bisect_right(words, first, key=count) - 1, 0)]
        end = words[min(bisect_left(words, last + 1, key=count), len(words) - 1)]
    found = text[begin:end]
    inner = found.strip()
    begin += len(found) - len(found.lstrip())
    return begin, begin + len(inner)


def _goes_on(content: bytes, at: int) -> bool:
    """Whether a byte is one of a character's UTF-8 but its first."""
    return at < len(content) and content[at] & 0xC0 == 0x80


def _word_edges(text: str) -> list[int]:
    """The places that no word reaches over, as far as letters, marks and digits tell; both ends of
    the text, too. Every ideograph is a word.
    """
    places = [at for at in range(1, len(text)) if not _is_inside(text[at - 1], text[at])]
    return [0, *places, len(text)]


def _is_inside(before: str, behind: str) -> bool:
    is_wide = "\u2e80" <= before or "\u2e80" <= behind
    is_mark = unicodedata.category(behind)[0] == "M"
    return is_mark or (before.isalnum() and behind.isalnum() and not is_wide)
