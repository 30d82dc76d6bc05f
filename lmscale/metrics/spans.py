"""Which runs of tokens stand word for word in others, of which there may be any number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

_CHUNK = 2**18  # positions that are looked at at once: some 20 MB
_BITMAP_BITS = 22
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64


class SpanSearch:
    """The spans of ``size`` tokens of some texts, and which of them have been met.

    Memory is bounded by the texts and one chunk, whatever is looked through. The answer is exact:
    a hash finds the candidates, and their tokens are compared.
    """

    def __init__(self, texts: Sequence[Sequence[int]], size: int) -> None:
        self.size = size
        self._counts = [max(0, len(text) - size + 1) for text in texts]
        rows = [_windows(np.asarray(text, dtype=np.int64), size) for text in texts]
        spans = np.concatenate([np.empty((0, size), dtype=np.int64), *rows])
        # Each span once; which one each of the texts' spans is.
        self._spans, self._numbers = np.unique(spans, axis=0, return_inverse=True)
        self._numbers = self._numbers.reshape(-1)
        self.is_met = np.zeros(len(self._spans), dtype=bool)
        """By the number of the span: may be set by what other processes have met."""
        hashes = hash_spans(self._spans.reshape(-1), size)[::size] if len(spans) else _NONE
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]
        self._bitmap = np.zeros(2**_BITMAP_BITS, dtype=bool)
        self._bitmap[_top(hashes)] = True

    def look(self, tokens: np.ndarray, ends: np.ndarray) -> None:
        """Go through documents that lie one behind the other; ``ends``: of each, int64, the last
        being the number of tokens. No span reaches over the end of a document.
        """
        for first in range(0, len(tokens) - self.size + 1, _CHUNK):
            if self.is_met.all():
                return
            chunk = np.asarray(tokens[first : first + _CHUNK + self.size - 1], dtype=np.int64)
            hashes = hash_spans(chunk, self.size)
            places = np.flatnonzero(self._bitmap[_top(hashes)])
            self._compare(chunk, hashes, places, ends - first)

    def _compare(
        self, chunk: np.ndarray, hashes: np.ndarray, places: np.ndarray, ends: np.ndarray
    ) -> None:
        """``ends``: as seen from the chunk's beginning."""
        begin = np.searchsorted(self._sorted, hashes[places])
        offset = 0
        while len(places):  # again where several spans have one hash
            is_there = begin + offset < len(self._sorted)
            places, begin = places[is_there], begin[is_there]
            is_alike = self._sorted[begin + offset] == hashes[places]
            places, begin = places[is_alike], begin[is_alike]
            numbers = self._order[begin + offset]
            new = ~self.is_met[numbers]
            found, at = numbers[new], places[new]
            within = np.searchsorted(ends, at, side="right")
            fits = at + self.size <= ends[within]
            found, at = found[fits], at[fits]
            is_same = (_windows(chunk, self.size)[at] == self._spans[found]).all(1)
            self.is_met[found[is_same]] = True
            offset += 1

    def of_texts(self) -> list[np.ndarray]:
        """Of each text, of each span of it, whether it was met: bool [spans]."""
        met = self.is_met[self._numbers]
        return np.split(met, np.cumsum(self._counts)[:-1]) if self._counts else []


def find_covered(is_met: np.ndarray, size: int, length: int) -> np.ndarray:
    """Of a text of ``length`` tokens those that lie in a span that was met, bool [length]."""
    edges = np.zeros(length + 1, dtype=np.int64)
    begins = np.flatnonzero(is_met)
    np.add.at(edges, begins, 1)
    np.add.at(edges, begins + size, -1)
    return np.cumsum(edges[:-1]) > 0


def is_copied(is_met: np.ndarray, size: int, first: int, last: int) -> bool:
    """Whether a text's tokens from ``first`` to ``last`` stand together in what was looked through:
    in one span that was met, or where they are more than a span's, in all spans of theirs.
    """
    if last - first + 1 > size:
        return bool(is_met[first : last - size + 2].all())
    return bool(is_met[max(0, last - size + 1) : first + 1].any())


_NONE = np.empty(0, dtype=np.uint64)


def hash_spans(tokens: np.ndarray, size: int) -> np.ndarray:
    """A hash of every run of ``size`` tokens, uint64 [tokens - size + 1]: the sum of mixed tokens
    times powers of a base, by differences of prefix sums, modulo 2^64.
    """
    count = len(tokens) - size + 1
    if count < 1:
        return _NONE
    powers, inverses = _powers(1 << (len(tokens) - 1).bit_length())
    sums = np.zeros(len(tokens) + 1, dtype=np.uint64)
    np.cumsum(_mix(tokens) * powers[: len(tokens)], out=sums[1:])
    return _mix((sums[size:] - sums[:count]) * inverses[:count])


@cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    inverse = np.uint64(pow(int(_BASE), -1, 2**64))
    made = []
    for base in (_BASE, inverse):
        factors = np.full(count, base, dtype=np.uint64)
        factors[0] = 1
        made.append(np.multiply.accumulate(factors))
    return made[0], made[1]


def _mix(values: np.ndarray) -> np.ndarray:
    """Each spread over all bits (splitmix64, Steele et al. 2014)."""
    mixed = values.astype(np.uint64) + _BASE
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _top(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(64 - _BITMAP_BITS)).astype(np.int64)


def _windows(tokens: np.ndarray, size: int) -> np.ndarray:
    if len(tokens) < size:
        return np.empty((0, size), dtype=tokens.dtype)
    return np.lib.stride_tricks.sliding_window_view(tokens, size)
