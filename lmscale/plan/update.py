"""The end of a step: gradients added up, their norm, the optimizer's update."""

from __future__ import annotations

from lmscale.config.training import EngineConfig
from lmscale.plan.devices import MEMORY_SHARE, Machine
from lmscale.plan.operator_times import Spent

_FLOAT = 4
# A step of the host's own: the votes, the loss read back, the schedule.
HOST_SECONDS = 2e-3
# PCIe 4 with 16 lanes, of which an offloaded optimizer's gradients go to the host and weights back.
HOST_LINK = 25e9
# Bytes a second at which a CPU updates an offloaded optimizer: one socket's memory, about.
HOST_BYTES_PER_SECOND = 60e9


def update_time(
    engine: EngineConfig, *, trained: int, tensors: int, accumulation: int, machine: Machine
) -> Spent:
    """Of a rank, which updates its share at ZeRO 1 to 3 and everything at 0."""
    device = machine.device
    rate = device.memory_bytes_per_second * MEMORY_SHARE
    own = trained if engine.zero_stage == 0 else trained / machine.ranks
    kept = own if engine.zero_stage >= 2 else trained  # gradients, of which each adds up its own
    states = len(engine.optimizer.element_states(engine.optimizer.kind))
    masters = 0 if engine.precision == "fp32" else 2 * _FLOAT  # read, and written in 16 bit
    # Weight and gradient read, weight written, and every state read and written, in fp32.
    of_element = _FLOAT * (3 + 2 * states) + masters + (2 * _FLOAT if engine.has_average else 0)
    update = own * of_element / rate
    if engine.offload_optimizer:
        update = own * (2 * _FLOAT / HOST_LINK + of_element / HOST_BYTES_PER_SECOND)
    norm = own * _FLOAT * 2 / rate
    itemsize = _FLOAT if engine.precision == "fp32" else 2
    summed = accumulation * kept * (itemsize + 2 * _FLOAT) / rate
    launches = HOST_SECONDS + tensors * accumulation * device.launch_seconds
    return Spent(memory=update + norm + summed + HOST_SECONDS, launches=launches)
