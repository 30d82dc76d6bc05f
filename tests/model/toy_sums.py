"""A family of another package, as its author would write it: its settings, without torch."""

from __future__ import annotations

from typing import Literal

from lmscale.config.kinds import Ability
from lmscale.config.model import ModelConfig


class SumsConfig(ModelConfig):
    """A running mean of the document's embeddings so far, and one matrix."""

    offers = frozenset({Ability.CAUSAL})
    implementation = "toy_sums_model:SUMS"

    family: Literal["sums"] = "sums"
    width: int = 16
