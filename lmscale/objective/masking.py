# Shape letters: R rows (samples), T tokens of a row, K random words of a row.
"""Which tokens of a row are hidden, and what stands in their place: arithmetic on arrays.

Every random number is of the sample's own words (``draws.py``), so a corrupted row is a function of
the seed, the sample's number and its tokens.
"""

from __future__ import annotations

import numpy as np

from lmscale.config.objective import MaskedConfig

# A token's word: what chooses it, what happens to it, which id replaces it. Of spans, a second
# word: how long it is, if one begins here.
CHANCE_BITS, ACTION_BITS, WHICH_BITS = 24, 16, 24
_OTHER_ORDERS = np.array([[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
SPAN_STOP, SPAN_MOST = 0.2, 10  # SpanBERT: lengths geometric, at most 10 (mean 3.8)


def count_words(tokens: int, config: MaskedConfig) -> int:
    """Random words that a row of so many tokens takes: of each token one or, of spans, two; then of
    each group of three that may be shuffled.
    """
    return (2 if config.unit == "spans" else 1) * tokens + (tokens // 3 if config.shuffle else 0)


def choose_tokens(
    may_RT: np.ndarray, begins_RT: np.ndarray, words_RK: np.ndarray, config: MaskedConfig
) -> tuple[np.ndarray, np.ndarray]:
    """bool [R, T], the chosen tokens, and int64 [R, T], whose fate each of them shares (a column).

    ``may_RT``: tokens that may be chosen. ``begins_RT``: where a unit (of ``words``, a word; of
    ``spans``, a document) cannot go on from the token before. ``words_RK``: uint64, the row's own.
    """
    columns_T = np.arange(may_RT.shape[1])
    words_RT = words_RK[:, : len(columns_T)]
    own_RT = np.broadcast_to(columns_T, may_RT.shape)
    chance_RT = (words_RT >> np.uint64(ACTION_BITS + WHICH_BITS)).astype(np.int64)
    if config.unit == "tokens":
        return may_RT & (chance_RT < _below(config.rate, CHANCE_BITS)), own_RT
    is_edge_RT = begins_RT | ~may_RT
    if config.unit == "words":  # every token of a word has the chance of its first
        first_RT = np.maximum.accumulate(np.where(is_edge_RT, columns_T, 0), axis=1)
        chance_RT = np.take_along_axis(chance_RT, first_RT, axis=1)
        return may_RT & (chance_RT < _below(config.rate, CHANCE_BITS)), own_RT
    starts_RT = may_RT & (chance_RT < _below(span_start_rate(config.rate), CHANCE_BITS))
    share_RT = words_RK[:, len(columns_T) : 2 * len(columns_T)].astype(np.float64) / 2.0**64
    length_RT = 1 + np.searchsorted(_span_ends(), share_RT, side="right")
    edge_RT = np.where(is_edge_RT, columns_T, len(columns_T))
    next_edge_RT = np.minimum.accumulate(edge_RT[:, ::-1], axis=1)[:, ::-1]
    next_edge_RT = np.concatenate(
        [next_edge_RT[:, 1:], np.full_like(next_edge_RT[:, :1], len(columns_T))], axis=1
    )
    end_RT = np.where(starts_RT, np.minimum(columns_T + length_RT, next_edge_RT), 0)
    chosen_RT = columns_T < np.maximum.accumulate(end_RT, axis=1)
    is_first_RT = chosen_RT & (is_edge_RT | ~np.roll(chosen_RT, 1, axis=1) | (columns_T == 0))
    first_RT = np.maximum.accumulate(np.where(is_first_RT, columns_T, 0), axis=1)
    return chosen_RT, first_RT


def replace_tokens(
    ids_RT: np.ndarray,
    chosen_RT: np.ndarray,
    fate_RT: np.ndarray,
    words_RK: np.ndarray,
    config: MaskedConfig,
    *,
    mask_id: int,
    vocab_size: int,
) -> np.ndarray:
    """uint32 [R, T]: of the chosen tokens most become the mask, some a random id of the tokenizer's
    ``vocab_size``, some stay (Devlin et al. 2019, section 3.1).
    """
    words_RT = words_RK[:, : ids_RT.shape[1]]
    action_RT = (words_RT >> np.uint64(WHICH_BITS)).astype(np.int64) & (2**ACTION_BITS - 1)
    action_RT = np.take_along_axis(action_RT, fate_RT, axis=1)
    random_end = _below(config.replace, ACTION_BITS)
    kept_end = _below(config.replace + config.keep, ACTION_BITS)
    which_RT = (words_RT & np.uint64(2**WHICH_BITS - 1)) * np.uint64(vocab_size)
    which_RT = (which_RT >> np.uint64(WHICH_BITS)).astype(np.uint32)
    corrupted_RT = ids_RT.astype(np.uint32)
    np.copyto(corrupted_RT, which_RT, where=chosen_RT & (action_RT < random_end))
    np.copyto(corrupted_RT, np.uint32(mask_id), where=chosen_RT & (action_RT >= kept_end))
    return corrupted_RT


def shuffle_trigrams(
    ids_RT: np.ndarray, may_RT: np.ndarray, words_RK: np.ndarray, config: MaskedConfig
) -> tuple[np.ndarray, np.ndarray]:
    """uint32 [R, T], the ids with some groups of three in another order, and bool [R, T], those
    groups' places (Wang et al. 2019, arXiv 1908.04577: the word structural objective).

    ``may_RT``: tokens that may move; a group moves whose three may. Groups begin at multiples of 3.
    """
    rows, tokens = ids_RT.shape
    groups = tokens // 3
    word_RG = words_RK[:, words_RK.shape[1] - groups :]
    is_free_RG = may_RT[:, : 3 * groups].reshape(rows, groups, 3).all(axis=2)
    chance_RG = (word_RG >> np.uint64(64 - CHANCE_BITS)).astype(np.int64)
    chosen_RG = is_free_RG & (chance_RG < _below(config.shuffle, CHANCE_BITS))
    # 24 bits modulo 5 are even to 3e-7.
    which_RG = (word_RG & np.uint64(2**WHICH_BITS - 1)).astype(np.int64) % len(_OTHER_ORDERS)
    order_RG3 = np.where(chosen_RG[..., None], _OTHER_ORDERS[which_RG], np.arange(3))
    from_RT = (np.arange(groups)[:, None] * 3 + order_RG3).reshape(rows, 3 * groups)
    shuffled_RT, is_moved_RT = ids_RT.astype(np.uint32), np.zeros(ids_RT.shape, dtype=bool)
    shuffled_RT[:, : 3 * groups] = np.take_along_axis(shuffled_RT, from_RT, axis=1)
    is_moved_RT[:, : 3 * groups] = np.repeat(chosen_RG, 3, axis=1)
    return shuffled_RT, is_moved_RT


def span_start_rate(rate: float) -> float:
    """How often a span must begin for ``rate`` of all tokens to lie in one, found by halving.

    Token t is in none where none of the 10 places up to it began one that reaches it.
    """
    reaches = 1 - np.concatenate([[0.0], _span_ends()])  # P(length > k), k = 0 … 9
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        covered = 1 - np.prod(1 - middle * reaches)
        low, high = (middle, high) if covered < rate else (low, middle)
    return high


def _span_ends() -> np.ndarray:
    """P(length ≤ k), k = 1 … 9: geometric, without what is longer than the most."""
    shares = SPAN_STOP * (1 - SPAN_STOP) ** np.arange(SPAN_MOST)
    return np.cumsum(shares / shares.sum())[:-1]


def _below(share: float, bits: int) -> int:
    """The number that this share of all numbers of so many bits is below."""
    return round(share * 2**bits)
