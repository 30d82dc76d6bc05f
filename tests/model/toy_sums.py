"""A family of another package: its settings, without torch."""

from typing import Literal

from lmscale.config.kinds import Ability
from lmscale.config.model import ModelConfig


class SumsConfig(ModelConfig):
    offers = frozenset({Ability.CAUSAL})
    implementation = "toy_sums_model:SUMS"

    family: Literal["sums"] = "sums"
    width: int = 16
