# Shape letters: R rows (samples), T tokens of a row, K random words of a row.
"""Masked language modelling (Devlin et al. 2019), the half without torch: what is hidden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.objective import MaskedConfig
from lmscale.objective.draws import draw_words
from lmscale.objective.masking import (
    choose_tokens,
    count_words,
    replace_tokens,
    shuffle_trigrams,
)
from lmscale.objective.objective import Objective
from lmscale.objective.token_kinds import TokenKinds, load_token_kinds
from lmscale.stream.batches import Field, Prepared, Rows
from lmscale.stream.order import philox_key

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedPreparation:
    """Hides tokens of each sample, by numbers that are the sample's own."""

    config: MaskedConfig
    seed: int
    mask_id: int
    kinds: TokenKinds
    fields: tuple[Field, ...] = (
        Field("ids", "uint32", ("B", "T")),
        Field("starts", "int32", ("N",)),
        Field("lengths", "int32", ("B",)),
        Field("positions", "int32", ("N",)),  # flat, of the targets
        Field("labels", "int32", ("N",)),  # what stood there
    )

    def prepare(self, rows: Rows) -> Prepared:
        may_RT, begins_RT = self.find_units(rows)
        corrupted_RT, chosen_RT = self.hide(rows.numbers, rows.tokens, may_RT, begins_RT)
        labels = rows.tokens[chosen_RT].astype(np.int32)
        arrays = {
            "ids": corrupted_RT,
            "starts": rows.starts,
            "lengths": rows.lengths,
            "positions": np.flatnonzero(chosen_RT).astype(np.int32),
            "labels": labels,
        }
        return Prepared(arrays, targets=len(labels))

    def find_units(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """bool [R, T] twice: the tokens that may be chosen, and where a unit of them begins."""
        may_RT = np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
        may_RT &= ~self.kinds.is_special[rows.tokens]
        begins_RT = np.zeros(rows.tokens.shape, dtype=bool)
        begins_RT.reshape(-1)[rows.starts] = True
        if self.config.unit == "words":
            begins_RT |= self.kinds.begins_word[rows.tokens]
        return may_RT, begins_RT

    def hide(
        self, numbers: np.ndarray, ids_RT: np.ndarray, may_RT: np.ndarray, begins_RT: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the model is given, uint32 [R, T], and which places are targets, bool [R, T]."""
        num_words = count_words(ids_RT.shape[1], self.config)
        words_RK = draw_words(philox_key(self.seed, "masked"), numbers, num_words)
        chosen_RT, fate_RT = choose_tokens(may_RT, begins_RT, words_RK, self.config)
        corrupted_RT = replace_tokens(
            *(ids_RT, chosen_RT, fate_RT, words_RK, self.config),
            mask_id=self.mask_id,
            vocab_size=self.kinds.vocab_size,
        )
        if self.config.shuffle:  # of the tokens that were not chosen
            corrupted_RT, is_moved_RT = shuffle_trigrams(
                corrupted_RT, may_RT & ~chosen_RT, words_RK, self.config
            )
            chosen_RT |= is_moved_RT
        return corrupted_RT, chosen_RT

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return arrays["labels"]


def prepare_masked(config: RunConfig) -> MaskedPreparation:
    settings = config.objective
    assert isinstance(settings, MaskedConfig)
    return MaskedPreparation(
        config=settings,
        seed=config.run.seed,
        mask_id=config.objective_ids["mask"],
        kinds=load_token_kinds(config),
    )


def _build(model: Model, config: RunConfig) -> nn.Module:
    from lmscale.objective.masked_scoring import build_masked_scoring

    settings = config.objective
    assert isinstance(settings, MaskedConfig)
    return build_masked_scoring(model, settings, mask_documents=config.stream.mask_documents)


MASKED = Objective(prepare=prepare_masked, build=_build)
