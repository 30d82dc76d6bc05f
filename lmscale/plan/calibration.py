"""What was measured of a device, as it stands in a file, and what is read between its points."""

from __future__ import annotations

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


class MoveTime(Section):
    """One operator that reads and writes so many bytes together and computes next to nothing."""

    moved_bytes: Bytes
    seconds: Seconds


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
    launch_seconds: Seconds
    """Of the host, for an operator on next to nothing."""
    products: Annotated[tuple[ProductTime, ...], Field(strict=False)] = ()
    moves: Annotated[tuple[MoveTime, ...], Field(strict=False)] = ()
    collectives: Annotated[tuple[CollectiveTime, ...], Field(strict=False)] = ()
