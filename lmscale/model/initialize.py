"""Initial values and the kinds of parameters.

Every value is a function of (seed, parameter's name, shape) alone: not of the order of
construction, the world size, the device or the dtype. So a large model can be filled one parameter
at a time, by any rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmscale.config.model import ModelConfig
from lmscale.model.norm import LayerNorm, RMSNorm
from lmscale.model.transformer import Head
from lmscale.ranks.seeding import derive_seed

ParameterKind = Literal["linear", "head", "embedding", "norm", "bias"]
_RESIDUAL_WRITERS = ("attention.out.weight", "feed_forward.down.weight")


def parameter_kinds(model: nn.Module) -> dict[str, ParameterKind]:
    """The kind of every parameter by its name in ``model``, which may be wrapped.

    A norm's bias is a ``bias``. A tied ``head`` is the ``embedding``.
    """
    kinds: dict[str, ParameterKind] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                kinds[f"{module_name}.{name}" if module_name else name] = _kind(module, name)
    return kinds


def _kind(module: nn.Module, name: str) -> ParameterKind:
    if name == "bias":
        return "bias"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, (RMSNorm, LayerNorm)):
        return "norm"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, Head):
        return "head"
    raise AssertionError(f"{type(module).__name__}.{name} has no kind: add the module here")


def parameter_std(name: str, kind: ParameterKind, config: ModelConfig) -> float:
    """The standard deviation a matrix is drawn with; 0 for norms and biases, which are constant.

    Each of the 2·layers matrices that write to the residual stream adds its variance to it, so
    theirs is divided by 2·layers (GPT-2, section 2.3).
    """
    if kind in ("norm", "bias"):
        return 0.0
    if name.endswith(_RESIDUAL_WRITERS):
        return config.init_std / math.sqrt(2 * config.layers)
    return config.init_std


def initial_value(
    name: str, shape: Sequence[int], kind: ParameterKind, config: ModelConfig, seed: int
) -> Tensor:
    """The fp32 initial value, on the CPU, of the parameter ``name`` of a bare ``Transformer``."""
    if kind == "norm":
        return torch.ones(*shape, dtype=torch.float32)
    if kind == "bias":
        return torch.zeros(*shape, dtype=torch.float32)
    generator = torch.Generator("cpu").manual_seed(derive_seed(seed, "initial value", name))
    value = torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
    return value.mul_(parameter_std(name, kind, config))


@torch.no_grad()
def init_weights(
    model: nn.Module,
    config: ModelConfig,
    seed: int,
    *,
    gathered: Callable[[nn.Parameter], AbstractContextManager[Any]] = nullcontext,
    draws: bool = True,
) -> None:
    """Fill a bare ``Transformer`` in place, whatever its device and dtype, one parameter at a time.

    ``gathered(parameter)`` makes a partitioned parameter whole while it is written. ``draws`` False
    only takes part in the gathering, where another rank's values are dealt out.
    """
    kinds = parameter_kinds(model)
    for name, parameter in model.named_parameters():
        with gathered(parameter):
            if not draws:
                continue
            parameter.copy_(initial_value(name, parameter.shape, kinds[name], config, seed))
