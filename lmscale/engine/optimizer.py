"""AdamW with parameter groups by module kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lmscale.config.training import OptimizerConfig

# The states that belong to every element of a parameter, in torch's names.
ELEMENT_STATES = ("exp_avg", "exp_avg_sq")


def plan_parameter_groups(
    kinds: Mapping[str, str], config: OptimizerConfig
) -> tuple[tuple[float, tuple[str, ...]], ...]:
    """(weight decay, parameter names) per group: the decayed kinds first, then the others.

    ``kinds`` maps a parameter's name to linear, embedding, norm or bias.
    """
    decayed = tuple(name for name, kind in kinds.items() if kind in config.decay)
    others = tuple(name for name, kind in kinds.items() if kind not in config.decay)
    groups = ((config.weight_decay, decayed), (0.0, others))
    return tuple(group for group in groups if group[1])


def build_optimizer(
    parameters: Mapping[str, torch.nn.Parameter], kinds: Mapping[str, str], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """torch's AdamW; fused, on the CPU too.

    It is built with lr 0 and every step sets its own: DeepSpeed takes a step of its own while it
    builds stage 0 in low precision (fp16/unfused_optimizer.py, 0.19.8), which would decay the
    initial weights.
    """
    groups: list[dict[str, Any]] = [
        {"params": [parameters[name] for name in names], "weight_decay": decay}
        for decay, names in plan_parameter_groups(kinds, config)
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def reset_states(optimizer: torch.optim.Optimizer, masters: Iterable[torch.Tensor]) -> None:
    """Give every master tensor zeroed states, so that they exist before the first step."""
    for master in masters:
        optimizer.state[master] = {
            "step": torch.zeros((), dtype=torch.float32, device=master.device),
            **{key: torch.zeros_like(master) for key in ELEMENT_STATES},
        }
