# Shape letters: B rows, S sources, N labelled examples.
"""What a scoring takes, is and returns: tensors by name; sums by name, each with its count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lmscale.objective.objective import SOURCE_LOSS

if TYPE_CHECKING:
    from lmscale.stream.mixture import Mixture


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


class Choices(NamedTuple):
    """What a scoring of classes takes each example for, in the order of its labels."""

    predicted: Tensor  # i64 [N]
    probability: Tensor  # f32 [N]: that it gives to it


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
    rows: LossSum | None = None
    """The figure ``loss`` of each row, f32 and int64 [B], where the objective can tell."""
    choices: Choices | None = None
    """In evaluation, of an objective that tells classes apart."""

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
    """This rank's sums of some figures over micro-batches, kept on the device. Under a ``mixture``
    of several sources also of the loss of each: ``source_loss/<source>``.
    """

    def __init__(
        self, names: tuple[str, ...], device: torch.device, mixture: Mixture | None = None
    ) -> None:
        self.names, self._device, self._mixture = names, device, mixture
        sources = () if mixture is None else mixture.names
        self._sources = sources if len(sources) > 1 else ()  # of one it is the loss
        self._all_names = (*names, *(f"{SOURCE_LOSS}/{source}" for source in self._sources))
        self.values = torch.zeros(2 * len(self._all_names), dtype=torch.float64, device=device)
        """f64: a sum and its count for each name."""

    def add(self, scores: Scores, first_n: int | None = None) -> None:
        """``first_n``: the number of the first row's sample, in training; the others follow."""
        if not scores.figures.keys() >= set(self.names):
            raise ValueError(
                f"the objective's section lists the figures {list(self.names)}, but its scoring "
                f"returned {sorted(scores.figures)}"
            )
        numbers = [number for name in self.names for number in scores.figures[name]]
        self.values[: len(numbers)] += torch.stack([number.double() for number in numbers])
        if self._sources and scores.rows is not None and first_n is not None:
            self._add_rows(scores.rows, first_n)

    def _add_rows(self, rows: LossSum, first_n: int) -> None:
        assert self._mixture is not None
        sources, _ = self._mixture.locate(first_n, len(rows.total))
        sources_B = to_device({"sources": sources}, self._device)["sources"]
        is_its_SB = sources_B == torch.arange(len(self._sources), device=self._device)[:, None]
        sums_S2 = torch.stack([(each.double() * is_its_SB).sum(1) for each in rows], dim=1)
        self.values[2 * len(self.names) :] += sums_S2.flatten()

    def means(self, sums: Sequence[float]) -> tuple[dict[str, float], dict[str, float]]:
        """All ranks' sums → figures and counts by name; a figure whose count is 0 is left out."""
        rows = zip(self._all_names, sums[::2], sums[1::2], strict=True)
        rows = [(name, total, count) for name, total, count in rows if count]
        return {name: total / n for name, total, n in rows}, {name: n for name, _, n in rows}
