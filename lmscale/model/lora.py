"""Adapters of low rank beside a model's matrices (LoRA: Hu et al. 2021, arXiv 2106.09685).

Where ``model.lora`` has a rank, ``build_model`` puts an ``Adapted`` in the place of every chosen
``Linear``: W x becomes (W + scale · B A) x. A matrix and its bias keep their names, so that weights
of a model without adapters fit; of what is stored as one, each part has an A and a B of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmscale.config.lora import LoraConfig, choose_matrices
from lmscale.model.initialize import Declared, Linear

A = "lora_a"  # the rows of A of all parts, [parts · rank, inputs]
B = "lora_b_"  # with a part's number: its B, [outputs, rank]


class Adapted(Linear):
    """A linear map and what is trained beside it. Its own parameters are those of ``base``.

    A begins with U(-1 / √inputs, 1 / √inputs), as PEFT has it, and B with 0, so that the model
    begins as it is without adapters. muP scales the learning rate of A, whose inputs grow with the
    width, as that of the matrix, and B's not.
    """

    def __init__(self, base: Linear, lora: LoraConfig) -> None:
        nn.Module.__init__(self)  # not Linear's, which would take memory for a second matrix
        self.in_features, self.out_features = base.in_features, base.out_features
        self.std, self.parts, self.lr_ratio = base.std, base.parts, base.lr_ratio
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.scale, self.dropout = lora.rank, lora.scale, nn.Dropout(lora.dropout)
        rows = len(self.parts) * self.rank
        self.lora_a = nn.Parameter(torch.empty(rows, self.in_features))
        for number, outputs in enumerate(self.parts):
            self.register_parameter(f"{B}{number}", nn.Parameter(torch.empty(outputs, self.rank)))

    def forward(self, input: Tensor) -> Tensor:
        low = F.linear(self.dropout(input), self.lora_a)
        changes = [
            F.linear(part, getattr(self, f"{B}{number}"))
            for number, part in enumerate(low.split(self.rank, dim=-1))
        ]
        change = changes[0] if len(changes) == 1 else torch.cat(changes, dim=-1)
        return super().forward(input) + self.scale * change

    def declare(self) -> Mapping[str, Declared]:
        first = Declared(
            kind="linear",
            bound=1 / math.sqrt(self.in_features),
            parts=(self.rank,) * len(self.parts),
            lr_ratio=self.lr_ratio,
        )
        others = {f"{B}{number}": Declared(kind="linear") for number in range(len(self.parts))}
        return {**super().declare(), A: first, **others}


def add_adapters(model: nn.Module, lora: LoraConfig, begins_anew: Callable[[str], bool]) -> None:
    """Put an ``Adapted`` in the place of every ``Linear`` that ``lora.targets`` names, by default
    of all but those of layers that begin anew. Raises ``ConfigError`` with every problem.
    """
    matrices = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear) and not begins_anew(f"{name}.weight")
    }
    chosen = choose_matrices(matrices, lora)
    for name in matrices:
        if name in chosen:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, Adapted(matrices[name], lora))


def is_adapter(name: str) -> bool:
    """Whether a parameter is an A or a B."""
    own = name.rpartition(".")[2]
    return own == A or (own.startswith(B) and own.removeprefix(B).isdigit())


def is_same_adapter(one: LoraConfig, other: LoraConfig) -> bool:
    """Whether what was trained as one can go on as the other: all but the dropout is the same."""
    (own, another) = ((each.rank, each.scale, {*each.targets}) for each in (one, other))
    return own == another


def merge_adapter(weight: Tensor, a: Tensor, b_of_parts: Sequence[Tensor], scale: float) -> Tensor:
    """W + scale · B A, a new fp32 tensor [outputs, inputs], of an A of all parts and their Bs."""
    merged = weight.to(torch.float32, copy=True)
    rank = len(a) // len(b_of_parts)
    rows = merged.split([len(b) for b in b_of_parts])
    for part, a_part, b in zip(rows, a.float().split(rank), b_of_parts, strict=True):
        part.addmm_(b.float(), a_part, alpha=scale)
    return merged


def read_adapter(
    read: Callable[[str], Tensor], names: Collection[str], matrix: str
) -> tuple[Tensor, list[Tensor]] | None:
    """A of all parts and the B of each, as ``read``, of ``matrix``, a name that ends in ``weight``;
    None where it has no adapter. ``names``: all that ``read`` knows.
    """
    module, _, own = matrix.rpartition(".")
    if own != "weight" or f"{module}.{A}" not in names:
        return None
    b_of_parts = []
    while (name := f"{module}.{B}{len(b_of_parts)}") in names:
        b_of_parts.append(read(name))
    return read(f"{module}.{A}"), b_of_parts


def merging(
    read: Callable[[str], Tensor], names: Collection[str], lora: LoraConfig
) -> Callable[[str], Tensor]:
    """``read`` of the model without adapters that computes the same: a matrix that had one comes
    merged, in fp32, everything else as ``read`` has it. One matrix is in memory at a time.

    ``names``: all that ``read`` knows, adapters included, of a model of ``lora``.
    """

    def read_merged(name: str) -> Tensor:
        weight, adapter = read(name), read_adapter(read, names, name)
        return weight if adapter is None else merge_adapter(weight, *adapter, lora.scale)

    return read_merged


def fixed_parameters(names: Collection[str], begins_anew: Callable[[str], bool]) -> set[str]:
    """The parameters that stay as they begin beside adapters; none where there are no adapters."""
    if not any(map(is_adapter, names)):
        return set()
    return {name for name in names if not is_adapter(name) and not begins_anew(name)}
