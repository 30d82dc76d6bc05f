"""A plan in a line or two, as other commands quote it; and what to change where it does not fit."""

from __future__ import annotations

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


def advise_fit(config: RunConfig, machine: Machine) -> str:
    """The best change by which it fits, in a sentence."""
    for option in advise(config, machine):
        if option.memory.fits:
            return f"Set {option.described}, which would need {option.needs}."
    return "No change of micro-batch, recomputation, ZeRO stage or offload makes it fit: take more."
