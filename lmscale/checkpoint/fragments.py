"""What of the model and the optimizer this rank holds, as views, at every ZeRO stage.

Of trained parameters the fp32 masters, the optimizer's states (engine/masters.py knows where) and
``Engine.kept_elements``; of frozen parameters and of the buffers in a model's ``state_dict`` their
values, in their own dtype. And the few numbers of the optimizer that belong to no element: Adam's
step and fp16's loss scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmscale.checkpoint.manifest import (
    BUFFER,
    FACTOR,
    FROZEN,
    MASTER,
    Averaging,
    OptimizerKind,
    Untrained,
)
from lmscale.checkpoint.write_file import DTYPE_NAMES
from lmscale.engine.adafactor import Adafactor
from lmscale.engine.engine import MODEL_PREFIX, Engine, whole_shape
from lmscale.engine.masters import (
    base_optimizer,
    dealt_part,
    held_slices,
    master_groups,
    masters_by_parameter,
)
from lmscale.engine.optimizer import STEP
from lmscale.engine.schedule_free import LARGEST_RATE, WEIGHT_SUM, Z
from lmscale.errors import CheckpointError
from lmscale.model import initialize
from lmscale.ranks.fingerprint import add_fingerprints, fingerprint
from lmscale.ranks.mesh import Axis

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A run of elements of one flattened parameter or buffer, with all that is stored of them."""

    parameter: str
    offset: int
    tensors: dict[str, Tensor]  # kind → view [elements]: writing to it changes the engine
    is_shared: bool  # every rank holds the same, whole

    @property
    def elements(self) -> int:
        return next(iter(self.tensors.values())).numel()

    def narrow(self, start: int, end: int) -> Fragment:
        return Fragment(
            parameter=self.parameter,
            offset=self.offset + start,
            tensors={kind: view[start:end] for kind, view in self.tensors.items()},
            is_shared=False,
        )

    def share_of(self, replicas: Axis) -> tuple[int, int]:
        """The elements [start, end) that a replica writes, and reads, of what all of them hold."""
        rank, size = replicas.rank, replicas.size
        return self.elements * rank // size, self.elements * (rank + 1) // size


def held_fragments(engine: Engine) -> Iterator[Fragment]:
    """All that this rank holds: what it must load. At stage 0 that is everything, on every rank."""
    yield from _trained(engine)
    yield from _frozen(engine)
    for name, buffer in persistent_buffers(engine):
        tensors = {BUFFER: buffer.detach().view(-1)}
        yield Fragment(parameter=name, offset=0, tensors=tensors, is_shared=True)
    for name, factor in factors(engine):
        yield Fragment(parameter=name, offset=0, tensors={FACTOR: factor}, is_shared=True)


