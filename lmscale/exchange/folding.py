"""Weights of a run → those of the section that it is exported as (``config/hf/folding.py``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from lmscale.config.hf.folding import Folding

Read = Callable[[str], Tensor]
"""A parameter's name → all of it, fp32, on the CPU, with the rows that are exported."""


def read_folded(
    read: Read, folding: Folding, *, held: Mapping[str, object], shapes: Mapping[str, tuple]
) -> Read:
    """``read``, fp32, of the folded section's parameters. ``held``: by the names that ``read``
    knows; ``shapes``: of the folded section's, by their names.
    """

    def read_one(name: str) -> Tensor:
        value = read(name) if name in held else torch.zeros(shapes[name])
        return fold(name, value, folding)

    return read_one


def fold(name: str, value: Tensor, folding: Folding) -> Tensor:
    """A parameter of the run, fp32, as that of the folded section."""
    for scale in folding.scales:
        if fnmatchcase(name, scale.pattern):
            value = value.clone()
            value[: scale.rows] *= scale.by
    return value


def unfold(name: str, value: Tensor, folding: Folding) -> Tensor:
    """A parameter of the folded section, fp32, as that of the run."""
    for scale in folding.scales:
        if fnmatchcase(name, scale.pattern):
            value = value.clone()
            value[: scale.rows] /= scale.by
    return value
