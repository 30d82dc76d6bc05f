"""A plan in a line or two, as other commands quote it; and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Iterator

from lmscale.config import RunConfig
from lmscale.plan.advice import advise
from lmscale.plan.devices import Machine
from lmscale.plan.memory import plan_memory, render_gb
from lmscale.plan.speed import plan_step


def quote_plan(config: RunConfig, machine: Machine) -> list[str]:
    """What a rank holds, and how fast all of them are."""
    memory, step = plan_memory(config, machine), plan_step(config, machine)
    return [
        f"by the plan a rank holds {render_gb(memory.total_bytes)} of "
        f"{render_gb(memory.device_bytes)}, most of it {memory.largest}, and {machine.ranks} "
        f"{machine.device.name} do {step.tokens_per_second:,.0f} tokens/s"
    ]


def describe_unplanned(config: RunConfig, machine: Machine) -> Iterator[str]:
    """Which settings the plan does not know, and which way it errs."""
    saves = getattr(config.model, "activation_checkpoint_saves", "nothing")
    if saves != "nothing":
        yield (
            f"model.activation_checkpoint_saves = {saves} is not planned: it holds more memory, "
            "and takes less time, than the plan says of blocks that are recomputed whole"
        )
    if config.engine.activation_memory_budget < 1:
        yield (
            f"engine.activation_memory_budget = {config.engine.activation_memory_budget:g} is not "
            "planned: it holds less memory, and takes more time, than the plan says"
        )
    precision = config.engine.precision
    if precision != "auto" and machine.device.peak(precision) is None:
        yield (
            f"engine.precision = {precision}: {machine.device.name} does not compute in it, as far "
            "as its figures say, so the plan's speed is a guess. Set auto or fp16"
        )


def advise_fit(config: RunConfig, machine: Machine) -> str:
    """The best change by which it fits, in a sentence."""
    for option in advise(config, machine):
        if option.memory.fits:
            return f"Set {option.described}, which would need {option.needs}."
    return "No change of micro-batch, recomputation, ZeRO stage or offload makes it fit: take more."
