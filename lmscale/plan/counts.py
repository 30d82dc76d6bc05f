"""What of a step costs time, counted: what measured steps are fitted to, and others reckoned from.

Products are left out, since they are measured by their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from lmscale.plan.operations import Operation

Counts = Mapping[str, float]
PhaseName = Literal["forward", "backward", "step"]
PHASES: tuple[PhaseName, ...] = ("forward", "backward", "step")
RECOMPUTED = "recomputed"
OF_STAGE = ("micro", "tensors", "elements")
"""Counts whose cost depends on ZeRO's stage, which keeps books of every parameter."""


def count_phases(
    operations: Sequence[Operation], *, accumulation: int, tensors: int, elements: int
) -> dict[str, dict[str, float]]:
    """Phase → count → how many in a step of a rank, of so many trained ``tensors`` that have so
    many ``elements`` together. ``recomputed`` is of the backward pass, and costs what forward does.
    """
    forward: dict[str, float] = {}
    backward: dict[str, float] = {}
    recomputed: dict[str, float] = {}
    for operation in operations:
        once, again = _count(operation, backward=False), _count(operation, backward=True)
        _add(forward, once, operation.times * accumulation)
        _add(backward, again, operation.times * accumulation)
        _add(recomputed, once, operation.recomputed * accumulation)
    own = {
        "micro": float(accumulation),
        "tensors": float(accumulation * tensors),
        "elements": float(accumulation * elements),
    }
    return {
        "forward": forward | own,
        "backward": backward | own,
        RECOMPUTED: recomputed,
        "step": {"micro": 1.0, "tensors": float(tensors), "elements": float(elements)},
    }


def _count(operation: Operation, *, backward: bool) -> dict[str, float]:
    launches = operation.backward_launches if backward else operation.launches
    counts = {"launches": float(launches)}
    flops = operation.backward_flops if backward else operation.flops
    moved = operation.backward_moved_bytes if backward else operation.moved_bytes
    if operation.kind == "attention":
        width = operation.k or 64
        return counts | {"scores": flops / width, "attention_flops": flops}
    if operation.kind == "loss":
        return counts | {"logits": flops}
    if operation.kind == "product":
        return counts
    if backward and operation.name.endswith(".add"):  # where gradients meet, they are summed
        return {"launches": 1.0, "moved_bytes": float(operation.moved_bytes)}
    return counts | {"moved_bytes": float(moved), "kernel_bytes": float(moved * max(launches, 1))}


def _add(totals: dict[str, float], counts: Counts, times: int) -> None:
    for name, count in counts.items():
        totals[name] = totals.get(name, 0.0) + count * times
