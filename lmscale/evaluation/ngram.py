"""What counting alone predicts: a trigram by interpolated Kneser-Ney, and a unigram.

Smoothing as in Chen and Goodman 1999 (section 2.7), one discount an order (Ney, Essen and Kneser
1994). numpy alone. While the trigram counts it takes 36 bytes of memory a token where 65% of the
trigrams are different, and 80 where all are.
"""

from __future__ import annotations

import numpy as np

from lmscale.evaluation.fitting import BITS, BOUNDARY
from lmscale.objective.objective import IGNORED
from lmscale.stream.batches import Rows

PAIR = 2 ** (2 * BITS) - 1  # the bits of the nearer context and the word


class Unigram:
    """Probabilities of a word wherever it stands, by how often it was counted."""

    described = "every token's own share"

    def __init__(self, ids: np.ndarray, *, vocab_size: int) -> None:
        """``ids``: int64 [tokens]."""
        self.tokens = len(ids)
        self._log_p = np.log(_share_out(np.bincount(ids, minlength=vocab_size)))

    def log_p(self, ids: np.ndarray) -> np.ndarray:
        """Of each target, f64 [targets], in nats."""
        return self._log_p[ids]


class Trigram:
    """Probabilities of the next word, by counts of what followed two words, one word, any word."""

    described = "a trigram (interpolated Kneser-Ney)"

    def __init__(self, keys: np.ndarray, *, vocab_size: int) -> None:
        """``keys``: those of every training target, int64 [targets] (``target_keys``); they are
        sorted in place.
        """
        self.tokens = len(keys)
        trigrams, times = _count(keys)
        # Lower orders count in how many contexts, not how often (Kneser and Ney 1995).
        pairs, num_before = _count(trigrams & PAIR)
        self._words = _share_out(np.bincount(pairs & BOUNDARY, minlength=vocab_size))
        self._orders = _Order(pairs, num_before), _Order(trigrams, times)

    def log_p(self, keys: np.ndarray) -> np.ndarray:
        """Of each target, f64 [targets], in nats."""
        two_words, three_words = self._orders
        p = two_words.interpolate(keys & PAIR, self._words[keys & BOUNDARY])
        return np.log(three_words.interpolate(keys, p))


class _Order:
    """How often a word followed a context; ``keys`` ascend, each once."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray) -> None:
        self._keys, self._counts = keys, counts
        contexts = keys >> BITS
        first = np.flatnonzero(np.diff(contexts, prepend=-1))
        self._contexts = contexts[first]
        self._totals = np.add.reduceat(counts, first)
        self._followers = np.diff(first, append=len(keys))  # different words after the context
        self._discount = _discount(counts)

    def interpolate(self, keys: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p of each key, from the p of the order below; that alone in a context never seen."""
        at, context = _find(self._keys, keys), _find(self._contexts, keys >> BITS)
        counts = np.where(at < 0, 0, self._counts[at])
        kept = np.maximum(counts - self._discount, 0)
        p = (kept + self._discount * self._followers[context] * lower) / self._totals[context]
        return np.where(context < 0, lower, p)


def _count(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every different key, ascending, and how often it is there. It sorts ``keys`` in place."""
    keys.sort()
    is_first = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
    first = np.flatnonzero(is_first)
    return keys[first], np.diff(first, append=len(keys)).astype(np.int32)


def _share_out(counts: np.ndarray) -> np.ndarray:
    """p of each id by its count, f64 [ids]; what the discount takes is dealt to all ids alike."""
    discount = _discount(counts)
    rest = discount * np.count_nonzero(counts) / len(counts)
    return (np.maximum(counts - discount, 0) + rest) / counts.sum()


def _discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2), by how many counts are one and two; a half where none is one."""
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return once / (once + 2 * twice) if once else 0.5


def _find(ascending: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The index of each wanted value, -1 where it is not there."""
    at = np.searchsorted(ascending, wanted).clip(max=len(ascending) - 1)
    return np.where(ascending[at] == wanted, at, -1)


def target_keys(rows: Rows, *, mask_documents: bool, among: np.ndarray | None = None) -> np.ndarray:
    """Two words of context and the word of every target of the rows, int64 [targets].

    The targets are those of causal language modelling, or those of them that are ``among`` bool
    [rows, W]; the context is what a model sees of it.
    """
    ids = rows.tokens.astype(np.int64)
    begins = np.zeros(ids.shape, dtype=bool)
    begins[:, 0] = True
    if mask_documents:
        begins.reshape(-1)[rows.starts] = True
    is_target = (np.arange(ids.shape[1]) < rows.lengths[:, None]) & ~begins
    if among is not None:
        is_target &= among
    return _join(ids, begins, is_target)


def answer_keys(labels: np.ndarray, starts: np.ndarray | None = None) -> np.ndarray:
    """The same of what an encoder-decoder writes, ``labels`` int32 [rows, T], ``IGNORED`` behind
    each row's. The context is what was written before, not what was read.

    ``starts``: where answers begin, int [answers], ascending and flat; without, each row is one.
    """
    places = np.arange(0, labels.size, labels.shape[1]) if starts is None else starts
    ids = np.insert(labels.reshape(-1).astype(np.int64), places, BOUNDARY)[None]
    begins = ids == BOUNDARY
    return _join(ids, begins, (ids != IGNORED) & ~begins)


def _join(ids: np.ndarray, begins: np.ndarray, is_target: np.ndarray) -> np.ndarray:
    """The keys of the targets among ``ids``, int64 [rows, W]; no context reaches over a begin."""
    farther = np.full_like(ids[:, 1:], BOUNDARY)
    farther[:, 1:] = np.where(begins[:, 1:-1], BOUNDARY, ids[:, :-2])
    keys = (farther << 2 * BITS) | (ids[:, :-1] << BITS) | ids[:, 1:]
    return keys[is_target[:, 1:]]
