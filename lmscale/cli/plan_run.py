"""What ``lmscale plan`` makes of its options, and how it tells a plan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmscale.config import RunConfig
from lmscale.files.atomic import write_bytes
from lmscale.plan.devices import CPU, Machine, find_device, plan_machine
from lmscale.plan.memory import plan_memory
from lmscale.plan.page import Page, render_page
from lmscale.plan.run import RunOptions, RunPlan, plan_scales
from lmscale.plan.speed import Step
from lmscale.plan.words import list_losses, list_sources, show_seconds, summarize
from lmscale.ranks.gpus import find_gpus

USUAL_PER_NODE = 8


def choose_machine(gpu: str | None, *, nodes: int, devices_per_node: int | None) -> Machine:
    """What is asked for, or what this machine has."""
    here = find_gpus() if gpu is None else None
    if here is not None and here.count:
        name, usual = here.name, here.count
    else:
        name = CPU if gpu is None else gpu
        usual = 1 if name == CPU else USUAL_PER_NODE
    return plan_machine(find_device(name), nodes=nodes, devices_per_node=devices_per_node or usual)


def describe_machine(machine: Machine) -> str:
    where = "" if machine.nodes == 1 else f"{machine.nodes} nodes of "
    return f"{where}{machine.devices_per_node} {machine.device.name}"


def list_rows(machine: Machine, step: Step, run: RunPlan) -> Iterator[tuple[str, str]]:
    """Name and text of every line."""
    yield "machine", describe_machine(machine)
    yield "step", f"{show_seconds(step.seconds)}, bound by {step.bound_by}"
    yield from summarize(run, step)
    for law, nats, text, doubts in [*list_losses(run)][1:]:
        said = f"{nats} by {law}" if nats else f"out of the range of {law}"
        yield "loss", f"{said} ({text}): {doubts}"
    for name, share, tokens, epochs, worth in [*list_sources(run)][1:]:
        told = f"{epochs} epochs, worth {worth}" if worth else f"epochs not known: {epochs}"
        yield "source", f"{name}: {share}, {tokens} tokens; {told}"


def to_json(machine: Machine, step: Step, run: RunPlan) -> dict[str, Any]:
    """The same as data; null is what has no end or is not known."""
    return {
        "machine": {
            "device": machine.device.name,
            "nodes": machine.nodes,
            "devices_per_node": machine.devices_per_node,
        },
        "step": {
            "seconds": step.seconds,
            "tokens_per_second": step.tokens_per_second,
            "mfu_dense": step.mfu_dense,
            "mfu_causal": step.mfu_causal,
            "phases": {phase.name: dict(phase.spent) for phase in step.phases},
        },
        "run": _finite({**asdict(run), "goodput": run.simulated.goodput, "days": run.days}),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_page(
    path: Path,
    config: RunConfig,
    machine: Machine,
    step: Step,
    run: RunPlan,
    options: RunOptions,
) -> None:
    scales = plan_scales(config, machine, step_seconds=run.step_seconds, options=options)
    memory = plan_memory(config, machine)
    page = Page(
        title=config.run.name,
        machine=describe_machine(machine),
        memory=memory.components,
        memory_limit=memory.device_bytes,
        step=step,
        run=run,
        scales=scales,
        ladder=_draw_ladder(config),
    )
    write_bytes(path, render_page(page).encode())


def _draw_ladder(config: RunConfig) -> str | None:
    """The picture of the run's own ladder, where one is finished far enough."""
    from lmscale.cli.plan_ladder import draw_finished

    return draw_finished(config)