def factors(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Adafactor's running means, 1-D, which every rank has whole."""
    optimizer = base_optimizer(engine)
    if isinstance(optimizer, Adafactor):
        for name, (by_row, by_column) in optimizer.factors.items():
            yield f"{name}.row_squares", by_row
            yield f"{name}.column_squares", by_column


def owned_fragments(engine: Engine) -> Iterator[Fragment]:
    """What this rank writes: together the ranks' pieces cover everything exactly once.

    Buffers are taken to be the same on all ranks.
    """
    for fragment in held_fragments(engine):
        if not fragment.is_shared:
            yield fragment
            continue
        start, end = fragment.share_of(engine.mesh.replicas)
        if end > start:
            yield fragment.narrow(start, end)


def parameter_shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Trained parameter → shape of the whole one, also where ZeRO 3 has dealt it out."""
    return {name: whole_shape(parameter) for name, parameter in engine.trained_parameters()}


def parameter_states(engine: Engine) -> dict[str, tuple[str, ...]]:
    """Trained parameter → the kinds that are stored of its elements, ``MASTER`` first."""
    kept_kinds = engine.kept_elements
    return {
        n: (MASTER, *_states_of(engine, n), *kept_kinds) for n, _ in engine.trained_parameters()
    }


def replicated_tensors(engine: Engine) -> dict[str, Untrained]:
    """Frozen parameter, buffer or factor → its shape, dtype and kind, as the manifest has them."""
    rows = {
        name: (whole_shape(parameter), parameter.dtype, FROZEN)
        for name, parameter in engine.named_parameters()
        if not parameter.requires_grad
    }
    for name, buffer in persistent_buffers(engine):
        rows[name] = (tuple(buffer.shape), buffer.dtype, BUFFER)
    rows |= {name: (tuple(means.shape), means.dtype, FACTOR) for name, means in factors(engine)}
    return {
        name: Untrained(shape=shape, dtype=DTYPE_NAMES[dtype], kind=kind)
        for name, (shape, dtype, kind) in rows.items()
    }


def persistent_buffers(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are part of the model's ``state_dict``, each once."""
    for name, buffer in initialize.persistent_buffers(engine.module):
        yield name.removeprefix(MODEL_PREFIX), buffer


def weights_fingerprint(fragments: Iterable[Fragment]) -> int:
    """That of the masters among them; the sum over all ranks' owned ones is the checkpoint's."""
    return add_fingerprints(
        fingerprint(fragment.tensors[MASTER], name=fragment.parameter, offset=fragment.offset)
        for fragment in fragments
        if MASTER in fragment.tensors
    )


@torch.no_grad()
def refresh_parameters(engine: Engine) -> None:
    """Make the parameters that the forward pass uses follow the masters, on all ranks.

    Called by all ranks after their masters were written to: it gathers slices from each other.
    """
    outer = engine.deepspeed.optimizer
    if engine.config.zero_stage == 3:
        outer._partition_all_parameters()
        for index in range(len(outer.fp32_partitioned_groups_flat)):
            outer._reassign_or_swap_out_partitioned_parameters(index)
        if outer.persistent_parameters:  # small ones stay gathered: gather them again
            outer.persistent_parameters[0].all_gather(outer.persistent_parameters)
    elif engine.config.zero_stage == 0:
        for parameter, master in masters_by_parameter(engine):
            if master is not parameter:
                parameter.data.copy_(master.data)
    elif hasattr(outer, "update_lp_params"):  # BF16_Optimizer
        outer.update_lp_params()
    else:
        _gather_stage_1_and_2(engine)


def _gather_stage_1_and_2(engine: Engine) -> None:
    # What DeepSpeedZeroOptimizer.step does after the update; it has no function of its own for it.
    from deepspeed.runtime.utils import all_gather_dp_groups

    outer = engine.deepspeed.optimizer
    for _, parameter in engine.trained_parameters():
        mapping = parameter._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]
        if mapping is not None:
            mapping.update_lp()
    all_gather_dp_groups(
        groups_flat=outer.bit16_groups_flat,
        partitioned_param_groups=outer.parallel_partitioned_bit16_groups,
        dp_process_group=outer.real_dp_process_group,
        start_alignment_factor=outer.nccl_start_alignment_factor,
        allgather_bucket_size=outer.allgather_bucket_size,
    )


def _states_of(engine: Engine, parameter: str) -> tuple[str, ...]:
    return engine.config.optimizer.element_states(engine.methods[parameter])


def _trained(engine: Engine) -> Iterator[Fragment]:
    state = base_optimizer(engine).state
    for piece in held_slices(engine):
        tensors = {MASTER: piece.of(piece.master)}
        for kind in _states_of(engine, piece.parameter):
            tensors[kind] = piece.of(state[piece.master][kind])
        for kind, tensor_of in engine.kept_elements.items():
            assert kind not in tensors, f"Engine.kept_elements: {kind} is stored already"
            tensors[kind] = piece.of(tensor_of[piece.master])
        yield Fragment(
            parameter=piece.parameter,
            offset=piece.offset,
            tensors=tensors,
            is_shared=engine.config.zero_stage == 0,
        )


