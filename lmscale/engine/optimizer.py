"""The optimizer of each parameter, and the states it keeps for every element.

================= ==================================== =======================
kind              the matrices of the blocks           everything else
================= ==================================== =======================
``adamw``         AdamW                                AdamW
``adafactor``     Adafactor (engine/adafactor.py)      the same
``adam``          Adam, its decay in the gradient      the same
``lion``          Lion (engine/lion.py)                Lion
``muon``          Muon (engine/muon.py)                AdamW
``schedule_free`` AdamW of engine/schedule_free.py     the same
``sgd``           SGD with momentum                    SGD with momentum
================= ==================================== =======================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lmscale.config.training import OptimizerConfig
from lmscale.engine.adafactor import Adafactor
from lmscale.engine.lion import Lion
from lmscale.engine.muon import Muon
from lmscale.engine.schedule_free import ScheduleFreeAdamW, first_states
from lmscale.model.initialize import Declared

Method = Literal["adamw", "adafactor", "adam", "lion", "muon", "schedule_free", "sgd"]
_ADAMS = ("adamw", "adam")
STEP = "step"


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that are updated alike."""

    method: Method
    weight_decay: float
    lr_ratio: float  # of the configured learning rate
    names: tuple[str, ...]


def plan_parameter_groups(
    declared: Mapping[str, Declared], config: OptimizerConfig
) -> tuple[ParameterGroup, ...]:
    """Groups that are not empty: of each method the decayed kinds first, then the others.

    ``declared``: what the model says of every trained parameter. A head is decayed as other linear
    maps are; Muon leaves it, whose rows are tokens, to AdamW.
    """
    rest: Method = "adamw" if config.kind == "muon" else config.kind
    # By: left to the rest? not decayed? declared ratio
    members: dict[tuple[bool, bool, float], list[str]] = {}
    for name, what in declared.items():
        is_muon = config.method_of(what.kind) == "muon"
        is_decayed = ("linear" if what.kind == "head" else what.kind) in config.decay
        members.setdefault((not is_muon, not is_decayed, what.lr_ratio), []).append(name)
    return tuple(
        ParameterGroup(
            method=rest if is_rest else "muon",
            weight_decay=0.0 if is_plain else config.weight_decay / ratio,
            lr_ratio=ratio if is_rest else ratio * config.muon_lr_ratio,
            names=tuple(names),
        )
        for (is_rest, is_plain, ratio), names in sorted(members.items())
    )


def build_optimizer(
    parameters: Mapping[str, torch.nn.Parameter],
    declared: Mapping[str, Declared],
    config: OptimizerConfig,
) -> torch.optim.Optimizer:
    """The optimizer of the trained ones among ``parameters``; torch's are fused, on the CPU too.

    It is built with lr 0 and every step sets its own: DeepSpeed takes a step of its own while it
    builds stage 0 in low precision (fp16/unfused_optimizer.py, 0.19.8), which would decay the
    initial weights.
    """
    trained = {name: what for name, what in declared.items() if parameters[name].requires_grad}
    groups: list[dict[str, Any]] = [
        {
            "params": [parameters[name] for name in group.names],
            "weight_decay": group.weight_decay,
            "lr_ratio": group.lr_ratio,
            "method": group.method,
        }
        for group in plan_parameter_groups(trained, config)
    ]
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, fused=True)
    if config.kind == "muon":
        return Muon(groups, momentum=config.momentum, betas=config.betas, eps=config.eps)
    if config.kind == "lion":
        return Lion(groups, betas=config.betas)
    if config.kind == "adafactor":
        return Adafactor(groups)
    if config.kind == "schedule_free":
        return ScheduleFreeAdamW(groups, betas=config.betas, eps=config.eps)
    build = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
    return build(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def reset_states(
    optimizer: torch.optim.Optimizer,
    masters: Iterable[tuple[torch.Tensor, Mapping[str, Any]]],
    config: OptimizerConfig,
) -> None:
    """Give every master tensor its first states, so that they exist before the first step."""
    for master, group in masters:
        if group["method"] == "schedule_free":
            optimizer.state[master] = first_states(master)
            continue
        states = config.element_states(group["method"])
        optimizer.state[master] = {key: torch.zeros_like(master) for key in states}
        if group["method"] in (*_ADAMS, "adafactor"):  # which count their updates
            device = master.device if group["method"] in _ADAMS else torch.device("cpu")
            optimizer.state[master][STEP] = torch.zeros((), dtype=torch.float32, device=device)
