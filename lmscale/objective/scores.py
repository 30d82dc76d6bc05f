"""What a scoring takes, is and returns: tensors by name; sums by name, each with its count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


def to_device(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """The arrays as tensors on the device, in the loader's compact types."""
    tensors = {}
    for name, array in arrays.items():
        # torch wants writable memory, though nobody writes, and no negative strides. Not
        # ascontiguousarray, which makes a vector of a single number.
        tensor = torch.from_numpy(np.require(array, requirements=("C", "W")))
        if device.type == "cuda":
            tensor = tensor.pin_memory().to(device, non_blocking=True)
        tensors[name] = tensor
    return tensors


class LossSum(NamedTuple):
    """A sum and its count, never a mean: sums of micro-batches and ranks may simply be added."""

    total: Tensor  # f32 []
    targets: Tensor  # i64 []

    def __add__(self, other: LossSum) -> LossSum:  # type: ignore[override]  # a tuple's + concatenates
        return LossSum(self.total + other.total, self.targets + other.targets)


class Scores(NamedTuple):
    """Plain tensors in tuples and a dict, so that DeepSpeed's hooks reach them."""

    loss: LossSum
    """What to backpropagate, with gradient, and what to divide it by: the targets that the
    preparation counted, whatever else was added to the sum.
    """
    figures: dict[str, LossSum]
    """What to report, without gradient, by the names that the objective's section lists."""
    more_losses: tuple[LossSum, ...] = ()
    """Further terms of the loss, with gradient: each is divided by its own targets of the step."""

    def terms(self) -> Tensor:
        """The sums to backpropagate: f32 [], or [terms] where there are several."""
        if not self.more_losses:
            return self.loss.total
        return torch.stack([self.loss.total, *(term.total for term in self.more_losses)])


class Scoring(nn.Module):
    """A model with the function that scores it, so that a training engine wraps and calls one
    module.

    ``score`` is called with the model and the preparation's arrays by name, on the model's device.
    The model's parameters appear here as ``model.…``.
    """

    def __init__(self, model: nn.Module, score: Callable[..., Scores]) -> None:
        super().__init__()
        self.model = model
        self.score = score

    def forward(self, **arrays: Tensor) -> Scores:
        return self.score(self.model, **arrays)


class ScoreSums:
    """This rank's sums of some figures over micro-batches, kept on the device."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self.values = torch.zeros(2 * len(names), dtype=torch.float64, device=device)
        """f64: a sum and its count for each name."""

    def add(self, scores: Scores) -> None:
        if not scores.figures.keys() >= set(self.names):
            raise ValueError(
                f"the objective's section lists the figures {list(self.names)}, but its scoring "
                f"returned {sorted(scores.figures)}"
            )
        numbers = [number for name in self.names for number in scores.figures[name]]
        self.values += torch.stack([number.double() for number in numbers])

    def means(self, sums: Sequence[float]) -> tuple[dict[str, float], dict[str, float]]:
        """All ranks' sums → figures and counts by name; a figure whose count is 0 is left out."""
        rows = zip(self.names, sums[::2], sums[1::2], strict=True)
        rows = [(name, total, count) for name, total, count in rows if count]
        return {name: total / n for name, total, n in rows}, {name: n for name, _, n in rows}