def _frozen(engine: Engine) -> Iterator[Fragment]:
    """Frozen parameters: ZeRO 3 deals them out too, else every rank has them."""
    for name, parameter in engine.named_parameters():
        if parameter.requires_grad:
            continue
        held: Any = parameter
        if engine.config.zero_stage != 3:
            tensors = {FROZEN: parameter.detach().view(-1)}
            yield Fragment(parameter=name, offset=0, tensors=tensors, is_shared=True)
            continue
        offset, elements = dealt_part(held, engine.mesh.replicas.rank)
        if elements > 0:
            tensors = {FROZEN: held.ds_tensor.detach().view(-1)[:elements]}
            yield Fragment(parameter=name, offset=offset, tensors=tensors, is_shared=False)


def read_optimizer(engine: Engine) -> OptimizerKind:
    steps = {int(state[STEP]) for state in _counted_states(engine)}
    if len(steps) > 1:
        raise AssertionError(f"the optimizer counts differ between parameters: {steps}")
    optimizer = engine.config.optimizer
    numbers = {(s[WEIGHT_SUM], s[LARGEST_RATE]) for s in _counted_states(engine) if Z in s}
    assert len(numbers) <= 1, f"the averages differ between parameters: {numbers}"
    averaging = None
    for weight_sum, largest_rate in numbers:
        beta = optimizer.betas[0]
        averaging = Averaging(beta=beta, weight_sum=weight_sum, largest_rate=largest_rate)
    step = steps.pop() if steps else None
    return OptimizerKind(kind=optimizer.kind, step=step, averaging=averaging)


def check_optimizer(engine: Engine, saved: OptimizerKind, where: str) -> None:
    """Raise ``CheckpointError`` when a checkpoint's states are of another optimizer's."""
    kind = engine.config.optimizer.kind
    if saved.kind != kind:
        raise CheckpointError(
            f"{where} holds the states of engine.optimizer.kind = {saved.kind}, but this run is "
            f"configured for {kind}. Set it back to {saved.kind}, or give this run a folder of "
            "its own (run.folder)."
        )
    if _counted_states(engine) and saved.step is None:
        raise CheckpointError(f"{where} does not say how many updates its optimizer has taken.")
    if kind == "schedule_free":
        beta = engine.config.optimizer.betas[0]
        if saved.averaging is None or saved.averaging.beta != beta:
            raise CheckpointError(
                f"{where} holds points of schedule_free AdamW that averages by "
                f"{saved.averaging and saved.averaging.beta}, but engine.optimizer.betas begin "
                f"with {beta}. Set them back, or give this run a folder of its own (run.folder)."
            )


def write_optimizer(engine: Engine, saved: OptimizerKind) -> None:
    for state in _counted_states(engine):
        state[STEP].fill_(saved.step)
        if saved.averaging is not None:
            state[WEIGHT_SUM] = saved.averaging.weight_sum
            state[LARGEST_RATE] = saved.averaging.largest_rate


def read_loss_scale(engine: Engine) -> dict[str, Any] | None:
    scaler = _scaler(engine)
    if scaler is None:
        return None
    return {name: getattr(scaler, name) for name in _SCALER_FIELDS if hasattr(scaler, name)}


def write_loss_scale(engine: Engine, saved: dict[str, Any] | None) -> None:
    """Take over the scale where both runs are fp16; with another precision the run has its own."""
    scaler = _scaler(engine)
    if scaler is None or saved is None:
        return
    for name in _SCALER_FIELDS:
        if name in saved and hasattr(scaler, name):
            setattr(scaler, name, saved[name])


def _counted_states(engine: Engine) -> list[dict[str, Any]]:
    state = base_optimizer(engine).state
    return [state[master] for master, _ in master_groups(engine) if STEP in state[master]]


def _scaler(engine: Engine) -> Any:
    """DeepSpeed has it in ``loss_scaler``, and at stage 0 in ``loss_scale_config``."""
    if engine.config.precision != "fp16":
        return None
    outer = engine.deepspeed.optimizer
    return getattr(outer, "loss_scaler", None) or outer.loss_scale_config
