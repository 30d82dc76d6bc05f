"""The section ``model.lora``: adapters of low rank beside matrices that stay as they begin."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydantic import Field, NonNegativeInt

from lmscale.config.base import Section

MAX_RANK = 2**16


class LoraConfig(Section):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)."""

    rank: NonNegativeInt = Field(default=0, le=MAX_RANK)
    """Of the adapters: each of the chosen matrices W gives (W + scale · B A) x, and A and B alone
    are trained, with layers for a task that begin anew. Needs ``run.init_from``, in all but tests.
    0: no adapters, all is trained.
    """
    alpha: float | None = Field(default=None, gt=0, le=1e6)
    """The scale is alpha / rank; default: alpha = rank, so that it is 1."""
    rank_stabilized: bool = False
    """The scale is alpha / √rank instead (Kalajdzievski 2023, rsLoRA)."""
    dropout: float = Field(default=0.0, ge=0, le=0.99)
    """Of what A reads."""
    targets: tuple[str, ...] = Field(default=(), max_length=1000, strict=False)
    """Which matrices have adapters, by their names, such as ["qkv", "out"], or by patterns of whole
    ones, such as ["blocks.1?.feed_forward.*"]; default: all but those of layers for a task.
    Queries, keys and values, or gate and up, have each their own, though stored together.
    """

    def find_problems(self) -> Iterator[str]:
        others = [name for name in type(self).model_fields if name != "rank"]
        given = [n for n in others if getattr(self, n) != type(self).model_fields[n].default]
        if self.rank == 0 and given:
            yield f"rank = 0 gives no adapters, but {given[0]} is given; set rank, such as to 8"

    @property
    def scale(self) -> float:
        """What B A is multiplied by; 0 where there is none."""
        if self.rank == 0:
            return 0.0
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)
