"""What was measured of a device, as it stands in a file, and what is read between its points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from lmscale.config.base import MAX_BYTES, Section

Seconds = Annotated[float, Field(gt=0, le=1e6)]
Bytes = Annotated[int, Field(gt=0, le=MAX_BYTES)]


class ProductTime(Section):
    """One product [m, k] × [k, n] as a linear layer does it, and its two gradients."""

    precision: Literal["bf16", "fp16", "fp32"]
    m: PositiveInt
    """Rows: tokens of a micro-batch."""
    n: PositiveInt
    """Outputs."""
    k: PositiveInt
    """Inputs."""
    forward_seconds: Seconds
    backward_seconds: Seconds
    """Of both gradients."""


class PhaseCosts(Section):
    """What the counts of a phase cost (``counts.py``), as small steps were measured."""

    phase: Literal["forward", "backward", "step"]
    seconds: dict[str, float]
    """Count → seconds of each."""
    stage_seconds: dict[str, dict[str, float]]
    """ZeRO's stage → the same of what depends on it."""

    def reckon(self, counts: Mapping[str, float], stage: int) -> dict[str, float]:
        """Count → seconds of all of them."""
        costs = self.seconds | self.stage_seconds.get(str(stage), {})
        return {name: count * costs.get(name, 0.0) for name, count in counts.items()}


class CollectiveTime(Section):
    """One collective of so many bytes, those of the whole tensor, over all ranks."""

    kind: Literal["all_reduce", "all_gather", "reduce_scatter"]
    sent_bytes: Bytes
    seconds: Seconds


class Calibration(Section):
    """The ceilings of one rank's device while all ranks were measured at once."""

    torch: str
    ranks: PositiveInt = 1
    threads: PositiveInt = 1
    clock: Literal["wall", "process"] = "wall"
    """``process``: CPU seconds of the rank, for a machine that others use too."""
    precision: Literal["bf16", "fp16", "fp32"] = "fp32"
    """Of the steps that ``phases`` were fitted to."""
    fit_error: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Median relative error of the fitted steps."""
    products: Annotated[tuple[ProductTime, ...], Field(strict=False)] = ()
    phases: Annotated[tuple[PhaseCosts, ...], Field(strict=False)] = ()
    collectives: Annotated[tuple[CollectiveTime, ...], Field(strict=False)] = ()


def interpolate(points: Mapping[tuple[int, ...], float], place: Sequence[float]) -> float:
    """Seconds at ``place`` between points of a grid, whose logarithms are straight between the
    grid's lines, and beyond them go on as they do at the edge.

    The points need not fill the grid: where a corner is missing, the nearest that is there stands
    for it, scaled by the ratio of the places' volumes.
    """
    axes = [sorted({point[axis] for point in points}) for axis in range(len(place))]
    brackets = [_bracket(axis, value) for axis, value in zip(axes, place, strict=True)]
    total = 0.0
    for number in range(2 ** len(place)):
        corner, weight = [], 1.0
        for axis, (low, high, share) in enumerate(brackets):
            is_high = number >> axis & 1
            corner.append(high if is_high else low)
            weight *= share if is_high else 1 - share
        if weight:
            total += weight * math.log(_corner(points, tuple(corner)))
    return math.exp(total)


def _bracket(axis: Sequence[int], value: float) -> tuple[int, int, float]:
    """The grid's lines around a value, and how far from the first to the second it is."""
    if len(axis) == 1:
        return axis[0], axis[0], 0.0
    index = next((i for i, line in enumerate(axis[1:], 1) if value <= line), len(axis) - 1)
    low, high = axis[index - 1], axis[index]
    return low, high, math.log(max(value, 1) / low) / math.log(high / low)


def _corner(points: Mapping[tuple[int, ...], float], corner: tuple[int, ...]) -> float:
    if corner in points:
        return points[corner]

    def distance(other: tuple[int, ...]) -> float:
        return sum(math.log(a / b) ** 2 for a, b in zip(corner, other, strict=True))

    near = min(points, key=distance)
    return points[near] * math.prod(corner) / math.prod(near)
