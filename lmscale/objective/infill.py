# Shape letters: L tokens of a text, S spans, K random words of a row, V vocabulary.
"""Text infilling and sentence permutation (BART, Lewis et al. 2020), the half without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.objective import InfillConfig
from lmscale.objective.draws import draw_words
from lmscale.objective.objective import Objective
from lmscale.objective.pairs import PairIds, lay_in_rows, pair_fields, pair_ids
from lmscale.objective.token_kinds import token_kinds
from lmscale.stream.batches import Field, Prepared, Rows
from lmscale.stream.order import philox_key
from lmscale.tokenizer.codec import load_kept_tokenizer

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class InfillPreparation:
    """Puts each sample's sentences in another order and spans of it behind masks, by numbers that
    are the sample's own. The sample as it was is predicted, all of it.
    """

    config: InfillConfig
    seed: int
    lengths: tuple[int, int]  # the most tokens that are read and written of a sample
    ids: PairIds
    mask: int
    ends_sentence: np.ndarray  # bool [V]
    eos_id: int

    @property
    def fields(self) -> tuple[Field, ...]:
        return pair_fields(self.lengths)

    def prepare(self, rows: Rows) -> Prepared:
        """A sample without tokens has no targets."""
        longest = rows.tokens.shape[1]
        words_RK = draw_words(philox_key(self.seed, "infill"), rows.numbers, 3 * longest + 1)
        shares_S = poisson_shares(self.config.mean_span)
        end = np.array([self.ids.end], dtype=np.int32)
        read = [end[:0]] * len(rows.lengths)
        written = read.copy()
        for row, length in enumerate(rows.lengths.tolist()):
            if length == 0:
                continue
            ids_L = rows.tokens[row, :length].astype(np.int32)
            order_K, spans_K, gaps_K = np.split(words_RK[row], [longest, 2 * longest])
            written[row] = np.append(ids_L, end)
            if self.config.permute_sentences:
                ids_L = permute_sentences(ids_L, self.ends_sentence, order_K, eos_id=self.eos_id)
            span_S = draw_spans(length, self.config.rate, shares_S, spans_K)
            read[row] = np.append(put_masks(ids_L, span_S, gaps_K, mask=self.mask), end)
        arrays = lay_in_rows(read, written, self.lengths)
        return Prepared(arrays, targets=sum(map(len, written)))

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.ids.of_text(arrays["labels"])


def permute_sentences(
    ids_L: np.ndarray, ends_sentence: np.ndarray, words_K: np.ndarray, *, eos_id: int
) -> np.ndarray:
    """The sentences in a drawn order; what is behind the last end is one of them.

    A document ends one, too: its eos is its last sentence's, and the next bos its first one's.
    """
    before, after = ids_L[:-1], ids_L[1:]
    is_end = (before == eos_id) | (ends_sentence[before] & (after != eos_id))
    parts = np.split(ids_L, np.flatnonzero(is_end) + 1)
    order = np.argsort(words_K[: len(parts)], kind="stable")
    return np.concatenate([parts[number] for number in order])


def poisson_shares(mean: float) -> np.ndarray:
    """P(length ≤ k) of a Poisson distribution, k = 0, 1, …, to where it is 1 for a double."""
    shares = [math.exp(-mean)]
    while len(shares) < mean or shares[-1] > 1e-18:
        shares.append(shares[-1] * mean / len(shares))
    return np.cumsum(shares)


def draw_spans(length: int, rate: float, shares_S: np.ndarray, words_K: np.ndarray) -> np.ndarray:
    """Lengths int64 [S] of spans that hold ``rate`` of a text, rounded up; some hold nothing.

    At most one a token of theirs, and one between any two of the others, so that the masks make no
    text longer.
    """
    noise = math.ceil(length * rate)
    drawn = np.searchsorted(shares_S, words_K / 2.0**64, side="right")
    count = int(np.searchsorted(drawn.cumsum(), noise)) + 1
    span_S = drawn[:count].astype(np.int64)
    span_S[-1] += noise - span_S.sum()
    most = min(noise, length - int(span_S.sum()) + 1)
    if len(span_S) > most:
        span_S = span_S[span_S > 0]
        span_S[most - 1 : most] += span_S[most:].sum()
    return span_S[:most]


def put_masks(
    ids_L: np.ndarray, span_S: np.ndarray, words_K: np.ndarray, *, mask: int
) -> np.ndarray:
    """The tokens with spans of these lengths each behind one mask, in drawn gaps of the others.

    A span of nothing is a mask between two tokens.
    """
    stay = len(ids_L) - int(span_S.sum())
    gap_S = np.sort(np.argsort(words_K[: stay + 1], kind="stable")[: len(span_S)])
    begin_S = gap_S + span_S.cumsum() - span_S
    is_left_out = np.zeros(len(ids_L) + 1, dtype=np.int64)
    np.add.at(is_left_out, begin_S, 1)
    np.add.at(is_left_out, begin_S + span_S, -1)
    kept = ids_L[is_left_out[:-1].cumsum() == 0]
    return np.insert(kept, gap_S, mask)


def _prepare(config: RunConfig) -> InfillPreparation:
    settings = config.objective
    assert isinstance(settings, InfillConfig) and config.pair_lengths is not None
    tokenizer = load_kept_tokenizer(config.folder, config.tokenizer.folder)
    return InfillPreparation(
        config=settings,
        seed=config.run.seed,
        lengths=config.pair_lengths,
        ids=pair_ids(config),
        mask=config.objective_ids["mask"],
        ends_sentence=token_kinds(tokenizer).ends_sentence,
        eos_id=tokenizer.eos_id,
    )


def _build(model: Model, config: RunConfig) -> nn.Module:
    from lmscale.objective.pair_scoring import build_pair_scoring

    settings = config.objective
    assert isinstance(settings, InfillConfig)
    return build_pair_scoring(model, settings, start=pair_ids(config).start)


INFILL = Objective(prepare=_prepare, build=_build)
