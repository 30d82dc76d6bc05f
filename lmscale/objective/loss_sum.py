"""How a loss travels: as a sum and its count."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LossSum(NamedTuple):
    """A sum and its count, never a mean: sums of micro-batches and ranks may simply be added."""

    total: Tensor  # f32 []
    targets: Tensor  # i64 []

    def __add__(self, other: LossSum) -> LossSum:  # type: ignore[override]  # a tuple's + concatenates
        return LossSum(self.total + other.total, self.targets + other.targets)
