"""What DeepSpeed's stages hold of weights, gradients and the optimizer's states.

Read in DeepSpeed 0.19.8's source and held against what it allocates (tests/plan). A is of all
elements, T of the trained ones, N of ranks, w 2 bytes in 16 bit and 4 in fp32:

====== ========= ========================== ============ =========== ==========================
stage  precision weights                    gradients    masters     besides
====== ========= ========================== ============ =========== ==========================
0      fp32      w A                        4 T, growing the weights
0      16 bit    w A                        4 T          4 T
1      bf16      w A, flat                  4 T, always  4 T / N     w T, growing in a pass
1      others    w A, flat                  4 T, growing 4 T / N     a bucket
2      all       w A, flat                  4 T / N      4 T / N     a bucket, in 16 bit its copy
3      all       w A / N, and those gathered 4 T / N     4 T / N     a bucket in fp32, always
====== ========= ========================== ============ =========== ==========================

With one rank, and nothing offloaded, there are no buckets and nothing is gathered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lmscale.config import RunConfig
from lmscale.config.deepspeed_config import ONE_RANK, has_shortcuts, render_deepspeed_config
from lmscale.config.training import EngineConfig
from lmscale.plan.operations import find_frozen_names, list_parameters
from lmscale.plan.parameters import ParameterShape
from lmscale.plan.tape import FLOAT


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A moment of a step."""

    name: str
    held: Mapping[str, int]  # component → bytes


