"""What every module declares of its own parameters, and the initial values that follow from it.

A module says by ``declare()`` of each of its parameters which kind it is and how it begins; no name
and no class is compared anywhere. Every value is a function of (seed, parameter's name, shape) and
its declaration alone: not of the order of construction, the world size, the device or the dtype. So
a large model can be filled one parameter at a time, by any rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lmscale.config.model import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from lmscale.ranks.seeding import derive_seed

ParameterKind = Literal["linear", "head", "embedding", "norm", "bias"]
"""``linear``: a matrix, or several in one, that Muon may orthogonalise. ``head``: decayed as
``linear``, but left to AdamW, since its rows are tokens.
"""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """One parameter's kind, and its initial value: drawn from N(0, std²) or U(-bound, bound), or a
    constant.
    """

    kind: ParameterKind
    std: float | None = None
    bound: float | None = None  # without it, and without ``std``, every element is ``constant``
    constant: float = 0.0
    parts: tuple[int, ...] = ()
    """Rows of each of the matrices, or elements of each of the biases, that are stored as one, in
    their order; empty: it is one.
    """
    lr_ratio: float = 1.0
    """Of the configured learning rate. weight_decay is divided by it, so that what decays in a step
    stays the same, but for ``adam``, whose decay goes through the gradient.
    """


@runtime_checkable
class Declares(Protocol):
    """A module that declares parameters: its own, or (``child.weight``) those of a child."""

    def declare(self) -> Mapping[str, Declared]: ...


def declared_parameters(model: nn.Module) -> dict[str, Declared]:
    """The declaration of every parameter by its name in ``model``, which may be wrapped.

    A tied matrix is what its first module declares: of embedding and head an embedding.
    """
    declared = _declarations(model)
    return {name: declared[name] for name, _ in model.named_parameters()}


def undeclared_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that no module declares."""
    declared = _declarations(model)
    return [name for name, _ in model.named_parameters() if name not in declared]


def _declarations(model: nn.Module) -> dict[str, Declared]:
    declared: dict[str, Declared] = {}
    for module_name, module in model.named_modules():
        if isinstance(module, Declares):
            prefix = f"{module_name}." if module_name else ""
            declared |= {f"{prefix}{name}": what for name, what in module.declare().items()}
    return declared


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are part of the ``state_dict``, by their names there, each once."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if id(buffer) in seen or name in module._non_persistent_buffers_set:
                continue
            seen.add(id(buffer))
            yield f"{module_name}.{name}" if module_name else name, buffer


def parameter_kinds(model: nn.Module) -> dict[str, ParameterKind]:
    """The kind of every parameter by its name in ``model``, which may be wrapped."""
    return {name: declared.kind for name, declared in declared_parameters(model).items()}


def initial_value(name: str, shape: Sequence[int], declared: Declared, seed: int) -> Tensor:
    """The fp32 initial value, on the CPU, of the parameter ``name`` of a bare model."""
    generator = torch.Generator("cpu").manual_seed(derive_seed(seed, "initial value", name))
    if declared.std is not None:
        value = torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
        return value.mul_(declared.std)
    if declared.bound is not None:
        value = torch.rand(*shape, generator=generator, dtype=torch.float32, device="cpu")
        return value.mul_(2 * declared.bound).sub_(declared.bound)
    return torch.full(tuple(shape), declared.constant, dtype=torch.float32, device="cpu")


# torch's modules, declaring how they begin. Matrices are not given torch's own initial values,
# which take a minute for 7 billion parameters on a CPU. Norms read bf16 and fp16, compute in fp32
# and round once at the end (tested): no fp32 copy of the activations is kept for the backward pass.


class Linear(nn.Linear):
    """A linear map whose matrix begins with ``std``, and whose bias, if it has one, begins at 0.

    Several maps of the same inputs are one product where ``outputs`` names the width of each.
    """

    def __init__(
        self, inputs: int, outputs: int | tuple[int, ...], *, bias: bool, std: float
    ) -> None:
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        super().__init__(inputs, sum(parts), bias=bias)
        self.std, self.parts, self.lr_ratio = std, parts, 1.0

    def reset_parameters(self) -> None:
        """Leave the memory as it was allocated."""

    def declare(self) -> Mapping[str, Declared]:
        weight = Declared(kind="linear", std=self.std, parts=self.parts, lr_ratio=self.lr_ratio)
        return {"weight": weight, "bias": Declared(kind="bias", parts=self.parts)}


class Embedding(nn.Embedding):
    """A table of vectors that begin with ``std``."""

    weight: nn.Parameter

    def __init__(self, rows: int, width: int, *, std: float) -> None:
        super().__init__(rows, width)
        self.std = std

    def reset_parameters(self) -> None:
        """Leave the memory as it was allocated."""

    def declare(self) -> Mapping[str, Declared]:
        return {"weight": Declared(kind="embedding", std=self.std)}


class RMSNorm(nn.RMSNorm):
    """x / rms(x) · weight over the last dimension (Zhang and Sennrich 2019)."""

    def declare(self) -> Mapping[str, Declared]:
        return {"weight": Declared(kind="norm", constant=1.0)}


class LayerNorm(nn.LayerNorm):
    """(x - mean) / std · weight (+ bias) over the last dimension."""

    def declare(self) -> Mapping[str, Declared]:
        return {"weight": Declared(kind="norm", constant=1.0), "bias": Declared(kind="bias")}


def build_norm(config: DecoderConfig | EncoderConfig | EncoderDecoderConfig) -> nn.Module:
    """The norm of the residual stream."""
    if config.norm == "layernorm":
        return LayerNorm(config.width, config.norm_eps, bias=config.bias)
    return RMSNorm(config.width, config.norm_eps)
