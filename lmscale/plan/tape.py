"""A pass through a model, written down instead of computed: which operators, of what sizes, and
which memory autograd keeps for the backward pass.

The counterpart of tracing torch, without torch: what a family's file writes here is what its module
does there, operator by operator, and ``tests/plan`` holds one against the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

FLOAT = 4  # bytes

Kind = Literal["product", "attention", "pointwise", "lookup", "scan", "loss", "view"]
"""``product`` is bound by FLOPs or memory by its shape, ``attention`` is a fused kernel or its
parts, ``scan`` runs step after step, ``view`` moves nothing in the forward pass; all others are
bound by memory.
"""


@dataclass(frozen=True, kw_only=True)
class Array:
    """A tensor of a pass, or a view of one."""

    shape: tuple[int, ...]
    itemsize: int  # bytes of an element
    memory: int  # which memory it lies in: views share one
    number: int  # whose gradient its own is: a reshaped tensor has the same
    needs_gradient: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Of its elements; the memory it lies in may be larger."""
        return self.elements * self.itemsize

    @property
    def rows(self) -> int:
        """Of its last dimension."""
        return math.prod(self.shape[:-1])


@dataclass(frozen=True, kw_only=True)
class Record:
    """One operator of a pass."""

    name: str
    kind: Kind
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    saved: tuple[int, ...] = ()
    """Memories that autograd keeps until the operator's backward pass is done; weights not."""
    flops: float = 0.0
    backward_flops: float = 0.0
    product: tuple[int, int, int] = (0, 0, 0)
    """m, n, k: [m, k] times [k, n]. Of attention: queries, keys, and the width of a head."""
    weight_bytes: int = 0
    trained_bytes: int = 0
    """Of its weight's gradient, in the weight's dtype."""
    extra_bytes: int = 0
    """Moved in the forward pass besides inputs, outputs and weight."""
    backward_extra_bytes: int = 0
    scratch_bytes: int = 0
    """Memory that exists while the operator runs."""
    backward_scratch_bytes: int = 0
    launches: int = 1
    backward_launches: int = 1
    passes_gradient: bool = False
    """Its inputs' gradients are its output's, without memory of their own."""
    region: int | None = None
    """The recomputed block that it is of."""

    @property
    def moved_bytes(self) -> int:
        """Read and written, forward."""
        if self.kind == "view":
            return 0
        if self.kind == "lookup":  # of a table no more than what is looked up
            return 2 * sum(a.nbytes for a in self.outputs) + self.extra_bytes
        arrays = (*self.inputs, *self.outputs)
        return sum(a.nbytes for a in arrays) + self.weight_bytes + self.extra_bytes

    @property
    def backward_moved_bytes(self) -> int:
        """Outputs' gradients and what was kept are read, inputs' gradients written."""
        if not self.has_backward:
            return 0
        passed = 0 if self.passes_gradient else sum(a.nbytes for a in self.gradients)
        read = sum(a.nbytes for a in self.outputs) if passed or self.trained_bytes else 0
        kept = {a.memory: a.nbytes for a in (*self.inputs, *self.outputs)}
        kept_bytes = sum(kept.get(memory, 0) for memory in self.saved)
        weights = (self.weight_bytes if passed else 0) + self.trained_bytes
        return passed + read + kept_bytes + weights + self.backward_extra_bytes

    @property
    def gradients(self) -> tuple[Array, ...]:
        """The inputs that get one."""
        return tuple(array for array in self.inputs if array.needs_gradient)

    @property
    def has_backward(self) -> bool:
        return any(array.needs_gradient for array in self.outputs)


@dataclass(kw_only=True, eq=False)
class Tape:
    """The operators of one pass, in their order. Equal to itself alone, as caches take it."""

    itemsize: int  # of weights and activations
    on_gpu: bool
    dropout: float = 0.0
    frozen: frozenset[str] = frozenset()
    """Parameters that stay as they begin."""
    adapters: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """Matrix, by its module's name → rank and dropout of what is trained beside it."""
    memories: list[int] = field(default_factory=list)
    """Bytes of every memory, by its number."""
    records: list[Record] = field(default_factory=list)
    regions: list[tuple[int, ...]] = field(default_factory=list)
    """Of every recomputed block the memories that are kept instead of its inside: its inputs."""
    _region: int | None = None
    _arrays: int = 0

    def new(
        self, shape: Sequence[int], *, itemsize: int = 0, needs_gradient: bool = False
    ) -> Array:
        """A tensor of memory of its own; by default of the pass's dtype."""
        itemsize = itemsize or self.itemsize
        self._arrays += 1
        return Array(
            shape=tuple(shape),
            itemsize=itemsize,
            memory=self.reserve(math.prod(shape) * itemsize),
            number=self._arrays,
            needs_gradient=needs_gradient,
        )

    def reserve(self, nbytes: int) -> int:
        """A memory of so many bytes."""
        self.memories.append(nbytes)
        return len(self.memories) - 1

    def is_trained(self, parameter: str) -> bool:
        return parameter not in self.frozen

    @contextmanager
    def recomputing(self, number: int, every: int, *kept: Array | None) -> Iterator[None]:
        """A block, by its number in its stack: where it is an ``every``-th one, its operators are
        computed again in the backward pass, from ``kept``.
        """
        if not every or number % every != every - 1:
            yield
            return
        self._region = len(self.regions)
        self.regions.append(tuple(array.memory for array in kept if array is not None))
        yield
        self._region = None

    def add(self, record: Record) -> None:
        """Write an operator down."""
        if self._region is not None:
            record = replace(record, region=self._region)
        self.records.append(record)

    def split(self, name: str, array: Array, shapes: Sequence[Sequence[int]]) -> list[Array]:
        """Views of parts of a tensor, whose gradients are put together in the backward pass."""
        views = []
        for shape in shapes:
            self._arrays += 1
            views.append(replace(array, shape=tuple(shape), number=self._arrays))
        self.add(
            Record(
                name=f"{name}.split",
                kind="view",
                inputs=(array,),
                outputs=tuple(views),
                launches=0,
            )
        )
        return views


def reshape(array: Array, *shape: int) -> Array:
    """The same tensor in another shape."""
    return replace(array, shape=shape)


def without_gradient(array: Array) -> Array:
    """The tensor as a constant."""
    return replace(array, needs_gradient=False)
