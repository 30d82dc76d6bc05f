"""An objective of another package, as its author would write it: the half without torch.

A part of the next tokens counts, drawn by the sample's number; how many of them were hit is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.kinds import Ability
from lmscale.config.objective import ObjectiveConfig
from lmscale.objective.objective import Objective
from lmscale.stream.batches import Field, Prepared, Rows

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model

IGNORED = -100


class HalvesConfig(ObjectiveConfig):
    """A seeded part of the next tokens."""

    needs = frozenset({Ability.CAUSAL})
    implementation = "toy_halves:HALVES"
    figures = ("loss", "accuracy")
    held_out = ("accuracy",)

    name: Literal["halves"] = "halves"
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class HalvesPreparation:
    seed: int
    share: float
    fields: tuple[Field, ...] = (
        Field("ids", "int32", ("B", "T")),
        Field("labels", "int32", ("B", "T")),
        Field("starts", "int32", ("N",)),
    )

    def prepare(self, rows: Rows) -> Prepared:
        labels = rows.tokens[:, 1:].astype(np.int32)
        num_rows, width = labels.shape
        for row, number in enumerate(rows.numbers.tolist()):
            draws = np.random.default_rng([self.seed, number]).random(width)
            labels[row, draws >= self.share] = IGNORED
            labels[row, max(int(rows.lengths[row]) - 1, 0) :] = IGNORED
        in_row, column = np.divmod(rows.starts, width + 1)
        starts = (in_row * width + column)[column < width].astype(np.int32)
        ids = rows.tokens[:, :-1].astype(np.int32)
        arrays = {"ids": ids, "labels": labels, "starts": starts}
        return Prepared(arrays, targets=int((labels != IGNORED).sum()))

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return arrays["labels"][arrays["labels"] != IGNORED]


def prepare(config: RunConfig) -> HalvesPreparation:
    settings = config.objective
    assert isinstance(settings, HalvesConfig)
    return HalvesPreparation(seed=config.run.seed, share=settings.share)


def build(model: Model, config: RunConfig) -> nn.Module:
    from toy_halves_scoring import HalvesScoring

    return HalvesScoring(model)


HALVES = Objective(prepare=prepare, build=build)
