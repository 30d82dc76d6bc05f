"""What a rank holds in memory, by component, at the worst moments of a step.

Three moments can be the worst: a forward and backward pass, where activations are; the end of the
backward passes, where gradients are gathered and sent; and the update. Of each, what DeepSpeed
0.19.8 and lmscale's engine hold (``states.py``), and the activations of the played pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from lmscale.config import RunConfig
from lmscale.plan.checkpoints import plan_checkpoint
from lmscale.plan.devices import Machine, settle_precision
from lmscale.plan.operations import write_pass
from lmscale.plan.states import Moment, States, count_states
from lmscale.plan.tape import Tape
from lmscale.plan.timeline import Peaks, play

# Of what a CUDA device holds: blocks that the allocator cannot fit together, and its rounding. No
# source; PyTorch reports it as reserved minus allocated bytes, which runs log.
FRAGMENTATION_SHARE = 0.05
LOSS_RECORDS = ("head", "loss", "teacher.head")
# What a process with torch and DeepSpeed holds before the model, and a loader's worker without
# torch: no source, about what Linux shows of ours.
PROCESS_BYTES, WORKER_BYTES = 700 * 2**20, 120 * 2**20


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory of one rank."""

    components: Mapping[str, int]
    """Bytes on the device at the worst moment, context and margin included."""
    moment: str
    """Which moment that is: pass, reduction or update."""
    host: Mapping[str, int]
    """Bytes of the rank's share of its node's memory; of a CPU rank what the device has not."""
    device_bytes: int
    """All that the device has."""
    micro_windows: int

    @property
    def total_bytes(self) -> int:
        return sum(self.components.values())

    @property
    def allocated_bytes(self) -> int:
        """What a run logs as ``memory/peak_bytes``: its allocator's on a GPU, else the process'."""
        besides = ("context", "fragmentation")
        return sum(size for name, size in self.components.items() if name not in besides)

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.device_bytes

    @property
    def largest(self) -> str:
        """The component that takes most."""
        return max(self.components, key=lambda name: self.components[name])


def plan_memory(config: RunConfig, machine: Machine, *, micro_windows: int = 0) -> Memory:
    """The memory of a rank. ``micro_windows``: by default those that the batch's division gives.

    Raises ``ConfigError`` where the windows cannot be dealt, or the family cannot be planned.
    """
    config = settle_precision(config, machine.device)
    plan = config.batch.plan(machine.ranks)
    if micro_windows:
        per_rank = plan.windows_per_rank
        plan = replace(plan, micro_windows=micro_windows, accumulation=per_rank // micro_windows)
    states = count_states(config, ranks=machine.ranks)
    on_gpu = machine.device.kind == "gpu"
    tape = write_pass(config, micro_windows=plan.micro_windows, on_gpu=on_gpu)
    parts = _activations(tape, states, accumulates=plan.accumulation > 1)
    moments = [
        Moment(name="pass", held=states.in_pass(plan.accumulation) | parts),
        Moment(name="reduction", held=states.at_reduction()),
        Moment(name="update", held=states.at_update()),
    ]
    worst = max(moments, key=lambda moment: sum(moment.held.values()))
    components = {name: size for name, size in worst.held.items() if size}
    components["batch"] = _batch_bytes(config, plan.micro_windows)
    host = dict(states.on_host) | _host(config, machine, plan.windows_per_rank)
    if on_gpu:
        components["context"] = machine.device.context_bytes
        held = sum(components.values()) - machine.device.context_bytes
        components["fragmentation"] = int(held * FRAGMENTATION_SHARE)
    else:
        components |= host
        host = {}
    return Memory(
        components=components,
        moment=worst.name,
        host=host,
        device_bytes=machine.device.memory_bytes,
        micro_windows=plan.micro_windows,
    )


def _activations(tape: Tape, states: States, *, accumulates: bool) -> dict[str, int]:
    """What the blocks keep, and what the loss adds to it at its worst."""
    whole = _play(tape, states, accumulates=accumulates)
    forward = whole.forward_bytes + states.held_forward(accumulates=accumulates)
    most = max(forward, whole.growing_bytes)
    blocks = min(_kept_of_blocks(tape), most)
    return {"activations": blocks, "loss and backward": most - blocks}


@lru_cache(maxsize=64)
def _kept_of_blocks(tape: Tape) -> int:
    body = [record for record in tape.records if record.name not in LOSS_RECORDS]
    return max(play(replace(tape, records=body)).kept_bytes, 0)


def _play(tape: Tape, states: States, *, accumulates: bool) -> Peaks:
    return play(
        tape,
        gradient_itemsize=states.growing_itemsize(accumulates=accumulates),
        first_gradient_bytes=0 if states.keeps_bucket and accumulates else states.bucket_in_pass,
    )


def _batch_bytes(config: RunConfig, micro_windows: int) -> int:
    """Ids, labels, starts and positions: int64 on the device, in the loader's types before."""
    tokens = micro_windows * (config.stream.sequence_length + 1)
    return tokens * 5 * 8


def _host(config: RunConfig, machine: Machine, windows_per_rank: int) -> dict[str, int]:
    """Of a rank: its process, the loader's with the slots between, the copy that a save makes."""
    workers, stream = config.stream.workers, config.stream
    tokens = windows_per_rank * config.window.tokens
    slots = tokens * (2 if config.tokenizer.vocab_size <= 2**16 else 4) * stream.prefetch_steps
    host = {
        "process": PROCESS_BYTES,
        "loader": workers * (WORKER_BYTES + slots),
    }
    if config.checkpoint.asynchronous:
        checkpoint = plan_checkpoint(config, ranks=machine.ranks)
        host["save's copy"] = checkpoint.bytes // machine.ranks
    return host


def fitting_micro_windows(config: RunConfig, machine: Machine) -> int:
    """The most windows of a micro-batch that fit, a divisor of a rank's share; 0: not even one."""
    share = config.batch.plan(machine.ranks).windows_per_rank
    divisors = [count for count in range(1, share + 1) if share % count == 0]
    low, high = 0, len(divisors)  # the first ``low`` fit, the one at ``high`` does not
    while low < high:
        middle = (low + high) // 2
        if plan_memory(config, machine, micro_windows=divisors[middle]).fits:
            low = middle + 1
        else:
            high = middle
    return divisors[low - 1] if low else 0


def check_fits(config: RunConfig, machine: Machine) -> str | None:
    """Why a configuration cannot fit the machine, in a sentence; None where it can."""
    memory = plan_memory(config, machine)
    if memory.fits:
        return None
    largest = sorted(memory.components.items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{name} {render_gb(size)}" for name, size in largest)
    return (
        f"it needs {render_gb(memory.total_bytes)} a rank with micro-batches of "
        f"{memory.micro_windows} windows, and {machine.device.name} has "
        f"{render_gb(memory.device_bytes)}: {told}"
    )


def render_gb(nbytes: float) -> str:
    """``41.2 GB``, of a billion bytes each; below one ``312 MB``."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"
