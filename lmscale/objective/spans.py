# Shape letters: R rows (samples), L tokens of a row, S spans of a row, K random words of a row.
"""Span corruption (T5, UL2), the half without torch: spans are left out, each for a sentinel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.denoiser import MODES, DenoiserConfig
from lmscale.config.objective import SpanConfig
from lmscale.objective.draws import draw_words
from lmscale.objective.objective import Objective
from lmscale.objective.pairs import PairIds, lay_in_rows, pair_fields, pair_ids
from lmscale.stream.batches import Field, Prepared, Rows
from lmscale.stream.order import philox_key

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class SpanPreparation:
    """Leaves spans out of each sample, by numbers that are the sample's own."""

    config: SpanConfig
    seed: int
    lengths: tuple[int, int]  # the most tokens that are read and written of a sample
    ids: PairIds
    sentinels: np.ndarray  # int32, in their order
    mode_ids: Mapping[str, int]

    @property
    def fields(self) -> tuple[Field, ...]:
        return (*pair_fields(self.lengths), Field("modes", "uint8", ("B",)))

    def prepare(self, rows: Rows) -> Prepared:
        """A sample of less than two tokens has no targets."""
        mixture = self.config.mixture
        key = philox_key(self.seed, "spans")
        words_RK = draw_words(key, rows.numbers, 1 + rows.tokens.shape[1])
        chosen_R = choose_by_weight([denoiser.weight for denoiser in mixture], words_RK[:, 0])
        read: list[np.ndarray] = [np.empty(0, dtype=np.int32)] * len(rows.lengths)
        written = read.copy()
        for chosen, length in {*zip(chosen_R.tolist(), rows.lengths.tolist(), strict=True)}:
            if length < 2:
                continue
            among = np.flatnonzero((chosen_R == chosen) & (rows.lengths == length))
            pair = leave_out_spans(
                rows.tokens[among, :length],
                words_RK[among, 1 : 1 + length],
                mixture[chosen],
                sentinels=self.sentinels,
                end=self.ids.end,
            )
            mode = self.mode_ids.get(mixture[chosen].mode)
            head = np.full(0 if mode is None else 1, mode or 0, dtype=np.int32)
            for row, source, target in zip(among.tolist(), *pair, strict=True):
                read[row], written[row] = np.concatenate([head, source]), target
        arrays = lay_in_rows(read, written, self.lengths)
        modes = [(*MODES, "").index(denoiser.mode) for denoiser in mixture]
        arrays["modes"] = np.array(modes, dtype=np.uint8)[chosen_R]
        return Prepared(arrays, targets=sum(map(len, written)))

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.ids.of_text(arrays["labels"])


def choose_by_weight(weights: list[float], words_R: np.ndarray) -> np.ndarray:
    """int64 [R]: the number of a weight for each random word, as often as its share."""
    ends = np.cumsum(weights) / sum(weights)
    return np.searchsorted(ends[:-1], words_R / 2.0**64, side="right")


def leave_out_spans(
    ids_RL: np.ndarray,
    words_RL: np.ndarray,
    denoiser: DenoiserConfig,
    *,
    sentinels: np.ndarray,
    end: int,
) -> tuple[np.ndarray, np.ndarray]:
    """What is read, and what is written, int32, of whole rows of the same length.

    Read are the tokens that stay, a sentinel in the place of each span, and an end. Written are
    each sentinel and its span, and an end. Rests and spans take turns, and a rest is first; their
    lengths are drawn evenly among all that give the same sums (T5's ``random_spans_noise_mask``).
    """
    rows, length = ids_RL.shape
    noise, spans = denoiser.plan(length)
    rest_RS = draw_lengths(words_RL[:, : length - noise], spans)
    span_RS = draw_lengths(words_RL[:, length - noise :], spans)
    ends_RS = np.stack([rest_RS, span_RS], axis=2).reshape(rows, 2 * spans).cumsum(axis=1)
    is_first_RL = np.zeros((rows, length), dtype=bool)  # of a rest or span
    np.put_along_axis(is_first_RL, ends_RS[:, :-1], True, axis=1)
    part_RL = np.cumsum(is_first_RL, axis=1)  # 0 a rest, 1 a span, 2 a rest, …
    is_noise_RL = part_RL % 2 == 1
    is_first_RL &= is_noise_RL
    ids_RL = ids_RL.astype(np.int32)
    sentinel_RL = sentinels[part_RL // 2]
    stays_RL = ~is_noise_RL | is_first_RL
    read = np.where(is_noise_RL, sentinel_RL, ids_RL)[stays_RL].reshape(rows, -1)
    # A span's first token takes two places, and its sentinel the first of them.
    places_RL = np.where(is_noise_RL, 1 + is_first_RL, 0).ravel()
    written = np.repeat(ids_RL.ravel(), places_RL)
    first = is_first_RL.ravel()
    written[(places_RL.cumsum() - places_RL)[first]] = sentinel_RL.ravel()[first]
    ends_R1 = np.full((rows, 1), end, dtype=np.int32)
    return np.hstack([read, ends_R1]), np.hstack([written.reshape(rows, -1), ends_R1])


def draw_lengths(words_RL: np.ndarray, parts: int) -> np.ndarray:
    """Lengths int64 [R, parts] of at least 1 and of sum L, each such tuple as likely as another.

    The places of the smallest of L - 1 random words are a set of cuts, drawn evenly.
    """
    rows, length = words_RL.shape
    first, last = np.zeros((rows, 1), np.int64), np.full((rows, 1), length)
    if parts == 1:
        return last
    cuts = np.argpartition(words_RL[:, 1:], parts - 2, axis=1)[:, : parts - 1] + 1
    return np.diff(np.hstack([first, np.sort(cuts, axis=1), last]), axis=1)


def _prepare(config: RunConfig) -> SpanPreparation:
    settings, ids = config.objective, config.objective_ids
    assert isinstance(settings, SpanConfig) and config.pair_lengths is not None
    return SpanPreparation(
        config=settings,
        seed=config.run.seed,
        lengths=config.pair_lengths,
        ids=pair_ids(config),
        sentinels=np.array([ids[f"sentinel_{k}"] for k in range(settings.sentinels)], np.int32),
        mode_ids={mode: ids[f"mode_{mode}"] for mode in settings.modes},
    )


def _build(model: Model, config: RunConfig) -> nn.Module:
    from lmscale.objective.pair_scoring import build_pair_scoring

    settings = config.objective
    assert isinstance(settings, SpanConfig)
    return build_pair_scoring(model, settings, start=pair_ids(config).start)


SPANS = Objective(prepare=_prepare, build=_build)
