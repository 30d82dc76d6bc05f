"""An objective of another package: half of the next tokens are to be predicted. Without torch."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmscale.config.kinds import Ability
from lmscale.config.objective import ObjectiveConfig
from lmscale.objective.draws import draw_words
from lmscale.objective.objective import Objective
from lmscale.stream.batches import TOKENS, Field, Prepared
from lmscale.stream.order import philox_key


class HalvesConfig(ObjectiveConfig):
    needs = frozenset({Ability.CAUSAL})
    implementation = "toy_halves:HALVES"
    figures = held_out = ("loss", "accuracy")

    name: Literal["halves"] = "halves"


@dataclass(frozen=True)
class HalvesPreparation:
    seed: int
    fields = (
        Field("tokens", TOKENS, ("B", "W")),
        Field("starts", "int32", ("N",)),
        Field("targets", "int32", ("N",)),  # flat places in [B, W]
    )

    def prepare(self, rows):
        num_rows, width = rows.tokens.shape
        words = draw_words(philox_key(self.seed, "halves"), rows.numbers, width)
        is_target = (words % 2 == 0) & (np.arange(width) < rows.lengths[:, None])
        is_target[:, 0] = False
        targets = np.flatnonzero(is_target).astype(np.int32)
        arrays = {"tokens": rows.tokens, "starts": rows.starts, "targets": targets}
        return Prepared(arrays, targets=len(targets))

    def target_ids(self, arrays):
        return arrays["tokens"].reshape(-1)[arrays["targets"]]


def build(model, config):
    from toy_halves_scoring import HalvesScoring

    return HalvesScoring(model)


HALVES = Objective(prepare=lambda config: HalvesPreparation(config.run.seed), build=build)
