"""What the ranks send each other in a step, by ZeRO's stage, as lmscale has DeepSpeed do it.

Rajbhandari et al. 2020 (section 7) counts a gather and a reduce-scatter of the weights a step for
stages 0 to 2, and half as much again for stage 3. DeepSpeed 0.19.8 as lmscale sets it up differs:
gradients are summed in fp32, stages 1 and 2 all-reduce whole buckets
(``use_multi_rank_bucket_allreduce``), 2 and 3 reduce in every micro-batch, and only stage 3 does so
beside the backward pass (``overlap_comm``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lmscale.config.deepspeed_config import MAX_BUCKET_ELEMENTS
from lmscale.config.training import EngineConfig
from lmscale.plan.collectives import Collective, collective_seconds
from lmscale.plan.devices import Machine

GRADIENT_BYTES = 4  # communication_data_type: fp32
BUCKET_ELEMENTS = MAX_BUCKET_ELEMENTS
PREFETCH_ELEMENTS = 50_000_000  # stage3_prefetch_bucket_size of config/deepspeed_config.py
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One kind of collective of a step."""

    name: str  # such as "gradients"
    phase: str  # of the step: forward, backward, or step
    kind: Collective
    total_bytes: float
    """Of all its buckets together, each time."""
    buckets: int
    times: int
    """In a step: once, or in every micro-batch."""
    is_hidden: bool
    """Whether it runs beside the computation of its phase."""

    def seconds(self, machine: Machine) -> float:
        """Each time."""
        bucket = collective_seconds(self.kind, self.total_bytes / self.buckets, machine)
        return self.buckets * bucket


def list_exchanges(
    engine: EngineConfig, *, elements: int, trained: int, accumulation: int, layers: int
) -> tuple[Exchange, ...]:
    """``elements`` of all parameters, ``trained`` of those that are; ``layers``: how many modules
    stage 3 gathers one after another.
    """
    stage = engine.zero_stage
    weights = elements * WEIGHT_BYTES[engine.precision]
    gradients = trained * GRADIENT_BYTES
    buckets = max(1, math.ceil(trained / BUCKET_ELEMENTS))
    if stage == 3:
        gathers = max(1, min(layers, math.ceil(elements / PREFETCH_ELEMENTS)))
        return (
            _exchange("weights", "forward", "all_gather", weights, gathers, accumulation, True),
            _exchange("weights", "backward", "all_gather", weights, gathers, accumulation, True),
            _exchange(
                *("gradients", "backward", "reduce_scatter", gradients, buckets, accumulation, True)
            ),
        )
    times = accumulation if stage == 2 else 1
    reduced = _exchange("gradients", "backward", "all_reduce", gradients, buckets, times, False)
    if stage == 0:
        return (reduced,)
    updated = trained * WEIGHT_BYTES[engine.precision]
    return (reduced, _exchange("weights", "step", "all_gather", updated, buckets, 1, False))


def _exchange(
    name: str, phase: str, kind: Collective, total: float, buckets: int, times: int, hidden: bool
) -> Exchange:
    return Exchange(
        name=name,
        phase=phase,
        kind=kind,
        total_bytes=total,
        buckets=buckets,
        times=times,
        is_hidden=hidden,
    )
