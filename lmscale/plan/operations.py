"""What a configuration's model is made of and does: its parameters, and the operators of a forward
and backward pass of one micro-batch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache

from lmscale.config import RunConfig
from lmscale.config.kinds import import_named
from lmscale.config.model import ModelConfig, Sizes
from lmscale.errors import ConfigError
from lmscale.plan.families.family import PlannedFamily
from lmscale.plan.objectives import read_objective, write_scoring
from lmscale.plan.parameters import ParameterShape, with_adapters
from lmscale.plan.tape import FLOAT, Kind, Record, Tape

_NUMBER = re.compile(r"\.\d+\.")
# What a pass does not depend on, and advice varies.
_BESIDE_PASSES = {"batch": True, "engine": {"zero_stage", "offload_optimizer"}}
MOST_PASSES = 64  # that are kept, as advice asks for the same ones over and over


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One kind of operator in a forward and backward pass of one micro-batch. Figures are of each
    of the ``times`` that it runs forward, without what is computed again.
    """

    name: str  # such as blocks.*.attention.qkv
    kind: Kind
    times: int
    recomputed: int
    """How many of the times run a second time in the backward pass."""
    m: int
    n: int
    k: int
    """Of a product [m, k] times [k, n], backward [m, n] times [n, k], and [n, m] times [m, k] where
    the weight is trained. Of attention queries, keys and the width of a head; else 0.
    """
    flops: float
    backward_flops: float
    moved_bytes: int
    """Read and written, were nothing in a cache."""
    backward_moved_bytes: int
    saved_bytes: int
    """Memory that is kept for the backward pass by all times together, and by no operator before;
    of a recomputed block its input, by its first operator.
    """
    weight_bytes: int
    launches: int
    """Kernels on a GPU, without compilation."""
    backward_launches: int

    @property
    def total_flops(self) -> float:
        """Of the whole pass, recomputation included."""
        return self.times * (self.flops + self.backward_flops) + self.recomputed * self.flops


def find_family(model: ModelConfig) -> PlannedFamily:
    """Raises ``ConfigError`` for a family of an installed package that tells nothing of it."""
    place = model.planning
    if not place:
        raise ConfigError(
            f"model.family = {model.family!r}: its package does not say which parameters and "
            "operators it has, so nothing can be planned. Its section may name them, planning = "
            "'module:NAME' of a PlannedFamily (docs/extending.md)."
        )
    where = f"The planning {place} of {type(model).__name__}"
    return import_named(place, PlannedFamily, where)


def list_parameters(model: ModelConfig, sizes: Sizes) -> tuple[ParameterShape, ...]:
    """Every parameter that ``build_model`` would give, in torch's order; tied ones once.

    Raises ``ConfigError`` for adapters of no matrix, or a family that cannot be planned.
    """
    family = find_family(model)
    shapes = tuple(family.list_parameters(model, sizes))
    if model.lora.rank:
        shapes = tuple(with_adapters(shapes, model.lora, family.begins_anew))
    return shapes


def find_frozen_names(config: RunConfig, shapes: Sequence[ParameterShape]) -> frozenset[str]:
    """The parameters that stay as they begin: by ``train.freeze``, beside adapters all but these
    and layers that begin anew, and a head that an objective has no use for.
    """
    patterns = config.train.freeze
    frozen = {s.name for s in shapes if any(fnmatchcase(s.name, each) for each in patterns)}
    if any(shape.is_adapter for shape in shapes):
        begins_anew = find_family(config.model).begins_anew
        frozen |= {s.name for s in shapes if not s.is_adapter and not begins_anew(s.name)}
    if not read_objective(config).trains_head:
        frozen |= {shape.name for shape in shapes if shape.name.startswith("head.")}
    return frozenset(frozen)


def write_pass(config: RunConfig, *, micro_windows: int, on_gpu: bool = True) -> Tape:
    """A forward pass of one micro-batch and its loss, in training, on a ``Tape``, which is not to
    be written to: whoever asks for an equal one gets the same.
    """
    key = config.model_dump_json(exclude=_BESIDE_PASSES)  # pyright: ignore[reportArgumentType]
    return _write_pass(_Asked(key, config), micro_windows, on_gpu)


@dataclass(frozen=True)
class _Asked:
    """A configuration that is equal where its passes are."""

    key: str
    config: RunConfig = field(compare=False)


@lru_cache(maxsize=MOST_PASSES)
def _write_pass(asked: _Asked, micro_windows: int, on_gpu: bool) -> Tape:
    config = asked.config
    model, reading = config.model, read_objective(config)
    family, shapes = find_family(model), list_parameters(config.model, config.sizes)
    precise = config.engine.precision == "fp32"
    dropout = float(getattr(model, "dropout", 0.0))
    adapted = {s.name.removesuffix(".lora_a") for s in shapes if s.name.endswith(".lora_a")}
    tape = Tape(
        itemsize=FLOAT if precise else 2,
        on_gpu=on_gpu,
        dropout=dropout,
        frozen=find_frozen_names(config, shapes),
        adapters={name: (model.lora.rank, model.lora.dropout) for name in adapted},
    )
    hidden = family.write(tape, model, config.sizes, reading.batch(micro_windows))
    write_scoring(tape, config, family, reading, hidden)
    return tape


def list_operations(
    config: RunConfig, *, micro_windows: int, on_gpu: bool = True
) -> tuple[Operation, ...]:
    """The operators of one micro-batch of so many windows, in the order of the forward pass."""
    return summarize(write_pass(config, micro_windows=micro_windows, on_gpu=on_gpu))


@lru_cache(maxsize=MOST_PASSES)
def summarize(tape: Tape) -> tuple[Operation, ...]:
    """The operators of a tape, those of equal sizes in equal blocks as one."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    saved: Counter[tuple[object, ...]] = Counter()
    seen: set[int] = set()
    for record in tape.records:
        name = _NUMBER.sub(".*.", record.name)
        key = (name, record.kind, record.product, record.flops, record.backward_flops)
        groups.setdefault(key, []).append(record)
        kept = record.saved if record.region is None else tape.regions[record.region]
        saved[key] += sum(tape.memories[memory] for memory in {*kept} - seen)
        seen.update(kept)
    return tuple(_combine(str(key[0]), rows, saved[key]) for key, rows in groups.items())


def _combine(name: str, records: Sequence[Record], saved_bytes: int) -> Operation:
    first = records[0]
    m, n, k = first.product
    return Operation(
        name=name,
        kind=first.kind,
        times=len(records),
        recomputed=sum(record.region is not None for record in records),
        m=m,
        n=n,
        k=k,
        flops=first.flops,
        backward_flops=first.backward_flops,
        moved_bytes=_mean(record.moved_bytes for record in records),
        backward_moved_bytes=_mean(record.backward_moved_bytes for record in records),
        saved_bytes=saved_bytes,
        weight_bytes=first.weight_bytes,
        launches=first.launches,
        backward_launches=first.backward_launches,
    )


def _mean(numbers: Iterable[int]) -> int:
    listed = [*numbers]
    return sum(listed) // len(listed)
