"""One parameter of ours ↔ the tensors of theirs that it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmscale.config.hf.architecture import Architecture, Form, Head
from lmscale.model.initialize import Declared, declared_parameters

_BLOCK = re.compile(r"\bblocks\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one parameter is stored there."""

    name: str
    shape: tuple[int, ...]
    theirs: tuple[str, ...]
    """Their names; of several, ours has the rows one after the other."""
    rows: tuple[int, ...]
    """Of ours, that each of them has."""
    form: Form = "same"
    padding_rows: int = 0
    """In front of a ``padded`` one of theirs."""

    @property
    def their_shapes(self) -> dict[str, tuple[int, ...]]:
        """[rows, …] as they store them."""
        shapes = {
            name: (r, *self.shape[1:]) for name, r in zip(self.theirs, self.rows, strict=True)
        }
        if self.form == "transposed":
            return {name: shape[::-1] for name, shape in shapes.items()}
        if self.form == "padded":
            return {name: (s[0] + self.padding_rows, *s[1:]) for name, s in shapes.items()}
        return shapes

    def to_theirs(self, value: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Their tensors, contiguous and in the dtype of ``value``, of ours, ``shape``."""
        for name, part in zip(self.theirs, value.split(self.rows), strict=True):
            yield name, _store(part, self.form, self.padding_rows).contiguous()

    def to_ours(self, read: Callable[[str], Tensor]) -> Tensor:
        """Ours, fp32, of theirs, which ``read`` gives in any dtype and in ``their_shapes``."""
        parts = [_take(read(name).float(), self.form, self.padding_rows) for name in self.theirs]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def _store(value: Tensor, form: Form, padding_rows: int) -> Tensor:
    if form == "transposed":
        return value.T
    if form == "padded":
        return torch.cat([value.new_zeros(padding_rows, *value.shape[1:]), value])
    return value - 1 if form == "less_one" else value


def _take(value: Tensor, form: Form, padding_rows: int) -> Tensor:
    if form == "transposed":
        return value.T
    if form == "padded":
        return value[padding_rows:]
    return value + 1 if form == "less_one" else value


def plan_rules(
    architecture: Architecture, model: nn.Module, head: Head | None = None
) -> tuple[Rule, ...]:
    """How the model's parameters are stored there; it may lie on the device ``meta``. ``head``:
    what their class ends in; None: the usual one.

    A tied head is left out, as it is in their files, and so are modules of ours that the
    architecture has no name for: ``find_left_out`` names them.
    """
    declared, names = declared_parameters(model), architecture.names_of(head)
    rules = []
    for name, parameter in model.named_parameters():
        module, theirs = _look_up(names, name)
        if not theirs:
            continue
        form = architecture.forms(module, parameter.ndim)
        rules.append(
            Rule(
                name=name,
                shape=tuple(parameter.shape),
                theirs=theirs,
                rows=_rows(declared[name], tuple(parameter.shape), len(theirs)),
                form=form,
                padding_rows=architecture.padding_rows if form == "padded" else 0,
            )
        )
    return tuple(rules)


def find_left_out(
    architecture: Architecture, model: nn.Module, head: Head | None = None
) -> list[str]:
    """The parameters that a class that ends so has no place for."""
    names = architecture.names_of(head)
    return [name for name, _ in model.named_parameters() if not _look_up(names, name)[1]]


def _look_up(names: Mapping[str, str], name: str) -> tuple[str, tuple[str, ...]]:
    """Our module, with the block's own number, and their tensors; none where they have none."""
    module, _, leaf = name.rpartition(".")
    number = _BLOCK.search(name)
    pattern = _BLOCK.sub("blocks.{n}.", f"{module}.")[:-1]
    n = number[1] if number else ""
    theirs = names.get(pattern, "").replace("{n}", n).split()
    return module, tuple(f"{each}.{leaf}" for each in theirs)


def _rows(declared: Declared, shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    if count == 1:
        return shape[:1]
    return declared.parts if len(declared.parts) == count else (shape[0] // count,) * count
