"""What a checkpoint holds, in bytes: as checkpoint/fragments.py writes it, counted from shapes.

Of every trained parameter the fp32 master and the optimizer's states; Adafactor's two factors of a
matrix; the average and the zeros that a run may keep; frozen parameters in the precision of the
run. Every rank's file begins with the names of its pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lmscale.config import RunConfig
from lmscale.files.tensor_header import Entry, render_header
from lmscale.plan.operations import find_frozen_names, list_parameters
from lmscale.plan.parameters import ParameterShape

FLOAT = 4
_ENTRY = len(render_header([])) - 8


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint, by what is in it."""

    parts: Mapping[str, int]
    """weights, exp_avg, …, factors, average, zeros, frozen, headers → bytes."""
    kept: int
    """As many are there at once, at most: those that are kept, and the one that is written."""

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def storage_bytes(self) -> int:
        return self.bytes * self.kept


def plan_checkpoint(config: RunConfig, *, ranks: int) -> Checkpoint:
    """Raises ``ConfigError`` for a family that cannot be planned."""
    shapes = list_parameters(config.model, config.sizes)
    frozen_names = find_frozen_names(config, shapes)
    parts: dict[str, int] = {"weights": 0}
    tensors: list[tuple[str, int]] = []  # name with its kind, bytes
    for shape in shapes:
        if shape.name in frozen_names:
            itemsize = FLOAT if config.engine.precision == "fp32" else 2
            tensors.append((f"{shape.name}:frozen", shape.elements * itemsize))
            parts["frozen"] = parts.get("frozen", 0) + shape.elements * itemsize
            continue
        for kind, itemsize in _kinds_of(config, shape):
            size = shape.elements * itemsize
            parts[kind] = parts.get(kind, 0) + size
            tensors.append((f"{shape.name}:{kind}", size))
        if config.engine.optimizer.kind == "adafactor":
            for name, size in _factors_of(shape):
                parts["factors"] = parts.get("factors", 0) + size
                tensors.append((f"{name}:factor", size))
    parts["headers"] = _count_headers(config, tensors, ranks)
    return Checkpoint(parts=parts, kept=_count_kept(config))


def _kinds_of(config: RunConfig, shape: ParameterShape) -> Iterator[tuple[str, int]]:
    """What is stored of every element of a trained parameter: kind, bytes."""
    optimizer = config.engine.optimizer
    yield "weights", FLOAT
    for state in optimizer.element_states(optimizer.method_of(shape.kind)):
        yield state, FLOAT
    if config.engine.ema_decay:
        yield "average", FLOAT
    if config.engine.keep_zeros:
        yield "zeros", 1


def _factors_of(shape: ParameterShape) -> Iterator[tuple[str, int]]:
    """Of each matrix in a parameter one number a row and a column, as engine/adafactor.py has it: a
    vector is one row.
    """
    *rows, columns = shape.shape or (1,)
    for size in shape.parts or (math.prod(rows) if rows else columns,):
        height, width = (size, columns) if rows else (1, size)
        yield f"{shape.name}.0.row_squares", height * FLOAT
        yield f"{shape.name}.0.column_squares", width * FLOAT


def _count_headers(config: RunConfig, tensors: list[tuple[str, int]], ranks: int) -> int:
    """At ZeRO 1 and 2 the ranks' pieces of the whole cut few parameters; at 0 and 3 every rank has
    a piece of each.
    """
    entries = [
        Entry(name=f"{name}:0", dtype="F32", shape=[size // FLOAT], bytes=size)
        for name, size in tensors
    ]
    once = len(render_header(entries))
    if config.engine.zero_stage in (0, 3):
        return once * ranks
    states = len({name.rpartition(":")[2] for name, _ in tensors})
    cut = once // max(1, len(entries)) * states
    return once + (ranks - 1) * (_ENTRY + 8 + cut)


def _count_kept(config: RunConfig) -> int:
    saves = config.checkpoint
    steps = config.train.steps
    kept = saves.keep_last + 1
    if saves.keep_every_steps:
        kept += steps // math.lcm(saves.keep_every_steps, saves.every_steps)
    if saves.keep_best.metric:
        kept += saves.keep_best.count
    return min(kept, steps // saves.every_steps + 1)