@dataclass(frozen=True, kw_only=True)
class States:
    """Sizes from which every moment's follow. Bytes, of one rank."""

    stage: int
    is_flat_bf16: bool  # BF16_Optimizer: gradients of all, in fp32, always there
    itemsize: int
    ranks: int
    trained: int  # elements
    steady: Mapping[str, int]
    """What is there at every moment: weights, masters, optimizer states, …"""
    gathered: int
    """ZeRO 3: weights that are whole for a while."""
    bucket: int  # elements of a reduction's
    on_host: Mapping[str, int]
    offloads_optimizer: bool
    has_shortcuts: bool
    """Whether lmscale leaves out what a step does not need (engine/shortcuts.py)."""
    overlaps: bool
    """Whether gradients are sent beside the backward pass, from a second bucket (stages 1, 2)."""

    @property
    def full_gradients(self) -> int:
        """In fp32, of all trained elements."""
        return self.trained * FLOAT

    @property
    def own_gradients(self) -> int:
        return -(-self.full_gradients // self.ranks)

    @property
    def bucket_in_pass(self) -> int:
        """Made at a pass's first gradient: of stages 1 and 2 under DeepSpeedZeroOptimizer."""
        if self.stage not in (1, 2) or self.is_flat_bf16 or self.is_alone:
            return 0
        itemsize = FLOAT if self.stage == 1 else self.itemsize
        return self.bucket * itemsize * (1 + self.overlaps)

    @property
    def is_alone(self) -> bool:
        """Whether gradients go to no other rank, and so into no bucket."""
        return self.has_shortcuts and self.ranks == 1

    @property
    def keeps_bucket(self) -> bool:
        """Whether it stays until the last micro-batch is done, as that of stage 1 does."""
        return self.stage == 1

    def growing_itemsize(self, *, accumulates: bool) -> int:
        """Bytes an element of the gradients that come into being as a pass goes back."""
        if self.is_flat_bf16:
            return 0 if accumulates and not self.has_shortcuts else self.itemsize
        grows = self.stage == 0 and self.itemsize == FLOAT
        grows = grows or self.stage == 1 or (self.stage == 2 and self.is_alone)
        return FLOAT if grows and not accumulates else 0

    def held_forward(self, *, accumulates: bool) -> int:
        """Gradients of the micro-batch before, which go as the next one's backward pass begins."""
        goes = self.is_flat_bf16 and self.has_shortcuts and accumulates
        return self.trained * self.itemsize if goes else 0

    def in_pass(self, accumulation: int) -> dict[str, int]:
        """In the last micro-batch, beside the activations."""
        held = dict(self.steady)
        held["gathered weights"] = self.gathered
        if self.is_flat_bf16:
            held["gradients"] = self.full_gradients + (
                self.trained * self.itemsize if accumulation > 1 and not self.has_shortcuts else 0
            )
        elif self.stage <= 1:
            grows = self.itemsize == FLOAT or self.stage == 1
            held["gradients"] = self.full_gradients if accumulation > 1 or not grows else 0
            held["buckets"] = self.bucket_in_pass if accumulation > 1 else 0
        elif self.stage == 2:  # of the micro-batches before
            is_first = accumulation == 1 or self.offloads_optimizer
            held["gradients"] = 0 if is_first else self.own_gradients
        return held

    def at_reduction(self) -> dict[str, int]:
        """When all gradients are there and the last of them are sent."""
        held = dict(self.steady)
        copy = self.bucket * FLOAT
        if self.stage <= 1:
            held["gradients"] = self.full_gradients
            if self.is_flat_bf16:
                held["gradients"] += self.trained * self.itemsize
            held["buckets"] = (copy if self.ranks > 1 else 0) + self.bucket_in_pass
        elif self.stage == 2:
            # The bucket, in 16 bit the same in fp32, and without shortcuts flattened once more.
            own = self.bucket * self.itemsize
            held["buckets"] = own + (0 if self.itemsize == FLOAT else copy)
            held["buckets"] += 0 if self.has_shortcuts else own
            if self.is_alone:
                held["buckets"] = 0
            held["gradients"] = 0 if self.offloads_optimizer else self.own_gradients
        else:
            held["gathered weights"] = self.gathered
            if not self.is_alone:
                held["buckets"] = held.get("buckets", 0) + copy + 2 * copy // self.ranks
        return held

    def at_update(self) -> dict[str, int]:
        """The gradients flattened, or cast."""
        held = dict(self.steady)
        if self.stage == 0 or self.is_flat_bf16:
            held["gradients"] = self.full_gradients
        elif not self.offloads_optimizer and self.stage < 3:
            held["gradients"] = 2 * self.own_gradients
        return held


_ZERO_KEYS = (
    "reduce_bucket_size",
    "stage3_prefetch_bucket_size",
    "stage3_max_live_parameters",
    "overlap_comm",
)


def zero_settings(engine: EngineConfig, *, num_parameters: int) -> dict[str, int]:
    """Those of DeepSpeed's keys that memory depends on, with the configuration's own."""
    given = render_deepspeed_config(engine, plan=ONE_RANK, num_parameters=num_parameters)
    return {name: int(given["zero_optimization"][name] or 0) for name in _ZERO_KEYS}


def count_states(config: RunConfig, *, ranks: int) -> States:
    """Of a configuration whose precision is settled."""
    engine = config.engine
    shapes = list_parameters(config.model, config.sizes)
    frozen = find_frozen_names(config, shapes)
    trained_shapes = [shape for shape in shapes if shape.name not in frozen]
    elements = sum(shape.elements for shape in shapes)
    trained = sum(shape.elements for shape in trained_shapes)
    itemsize = FLOAT if engine.precision == "fp32" else 2
    stage = engine.zero_stage
    share = ranks if stage else 1
    zero = zero_settings(engine, num_parameters=elements)
    skips = has_shortcuts(engine)
    bucket = min(zero["reduce_bucket_size"], trained)
    steady = {
        "weights": elements * itemsize if stage < 3 else -(-elements // ranks) * itemsize,
        "masters": trained * FLOAT // share if (itemsize != FLOAT or stage) else 0,
        "optimizer": _optimizer_bytes(config, trained_shapes, share),
        "average": trained * FLOAT // share if engine.ema_decay else 0,
        "zeros": trained // share if engine.keep_zeros else 0,
    }
    gathered = 0
    if stage == 3:
        steady["gradients"] = trained * FLOAT // ranks
        if not (skips and ranks == 1):
            steady["buckets"] = zero["reduce_bucket_size"] * FLOAT
            limit = zero["stage3_max_live_parameters"] + zero["stage3_prefetch_bucket_size"]
            gathered = min(elements, limit) * itemsize
    on_host: dict[str, int] = {}
    if engine.offload_optimizer:
        moved = ["masters", "optimizer", "average", "zeros"]
        moved += ["gradients"] if stage == 3 else []
        on_host["offloaded states"] = sum(steady.pop(name, 0) for name in moved)
        if stage < 3:
            on_host["offloaded gradients"] = trained * FLOAT // ranks
    if engine.offload_parameters:
        on_host["offloaded weights"] = steady.pop("weights")
    return States(
        stage=stage,
        is_flat_bf16=stage == 1 and engine.precision == "bf16" and not engine.offload_optimizer,
        itemsize=itemsize,
        ranks=ranks,
        trained=trained,
        steady=steady,
        gathered=gathered,
        bucket=bucket,
        on_host=on_host,
        offloads_optimizer=engine.offload_optimizer,
        has_shortcuts=skips,
        overlaps=bool(zero["overlap_comm"]),
    )


def _optimizer_bytes(config: RunConfig, shapes: list[ParameterShape], share: int) -> int:
    """The states of every element, and Adafactor's two factors of a matrix."""
    optimizer = config.engine.optimizer
    total = 0
    for shape in shapes:
        states = optimizer.element_states(optimizer.method_of(shape.kind))
        total += shape.elements * FLOAT * len(states)
        if optimizer.kind == "adafactor":
            rows, columns = (shape.shape[0], math.prod(shape.shape[1:]))
            total += (rows + (columns if len(shape.shape) > 1 else 0)) * FLOAT * share
    return total // share
