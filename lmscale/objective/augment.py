# Shape letters: R rows (samples), W tokens of a row, M = R·W, U words and what stands between them.
"""Easy data augmentation (Wei and Zou 2019): texts of which words are missing, or have changed
places. What is said of a text, its label, stays.

Every random number is of the sample's own words (``draws.py``): a text is another one in each
epoch, and the same on any rank. Synonyms, the paper's other two ways, need a dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmscale.config.augment import AugmentConfig
from lmscale.objective.pieces import draw_by_place, find_pieces
from lmscale.objective.token_kinds import TokenKinds
from lmscale.objective.whole_pairs import expand
from lmscale.shards.members import PARTS
from lmscale.stream.batches import Field, Preparation, Prepared, Rows
from lmscale.stream.order import philox_key
from lmscale.tokenizer.base import Tokenizer

_BITS = 24  # of each chance; a word has 64
_WHICH_BITS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class AugmentedPreparation:
    """Another preparation, of rows whose words were changed before."""

    inner: Preparation
    config: AugmentConfig
    seed: int
    kinds: TokenKinds
    written_as: np.ndarray
    """int8 [V]: 0: begins no word that is moved or left out; 1: begins one, with a space before it;
    2: without."""

    @property
    def fields(self) -> Sequence[Field]:
        return self.inner.fields

    def prepare(self, rows: Rows) -> Prepared:
        words_M = draw_by_place(philox_key(self.seed, "augment"), rows)
        return self.inner.prepare(augment(rows, words_M, self.config, self.kinds, self.written_as))

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.inner.target_ids(arrays)


def mark_words(tokenizer: Tokenizer) -> np.ndarray:
    """``written_as`` of a tokenizer: words are what has a letter or a digit."""
    texts = (tokenizer.decode_bytes([number]) for number in range(tokenizer.vocab_size))
    return np.array([_written_as(text.decode(errors="replace")) for text in texts], dtype=np.int8)


def _written_as(text: str) -> int:
    if not any(map(str.isalnum, text)) and text != " ":  # a space alone may be a word's first token
        return 0
    return 1 if text[:1].isspace() else 2


def augment(
    rows: Rows,
    words_M: np.ndarray,
    config: AugmentConfig,
    kinds: TokenKinds,
    written_as: np.ndarray,
) -> Rows:
    """The rows with words left out and swapped within their texts, of a pair each in its own.

    A word is swapped with one that is written alike, with or without a space before it, so that no
    two grow together. Of each text one word at least stays. ``words_M``: uint64, one a place.
    """
    pieces, width = find_pieces(rows, mask_documents=True), rows.tokens.shape[1]
    is_there = pieces.lengths > 0
    starts, lengths = (each[is_there].astype(np.int64) for each in (pieces.starts, pieces.lengths))
    parts = rows.members[PARTS][is_there].astype(np.int64) if PARTS in rows.members else None
    tokens_M = rows.tokens.reshape(-1)
    at_M = expand(starts, lengths)  # the places of all documents
    begins_M = np.zeros(tokens_M.size + 1, dtype=bool)
    is_special_M = kinds.is_special[tokens_M]
    begins_M[:-1] = kinds.begins_word[tokens_M] | is_special_M
    begins_M[1:] |= is_special_M
    seconds = starts if parts is None else np.concatenate([starts, starts + parts])
    begins_M[seconds] = True  # and every document: each text is by itself
    units_U = at_M[begins_M[at_M]]
    ends_U = np.append(units_U[1:], 0)
    document_U = np.searchsorted(starts, units_U, side="right") - 1
    is_last_U = np.append(document_U[1:] != document_U[:-1], True)[: len(units_U)]
    ends_U = np.where(is_last_U, (starts + lengths)[document_U], ends_U)
    text_U = 2 * document_U
    if parts is not None:
        text_U += units_U >= (starts + parts)[document_U]
    kind_U = np.where(is_special_M[units_U], 0, written_as[tokens_M[units_U]])
    order_U = _swap(kind_U, text_U, words_M[units_U], config.swap)
    is_kept_U = ~_leave_out(kind_U[order_U] > 0, text_U, words_M[units_U], config.delete)
    order_U, text_U, document_U = order_U[is_kept_U], text_U[is_kept_U], document_U[is_kept_U]
    sizes_U = (ends_U - units_U)[order_U]
    return _lay(
        rows,
        tokens_M[expand(units_U[order_U], sizes_U)],
        row_N=starts // width,
        is_there=is_there,
        sizes_N=np.bincount(document_U, weights=sizes_U, minlength=len(starts)).astype(np.int64),
        firsts_N=np.bincount(
            document_U, weights=sizes_U * (text_U % 2 == 0), minlength=len(starts)
        ).astype(np.int64),
    )


def _swap(kind_U: np.ndarray, text_U: np.ndarray, words_U: np.ndarray, share: float) -> np.ndarray:
    """int64 [U], which word stands at each place: one after the other, this share of the words
    change places with another one of their text and kind.
    """
    order_U = np.arange(len(kind_U))
    chance_U = words_U & np.uint64(2**_BITS - 1)
    chosen = np.flatnonzero((kind_U > 0) & (chance_U < np.uint64(round(share * 2**_BITS))))
    group_U = 3 * text_U + kind_U
    by_group = np.argsort(group_U, kind="stable")
    grouped = group_U[by_group]
    first = np.searchsorted(grouped, group_U[chosen], side="left")
    count = np.searchsorted(grouped, group_U[chosen], side="right") - first
    which = (words_U[chosen] >> np.uint64(64 - _WHICH_BITS)).astype(np.int64)
    # Of the others: the word itself, and what lies beyond it in the group, are passed over.
    drawn = which * (count - 1) >> _WHICH_BITS
    own = _ranks(by_group)[chosen]
    partners = by_group[np.minimum(first + drawn + (first + drawn >= own), len(by_group) - 1)]
    for one, other, number in zip(chosen.tolist(), partners.tolist(), count.tolist(), strict=True):
        if number > 1:
            order_U[one], order_U[other] = order_U[other], order_U[one]
    return order_U


def _ranks(order: np.ndarray) -> np.ndarray:
    """Where each number stands in a permutation."""
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks


def _leave_out(
    is_word_U: np.ndarray, text_U: np.ndarray, words_U: np.ndarray, share: float
) -> np.ndarray:
    """bool [U]: this share of the words, but for the one of each text that has the least chance."""
    chance_U = words_U >> np.uint64(_BITS) & np.uint64(2**_BITS - 1)
    is_out_U = is_word_U & (chance_U < np.uint64(round(share * 2**_BITS)))
    words = np.flatnonzero(is_word_U)
    if len(words):
        by_chance = words[np.lexsort((chance_U[words], text_U[words]))]
        is_last = np.append(np.diff(text_U[by_chance]) != 0, True)
        is_out_U[by_chance[is_last]] = False
    return is_out_U


def _lay(
    rows: Rows,
    tokens: np.ndarray,
    *,
    row_N: np.ndarray,
    is_there: np.ndarray,
    sizes_N: np.ndarray,
    firsts_N: np.ndarray,
) -> Rows:
    """Documents of these sizes, one behind the other in their rows."""
    num_rows, width = rows.tokens.shape
    totals = np.bincount(row_N, weights=sizes_N, minlength=num_rows).astype(np.int64)
    before = (totals.cumsum() - totals)[row_N]
    places_N = row_N * width + sizes_N.cumsum() - sizes_N - before
    laid = np.zeros(num_rows * width, dtype=rows.tokens.dtype)  # padding, which nobody sees
    laid[expand(places_N, sizes_N)] = tokens
    starts, members = rows.starts.copy(), dict(rows.members)
    starts[is_there] = places_N
    if PARTS in members:
        members[PARTS] = members[PARTS].copy()
        members[PARTS][is_there] = firsts_N
    return replace(
        rows,
        tokens=laid.reshape(num_rows, width),
        lengths=totals.astype(rows.lengths.dtype),
        starts=starts,
        members=members,
    )
