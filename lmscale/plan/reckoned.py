"""A step on a device that was measured: its products by their shapes, all else by its counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmscale.config import RunConfig
from lmscale.plan.calibration import Calibration, PhaseCosts
from lmscale.plan.counts import RECOMPUTED, count_phases
from lmscale.plan.devices import Device
from lmscale.plan.operations import find_frozen_names, list_operations, list_parameters
from lmscale.plan.products import Product, measured_seconds

KIND_OF_COUNT = {  # what a count's seconds are spent on
    "launches": "launches",
    "micro": "launches",
    "tensors": "launches",
    "scores": "attention",
    "attention_flops": "attention",
    "logits": "memory",
    "moved_bytes": "memory",
    "kernel_bytes": "memory",
    "elements": "memory",
}


@dataclass(frozen=True, kw_only=True)
class CountedStep:
    """A step of a rank."""

    counts: Mapping[str, Mapping[str, float]]
    """Phase → count → how many."""
    products: Mapping[str, float]
    """Phase → seconds of its products."""
    stage: int


def find_measured(config: RunConfig, device: Device) -> Calibration | None:
    """What was measured of a device in the configuration's precision, with its steps."""
    measured = device.measured
    if measured is None or not measured.phases or measured.precision != config.engine.precision:
        return None
    return measured


def count_step(config: RunConfig, device: Device, *, ranks: int) -> CountedStep:
    batch = config.batch.plan(ranks)
    precision = config.engine.precision
    operations = list_operations(
        config, micro_windows=batch.micro_windows, on_gpu=device.kind == "gpu"
    )
    shapes = list_parameters(config.model, config.sizes)
    frozen = find_frozen_names(config, shapes)
    trained = [shape.elements for shape in shapes if shape.name not in frozen]
    seconds = {"forward": 0.0, "backward": 0.0}
    for operation in operations:
        if operation.kind != "product":
            continue
        product = Product(operation.m, operation.n, operation.k)
        forward = measured_seconds(product, precision, device, backward=False)
        backward = measured_seconds(product, precision, device, backward=True)
        # Measured are both gradients; one alone takes half, and what is computed again a forward.
        times = round(operation.backward_flops / operation.flops) if operation.flops else 0
        again = max(0, times - 2) * forward + operation.recomputed / operation.times * forward
        seconds["forward"] += operation.times * forward
        seconds["backward"] += operation.times * (min(times, 2) / 2 * backward + again)
    return CountedStep(
        counts=count_phases(
            operations,
            accumulation=batch.accumulation,
            tensors=len(trained),
            elements=sum(trained),
        ),
        products={name: each * batch.accumulation for name, each in seconds.items()},
        stage=config.engine.zero_stage,
    )


def reckon_step(counted: CountedStep, device: Device) -> dict[str, dict[str, float]]:
    """Phase → what it is spent on → seconds."""
    measured = device.measured
    assert measured is not None, "find_measured has found it"
    costs = {each.phase: each for each in measured.phases}
    phases: dict[str, dict[str, float]] = {}
    for phase, of_phase in costs.items():
        spent = {"products": counted.products.get(phase, 0.0)}
        _spend(spent, of_phase, counted.counts[phase], counted.stage)
        if phase == "backward" and "forward" in costs:
            _spend(spent, costs["forward"], counted.counts[RECOMPUTED], counted.stage)
        phases[phase] = {name: seconds for name, seconds in spent.items() if seconds}
    return phases


def _spend(
    spent: dict[str, float], costs: PhaseCosts, counts: Mapping[str, float], stage: int
) -> None:
    for name, seconds in costs.reckon(counts, stage).items():
        kind = KIND_OF_COUNT[name]
        spent[kind] = spent.get(kind, 0.0) + seconds
