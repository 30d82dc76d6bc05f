"""The parameters of a model, as torch would list them: names, shapes, kinds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from lmscale.config.lora import LoraConfig, choose_matrices

ParameterKind = Literal["linear", "head", "embedding", "norm", "bias"]
"""``linear``: a matrix, or several in one, that Muon may orthogonalise. ``head``: decayed as
``linear``, but left to AdamW, since its rows are tokens.
"""


class ParameterShape(NamedTuple):
    """One parameter of a model, before adapters are added or anything is frozen."""

    name: str
    shape: tuple[int, ...]
    kind: ParameterKind
    parts: tuple[int, ...] = ()
    """Rows of each of the matrices that are stored as one; empty: it is one."""
    lr_ratio: float = 1.0
    """Of the configured learning rate, as muP has it: parameters of another one are updated, and so
    lie in memory, in a group of their own.
    """
    is_adapter: bool = False
    adaptable: bool = False
    """Whether adapters may stand beside it: a matrix made of lmscale's Linear."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def linear_shapes(
    name: str,
    inputs: int,
    outputs: int | tuple[int, ...],
    *,
    bias: bool = False,
    lr_ratio: float = 1.0,
) -> Iterator[ParameterShape]:
    """Those of lmscale's ``Linear``."""
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    rows = sum(parts)
    yield ParameterShape(
        f"{name}.weight", (rows, inputs), "linear", parts, lr_ratio, adaptable=True
    )
    if bias:
        yield ParameterShape(f"{name}.bias", (rows,), "bias", parts)


def norm_shapes(
    name: str, width: int, kind: str, *, bias: bool = False
) -> Iterator[ParameterShape]:
    """``kind``: rmsnorm, which has no bias, or layernorm."""
    yield ParameterShape(f"{name}.weight", (width,), "norm")
    if bias and kind == "layernorm":
        yield ParameterShape(f"{name}.bias", (width,), "bias")


def embedding_shape(name: str, rows: int, width: int) -> ParameterShape:
    return ParameterShape(f"{name}.weight", (rows, width), "embedding")


def feed_forward_shapes(
    name: str, width: int, inner: int, *, is_gated: bool, bias: bool, lr_ratio: float = 1.0
) -> Iterator[ParameterShape]:
    """Those of ``model/feed_forward.py``."""
    first, outputs = ("gate_up", (inner, inner)) if is_gated else ("up", inner)
    yield from linear_shapes(f"{name}.{first}", width, outputs, bias=bias, lr_ratio=lr_ratio)
    yield from linear_shapes(f"{name}.down", inner, width, bias=bias, lr_ratio=lr_ratio)


def with_adapters(
    shapes: Sequence[ParameterShape], lora: LoraConfig, begins_anew: Callable[[str], bool]
) -> Iterator[ParameterShape]:
    """The same with A and B behind each matrix that ``lora`` chooses, and its bias. Raises
    ``ConfigError`` for targets that name no matrix.
    """
    matrices = {
        shape.name.removesuffix(".weight"): shape
        for shape in shapes
        if shape.adaptable and not begins_anew(shape.name)
    }
    chosen = choose_matrices([*matrices], lora)
    for index, shape in enumerate(shapes):
        yield shape
        module = shape.name.rpartition(".")[0]
        follows = shapes[index + 1].name if index + 1 < len(shapes) else ""
        if module in chosen and follows != f"{module}.bias":
            yield from _adapter_shapes(module, matrices[module], lora.rank)


def _adapter_shapes(module: str, matrix: ParameterShape, rank: int) -> Iterator[ParameterShape]:
    count, (_, inputs) = len(matrix.parts), matrix.shape
    yield ParameterShape(
        f"{module}.lora_a",
        (count * rank, inputs),
        "linear",
        (rank,) * count,
        matrix.lr_ratio,
        is_adapter=True,
    )
    for number, outputs in enumerate(matrix.parts):
        name = f"{module}.lora_b_{number}"
        yield ParameterShape(name, (outputs, rank), "linear", is_adapter=True)


def count_parameters(shapes: Iterable[ParameterShape]) -> int:
    return sum(shape.elements for shape in shapes)
