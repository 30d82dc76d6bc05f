"""Which configuration the planner would run: the same training, divided and held otherwise.

Only what does not change the training is varied: the micro-batch, how many blocks are recomputed,
the ZeRO stage, and what is offloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lmscale.config import RunConfig
from lmscale.plan.changes import change
from lmscale.plan.devices import Machine
from lmscale.plan.memory import Memory, plan_memory, render_gb
from lmscale.plan.speed import Step, plan_step

MOST_MICRO_BATCHES = 4  # sizes tried of each alternative: the largest that fit, and smaller ones
EVERY = (0, 4, 2, 1)  # activation_checkpoint_every, from none to all blocks
NEAR = (
    0.005  # steps whose times differ by less than this part are as fast; the simpler one is first
)


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A way to run a configuration, with what it needs and how long a step takes."""

    changes: Mapping[str, Any]
    """Setting → value, of those that differ from the configuration's; empty: as it is."""
    memory: Memory
    step: Step
    own_seconds: float
    """Of a step of the configuration as it is."""

    @property
    def described(self) -> str:
        """The changes as ``--set`` takes them."""
        return ", ".join(f"{name}={_show(value)}" for name, value in self.changes.items())

    @property
    def needs(self) -> str:
        """Memory and time in words: ``31.2 of 85.0 GB a rank, +11 % time``."""
        change = self.step.seconds / self.own_seconds - 1
        time = "the same time" if abs(change) < NEAR else f"{change:+.0%} time"
        return f"{render_gb(self.memory.total_bytes)} a rank and {time}"


def advise(config: RunConfig, machine: Machine, *, most: int = 4) -> tuple[Alternative, ...]:
    """The best ways to run it, the first being the planner's choice: those that fit by the time of
    a step, of equal ones with fewer changes; then, where none fits, those that need least memory.
    """
    own_seconds, own_offload = plan_step(config, machine).seconds, config.engine.offload_optimizer
    found: list[Alternative] = []
    for offloads in (own_offload, True) if not own_offload else (True,):
        if any(each.memory.fits for each in found):
            break  # nothing has to go to the host
        for changes in _variants(config, machine, offloads=offloads):
            if any(changes == each.changes for each in found):
                continue
            changed = change(config, changes)
            memory, step = plan_memory(changed, machine), plan_step(changed, machine)
            found.append(
                Alternative(changes=changes, memory=memory, step=step, own_seconds=own_seconds)
            )
    found.sort(key=lambda each: (not each.memory.fits, _time_key(each), len(each.changes)))
    return tuple(found[:most])


def _time_key(alternative: Alternative) -> int:
    return round(alternative.step.seconds / alternative.own_seconds / NEAR)


def describe_limit(config: RunConfig, machine: Machine, memory: Memory) -> list[str]:
    """What limits the memory, and what each way out of it costs: ``activations: 41 GB; recompute
    every second block: +11 % time``.
    """
    own = plan_step(config, machine)
    told = []
    for words, changes in _ways_out(config, memory.largest):
        changed = change(config, changes)
        other, step = plan_memory(changed, machine), plan_step(changed, machine)
        saved = memory.total_bytes - other.total_bytes
        if saved > memory.total_bytes // 100:
            ratio = step.seconds / own.seconds - 1
            told.append(f"{words}: {render_gb(saved)} less, {ratio:+.0%} time")
    size = render_gb(memory.components[memory.largest])
    return [f"{memory.largest}: {size}; {way}" for way in told] or [f"{memory.largest}: {size}"]


def _ways_out(config: RunConfig, largest: str) -> Iterator[tuple[str, dict[str, Any]]]:
    every = getattr(config.model, "activation_checkpoint_every", None)
    if largest in ("activations", "loss and backward"):
        if every == 0:
            key = "model.activation_checkpoint_every"
            yield "recompute every second block", {key: 2}
            yield "recompute every block", {key: 1}
        chunk = getattr(config.objective, "chunk_tokens", 0)
        if largest == "loss and backward" and chunk > 256:
            yield f"chunks of {chunk // 4} logits", {"objective.chunk_tokens": chunk // 4}
        micro = config.batch.micro_windows
        if micro > 1:
            yield f"micro-batches of {micro // 2}", {"batch.micro_windows": micro // 2}
        return
    for stage in range(config.engine.zero_stage + 1, 4):
        yield f"ZeRO {stage}", {"engine.zero_stage": stage}
    if config.engine.zero_stage and not config.engine.offload_optimizer:
        yield "the optimizer in host memory", {"engine.offload_optimizer": True}


def _variants(config: RunConfig, machine: Machine, *, offloads: bool) -> Iterator[dict[str, Any]]:
    """Changes to try, from none on."""
    yield {}
    share = config.batch.plan(machine.ranks).windows_per_rank
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    own_every = getattr(config.model, "activation_checkpoint_every", None)
    first = 3 if config.engine.offload_parameters else int(offloads)
    for stage in range(first, 4):
        for every in (own_every,) if own_every is None else EVERY:
            tried = {
                "engine.zero_stage": (stage, config.engine.zero_stage),
                "engine.offload_optimizer": (offloads, config.engine.offload_optimizer),
                "model.activation_checkpoint_every": (every, own_every),
            }
            changes = {key: new for key, (new, own) in tried.items() if new != own}
            yield from _sized(config, machine, changes, sizes)


def _sized(
    config: RunConfig, machine: Machine, changes: dict[str, Any], sizes: list[int]
) -> Iterator[dict[str, Any]]:
    """The changes with the largest micro-batches that fit."""
    changed = change(config, changes)
    own = config.batch.plan(machine.ranks).micro_windows
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        fits = plan_memory(changed, machine, micro_windows=sizes[middle]).fits
        low, high = (middle + 1, high) if fits else (low, middle)
    for size in reversed(sizes[max(0, low - MOST_MICRO_BATCHES) : low]):
        yield changes | ({"batch.micro_windows": size} if size != own else {})


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
