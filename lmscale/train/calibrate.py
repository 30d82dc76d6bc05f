"""`lmscale plan calibrate`: measure a device, and fit the plan of small steps to what they took."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from statistics import median

import torch

from lmscale.config import RunConfig
from lmscale.config.load import parse_config
from lmscale.plan.calibration import Calibration, ProductTime
from lmscale.plan.devices import Device, find_device
from lmscale.plan.fitting import MeasuredPhase, fit_phases
from lmscale.plan.reckoned import count_step, reckon_step
from lmscale.ranks.device import device_name
from lmscale.ranks.ranks import Ranks
from lmscale.train.measured_steps import (
    Clock,
    open_step_loop,
    time_collectives,
    time_products,
    time_steps,
)

# Decoders that differ in what their steps cost: layers, width, heads, tokens of a window, windows
# of a micro-batch, micro-batches, vocabulary. The first ones cost next to nothing but launches and
# books; of the others each is large in one thing.
SHAPES = (
    (1, 32, 2, 32, 1, 1, 512),
    (4, 32, 2, 32, 1, 1, 512),
    (1, 32, 2, 32, 1, 4, 512),
    (4, 32, 2, 32, 1, 3, 512),
    (1, 512, 8, 32, 1, 1, 512),  # parameters
    (2, 512, 8, 32, 1, 2, 2048),
    (2, 256, 4, 256, 4, 1, 512),  # bytes of pointwise operators
    (2, 128, 2, 512, 4, 2, 512),
    (1, 64, 2, 128, 4, 1, 8192),  # logits
    (1, 128, 4, 256, 2, 2, 4096),
    (1, 64, 4, 1024, 1, 1, 512),  # scores of attention
    (2, 192, 3, 512, 2, 1, 1024),
    (3, 64, 4, 64, 4, 2, 1024),
    (3, 256, 8, 64, 4, 1, 4096),
    (4, 128, 4, 128, 2, 2, 512),
)
COMMON = 6  # of them, the first, are measured at every stage of ZeRO, the others at one
COMMON_STAGE = 1
GROUPED = (9, 12, 14)  # of them those with half as many heads of keys, and tied embeddings
VARIANT = "norm: layernorm, activation: gelu, bias: true, positions: learned"
STEPS = 5


def plan_steps(
    precision: str, ranks: int, stages: Sequence[int] = (0, 1, 2, 3)
) -> Iterator[RunConfig]:
    """The configurations of the steps that are measured. Those of stage 3 are the last: a model
    that is built for it leaves DeepSpeed's own linear layers to all later ones.
    """
    for stage in sorted(stages):
        for number, shape in enumerate(SHAPES):
            if number < COMMON or stage == COMMON_STAGE:
                more = f", {VARIANT}" if number % 3 == 1 else ""
                if number in GROUPED:
                    more += f", kv_heads: {shape[2] // 2}, tied_embeddings: true"
                yield _build(shape, precision, ranks, stage, more)


def _build(shape: tuple[int, ...], precision: str, ranks: int, stage: int, more: str) -> RunConfig:
    layers, width, heads, length, micro, accumulation, vocabulary = shape
    return parse_config(
        "run: {name: calibration}",
        [
            f"model={{layers: {layers}, width: {width}, heads: {heads}, "
            f"vocab_size: {vocabulary}{more}}}",
            f"tokenizer.vocab_size={vocabulary}",
            f"stream.sequence_length={length}",
            f"batch={{global_windows: {micro * accumulation * ranks}, micro_windows: {micro}}}",
            f"engine={{precision: {precision}, zero_stage: {stage}, schedule: {{kind: constant}}}}",
            "train.steps=1000000",
        ],
        name="calibration",
    )


def calibrate(
    ranks: Ranks, device: torch.device, *, precision: str, clock: Clock = "wall", steps: int = STEPS
) -> Device:
    """The device that ``--gpu FILE`` takes. Every rank calls this together, on its own device."""
    products = time_products(precision, device, clock)
    rows: list[tuple[RunConfig, dict[str, float]]] = []
    for config in plan_steps(precision, ranks.world_size):
        with open_step_loop(config, ranks, device, clock) as loop:
            rows.append((config, time_steps(loop, steps)))
    return build_device(
        ranks, device, precision=precision, clock=clock, products=products, rows=rows
    )


def build_device(
    ranks: Ranks,
    device: torch.device,
    *,
    precision: str,
    clock: Clock,
    products: tuple[ProductTime, ...],
    rows: Sequence[tuple[RunConfig, dict[str, float]]],
) -> Device:
    """The device with what was measured of it: configurations and the seconds of their phases."""
    base = find_device("cpu" if device.type == "cpu" else device_name(device))
    memory = base.memory_bytes
    if device.type == "cpu":
        memory //= ranks.local_world_size
    best = max(2.0 * p.m * p.n * p.k / p.forward_seconds for p in products)
    peaks = dict(base.peak_flops)
    if device.type == "cpu":
        peaks = {precision: best}
    measured = Calibration(
        torch=torch.__version__,
        ranks=ranks.world_size,
        threads=torch.get_num_threads(),
        clock=clock,
        precision=precision,  # pyright: ignore[reportArgumentType]
        products=products,
        collectives=time_collectives(device),
    )
    draft = base.model_copy(
        update={
            "name": device_name(device) or base.name,
            "memory_bytes": memory,
            "peak_flops": peaks,
            "source": f"lmscale plan calibrate, {os.uname().nodename}",
            "measured": measured,
        }
    )
    return fit_device(draft, rows, ranks=ranks.world_size)


def fit_device(
    draft: Device, rows: Sequence[tuple[RunConfig, dict[str, float]]], *, ranks: int
) -> Device:
    """``draft`` with the costs that fit the measured steps best."""
    phases = []
    for config, seconds in rows:
        counted = count_step(config, draft, ranks=ranks)  # nothing of which is computed again
        for name, taken in seconds.items():
            phases.append(
                MeasuredPhase(
                    phase=name,
                    stage=config.engine.zero_stage,
                    counts=counted.counts[name],
                    known_seconds=counted.products.get(name, 0.0),
                    seconds=taken,
                )
            )
    assert draft.measured is not None, "the draft has its products"
    fitted = draft.measured.model_copy(update={"phases": fit_phases(phases)})
    device = draft.model_copy(update={"measured": fitted})
    errors = []
    for config, seconds in rows:
        planned = reckon_step(count_step(config, device, ranks=ranks), device)
        total = sum(sum(parts.values()) for parts in planned.values())
        errors.append(abs(total / sum(seconds.values()) - 1))
    final = fitted.model_copy(update={"fit_error": median(errors)})
    return device.model_copy(update={"measured": final})
