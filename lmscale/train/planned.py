"""What was planned of a run, beside what it measures: figures for TensorBoard alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmscale.config import RunConfig
from lmscale.errors import LmscaleError
from lmscale.plan.devices import CPU, find_device, plan_machine
from lmscale.plan.losses import BESIROGLU
from lmscale.plan.memory import plan_memory
from lmscale.plan.operations import list_parameters
from lmscale.plan.parameters import count_parameters
from lmscale.plan.run import has_law
from lmscale.plan.speed import plan_step
from lmscale.ranks.device import device_name
from lmscale.ranks.ranks import Ranks

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
SPEED, LOSS, MEMORY = "plan/positions_per_second", "plan/loss", "plan/memory_bytes"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a plan says of a run on its own machine."""

    positions_per_second: float
    memory_bytes: int
    parameters: int | None
    """None where no law is of such a run."""

    def figures(self, tokens: int) -> Mapping[str, float]:
        """Those to be drawn once so many tokens were trained on; a loss where a law was measured
        at so many.
        """
        figures = {SPEED: self.positions_per_second, MEMORY: float(self.memory_bytes)}
        size = self.parameters
        if size is not None and not [*BESIROGLU.measured.describe_doubts(size, tokens)]:
            figures[LOSS] = BESIROGLU.loss(size, tokens)
        return figures


def plan_figures(config: RunConfig, ranks: Ranks, device: torch.device) -> Planned | None:
    """None where nothing can be planned: of a family or a device that no plan knows."""
    try:
        found = find_device(CPU if device.type == "cpu" else device_name(device))
        per_node = ranks.local_world_size
        nodes = max(1, ranks.world_size // per_node)
        machine = plan_machine(found, nodes=nodes, devices_per_node=per_node)
        step, memory = plan_step(config, machine), plan_memory(config, machine)
        parameters = count_parameters(list_parameters(config.model, config.sizes))
    except LmscaleError as error:
        logger.debug("no plan beside the figures: %s", error)
        return None
    except Exception as error:  # a mistake of the planner's own must not stop a training
        logger.warning("no plan beside the figures, by a mistake of the planner: %r", error)
        return None
    return Planned(
        positions_per_second=step.tokens_per_second,
        memory_bytes=memory.allocated_bytes,
        parameters=parameters if has_law(config) else None,
    )
