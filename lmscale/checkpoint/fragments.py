"""What of the model and the optimizer this rank holds, as views, at every ZeRO stage.

DeepSpeed keeps the fp32 master weights and optimizer states in five ways; this file is the only one
that knows them (deepspeed 0.19.8, read in its source):

=============== ============================ ==================================================
stage           its optimizer                where the masters are
=============== ============================ ==================================================
0, fp32         torch's own                  the parameters themselves, whole on every rank
0, bf16 or fp16 FP16_UnfusedOptimizer        ``fp32_groups``, whole on every rank
1, bf16         BF16_Optimizer               a slice of a flat group; ``param._hp_mapping``
1, 2            DeepSpeedZeroOptimizer       the same
3               ..._Stage3                   ``fp32_partitioned_groups_flat``; ``grad_position``
=============== ============================ ==================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmscale.checkpoint.layout import MASTER
from lmscale.engine.engine import Engine, base_optimizer, master_tensors
from lmscale.engine.optimizer import ELEMENT_STATES
from lmscale.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A run of elements of one flattened parameter, with all that is stored of them, fp32
    [elements].
    """

    parameter: str
    offset: int
    tensors: dict[str, Tensor]  # kind → view: writing to it changes the engine

    @property
    def elements(self) -> int:
        return self.tensors[MASTER].numel()

    def narrow(self, start: int, end: int) -> Fragment:
        tensors = {kind: view[start:end] for kind, view in self.tensors.items()}
        return Fragment(parameter=self.parameter, offset=self.offset + start, tensors=tensors)


def held_fragments(engine: Engine) -> Iterator[Fragment]:
    """All that this rank holds: what it must load. At stage 0 that is everything, on every rank."""
    frozen = [name for name, p in engine.named_parameters() if not p.requires_grad]
    buffers = [name for name, _ in engine.module.named_buffers()]
    if frozen or buffers:
        raise CheckpointError(
            "Checkpoints hold trained parameters only, but the model has frozen parameters "
            f"{frozen} "
            f"and buffers {buffers}."
        )
    if engine.config.zero_stage == 0:
        yield from _whole(engine)
    elif engine.config.zero_stage == 3:
        yield from _stage_3(engine)
    else:
        yield from _flat_slices(engine)


def owned_fragments(engine: Engine) -> Iterator[Fragment]:
    """What this rank writes: together the ranks' pieces cover everything exactly once."""
    if engine.config.zero_stage != 0:
        yield from held_fragments(engine)
        return
    rank, world_size = engine.deepspeed.global_rank, engine.plan.world_size
    for fragment in held_fragments(engine):
        start = fragment.elements * rank // world_size
        end = fragment.elements * (rank + 1) // world_size
        if end > start:
            yield fragment.narrow(start, end)


def parameter_shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Name → shape of the whole parameter, also where ZeRO 3 has dealt it out."""
    return {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in engine.named_parameters()
    }


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
        for parameter, master in _masters_by_parameter(engine):
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
    for _, parameter in engine.named_parameters():
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


def _states_of(engine: Engine, master: Tensor) -> dict[str, Tensor]:
    state = base_optimizer(engine).state[master]
    return {kind: state[kind] for kind in ELEMENT_STATES}


def _masters_by_parameter(engine: Engine) -> Iterator[tuple[torch.nn.Parameter, Tensor]]:
    """Stage 0: each parameter with its fp32 master, which in fp32 is itself."""
    outer = engine.deepspeed.optimizer
    if isinstance(outer, torch.optim.Optimizer):
        for _, parameter in engine.named_parameters():
            yield parameter, parameter
        return
    for parameters, masters in zip(outer.fp16_groups, outer.fp32_groups, strict=True):
        yield from zip(parameters, masters, strict=True)


def _whole(engine: Engine) -> Iterator[Fragment]:
    master_of = {id(parameter): master for parameter, master in _masters_by_parameter(engine)}
    for name, parameter in engine.named_parameters():
        master = master_of[id(parameter)]
        tensors = {MASTER: master, **_states_of(engine, master)}
        flat = {kind: tensor.detach().reshape(-1) for kind, tensor in tensors.items()}
        yield Fragment(parameter=name, offset=0, tensors=flat)


def _flat_slices(engine: Engine) -> Iterator[Fragment]:
    masters = master_tensors(engine)
    for name, parameter in engine.named_parameters():
        mapping: Any = parameter._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]
        if mapping is None:  # none of it is in this rank's slice
            continue
        place = mapping.get_hp_fragment_address()
        states = _states_of(engine, masters[mapping.param_group_index])
        tensors = {MASTER: mapping.get_hp_fragment().detach()}
        for kind, state in states.items():
            tensors[kind] = state.narrow(0, place.start, place.numel)
        yield Fragment(parameter=name, offset=mapping.lp_fragment_address.start, tensors=tensors)


def _stage_3(engine: Engine) -> Iterator[Fragment]:
    outer = engine.deepspeed.optimizer
    rank = engine.deepspeed.global_rank
    for name, parameter in engine.named_parameters():
        held: Any = parameter
        group, start, elements = outer.grad_position[outer.get_param_id(parameter)]
        # Every rank's part is as long as the first's: the last ones are padded, or nothing but
        # padding.
        offset = rank * held.ds_tensor.ds_numel
        real = min(elements, held.ds_numel - offset)
        if real <= 0:
            continue
        master = outer.fp32_partitioned_groups_flat[group]
        tensors = {MASTER: master.detach(), **_states_of(engine, master)}
        yield Fragment(
            parameter=name,
            offset=offset,
            tensors={kind: flat.narrow(0, start, real) for kind, flat in tensors.items()},
        )
