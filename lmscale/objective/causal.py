"""Causal language modelling, the half without torch: windows as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.objective import NextTokenConfig
from lmscale.objective.objective import Objective
from lmscale.stream.batches import TOKENS, Field, Prepared, Rows

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model


@dataclass(frozen=True, kw_only=True)
class CausalPreparation:
    """Hands the rows over in their compact types; the labels are made of them on the device."""

    fields: tuple[Field, ...] = (
        Field("tokens", TOKENS, ("B", "W")),
        Field("starts", "int32", ("N",)),
        Field("lengths", "int32", ("B",)),
    )
    mask_documents: bool

    def prepare(self, rows: Rows) -> Prepared:
        """Every token is a target but the first of a document; unmasked, of a row."""
        num_firsts = len(rows.starts) if self.mask_documents else len(rows.lengths)
        arrays = {"tokens": rows.tokens, "starts": rows.starts, "lengths": rows.lengths}
        return Prepared(arrays, targets=int(rows.lengths.sum()) - num_firsts)

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        tokens = arrays["tokens"]
        is_target = np.arange(tokens.shape[1]) < arrays["lengths"][:, None]
        is_target[:, 0] = False
        if self.mask_documents:
            is_target.reshape(-1)[arrays["starts"]] = False
        return tokens[is_target]


def _prepare(config: RunConfig) -> CausalPreparation:
    return CausalPreparation(mask_documents=config.stream.mask_documents)


def _build(model: Model, config: RunConfig) -> nn.Module:
    from lmscale.objective.causal_scoring import build_causal_scoring

    settings = config.objective
    assert isinstance(settings, NextTokenConfig)
    return build_causal_scoring(model, settings, mask_documents=config.stream.mask_documents)


CAUSAL = Objective(prepare=_prepare, build=_build)
