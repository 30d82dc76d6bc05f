"""How ``lmscale plan`` tells memory, what limits it, and what the planner would run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lmscale.config import RunConfig
from lmscale.plan.advice import Alternative, advise, describe_limit
from lmscale.plan.devices import Machine
from lmscale.plan.memory import fitting_micro_windows, plan_memory, render_gb


def list_memory(config: RunConfig, machine: Machine) -> Iterator[tuple[str, str]]:
    """Name and text of every line."""
    memory = plan_memory(config, machine)
    verdict = "" if memory.fits else ", which does not fit"
    yield (
        "memory",
        f"{render_gb(memory.total_bytes)} of {render_gb(memory.device_bytes)} a rank{verdict}; at "
        f"most in the {memory.moment}",
    )
    for name, size in sorted(memory.components.items(), key=lambda item: -item[1]):
        if size > memory.total_bytes // 200:
            yield "", f"{render_gb(size):>9}  {name}"
    if memory.host:
        parts = ", ".join(f"{name} {render_gb(size)}" for name, size in memory.host.items())
        yield "host memory", f"{render_gb(memory.host_bytes)} a rank: {parts}"
    most = fitting_micro_windows(config, machine)
    yield "micro-batch", f"{memory.micro_windows} windows; {most or 'not even 1'} at most fit"
    for limit in describe_limit(config, machine, memory):
        yield "limit", limit


def list_advice(config: RunConfig, machine: Machine) -> Iterator[tuple[str, str]]:
    """The planner's choice, and the next best."""
    first, *others = advise(config, machine)
    if not first.memory.fits:
        yield "advice", "no division of this training fits; take more devices or a smaller model"
        return
    yield "advice", _describe(first)
    for other in others:
        if other.memory.fits:
            yield "or", _describe(other)


def _describe(alternative: Alternative) -> str:
    what = alternative.described or "as it is"
    return f"{what}: {alternative.needs}, {alternative.step.tokens_per_second:,.0f} tokens/s"


def memory_to_json(config: RunConfig, machine: Machine) -> dict[str, Any]:
    memory = plan_memory(config, machine)
    return {
        "components": dict(memory.components),
        "bytes": memory.total_bytes,
        "device_bytes": memory.device_bytes,
        "fits": memory.fits,
        "moment": memory.moment,
        "host": dict(memory.host),
        "micro_windows": memory.micro_windows,
    }


def advice_to_json(config: RunConfig, machine: Machine) -> list[dict[str, Any]]:
    return [
        {
            "changes": dict(each.changes),
            "bytes": each.memory.total_bytes,
            "fits": each.memory.fits,
            "step_seconds": each.step.seconds,
            "tokens_per_second": each.step.tokens_per_second,
        }
        for each in advise(config, machine)
    ]
