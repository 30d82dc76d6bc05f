"""Where DeepSpeed keeps the fp32 master weights that this rank's optimizer updates.

It does so in five ways; this file is the only one that knows them (deepspeed 0.19.8, read in its
source):

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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lmscale.engine.engine import Engine


@dataclass(frozen=True, kw_only=True)
class MasterSlice:
    """A run of elements of one flattened parameter, and where this rank's optimizer has them."""

    parameter: str
    offset: int
    elements: int
    master: Tensor  # a tensor that the optimizer updates, and the key of its states
    start: int  # of the run in the flattened master

    def of(self, flat: Tensor) -> Tensor:
        """The run's elements in the master, or in a state of its shape, 1-D: a view."""
        # view, not reshape: a copy would take what is written to it and lose it.
        return flat.detach().view(-1).narrow(0, self.start, self.elements)


def base_optimizer(engine: Engine) -> torch.optim.Optimizer:
    """The optimizer that lmscale built, under whatever DeepSpeed has put around it."""
    outer = engine.deepspeed.optimizer
    return outer if isinstance(outer, torch.optim.Optimizer) else outer.optimizer


def master_groups(engine: Engine) -> list[tuple[Tensor, dict[str, Any]]]:
    """The fp32 tensors that this rank's optimizer updates, each with its parameter group.

    Of equal length and order on all ranks.
    """
    outer, groups = engine.deepspeed.optimizer, base_optimizer(engine).param_groups
    if engine.config.zero_stage == 3:
        group_of = outer.sub_group_to_group_id
        flat = outer.fp32_partitioned_groups_flat
        return [(master, groups[group_of[index]]) for index, master in enumerate(flat)]
    return [(master, group) for group in groups for master in group["params"]]


def held_slices(engine: Engine) -> Iterator[MasterSlice]:
    """All that this rank holds of the trained parameters; at stage 0 that is everything."""
    if engine.config.zero_stage == 0:
        return _whole(engine)
    return _stage_3(engine) if engine.config.zero_stage == 3 else _flat_slices(engine)


def masters_by_parameter(engine: Engine) -> Iterator[tuple[torch.nn.Parameter, Tensor]]:
    """Stage 0: each trained parameter with its fp32 master, which in fp32 is itself."""
    outer = engine.deepspeed.optimizer
    if isinstance(outer, torch.optim.Optimizer):
        for _, parameter in engine.trained_parameters():
            yield parameter, parameter
        return
    for parameters, masters in zip(outer.fp16_groups, outer.fp32_groups, strict=True):
        yield from zip(parameters, masters, strict=True)


def _whole(engine: Engine) -> Iterator[MasterSlice]:
    master_of = {id(parameter): master for parameter, master in masters_by_parameter(engine)}
    for name, parameter in engine.trained_parameters():
        master = master_of[id(parameter)]
        yield MasterSlice(parameter=name, offset=0, elements=master.numel(), master=master, start=0)


def _flat_slices(engine: Engine) -> Iterator[MasterSlice]:
    masters = [master for master, _ in master_groups(engine)]
    for name, parameter in engine.trained_parameters():
        mapping: Any = parameter._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]
        if mapping is None:  # none of it is in this rank's slice
            continue
        place = mapping.get_hp_fragment_address()
        yield MasterSlice(
            parameter=name,
            offset=mapping.lp_fragment_address.start,
            elements=place.numel,
            master=masters[mapping.param_group_index],
            start=place.start,
        )


def _stage_3(engine: Engine) -> Iterator[MasterSlice]:
    outer = engine.deepspeed.optimizer
    for name, parameter in engine.trained_parameters():
        group, start, _ = outer.grad_position[outer.get_param_id(parameter)]
        offset, elements = dealt_part(parameter, engine.mesh.replicas.rank)
        if elements > 0:
            yield MasterSlice(
                parameter=name,
                offset=offset,
                elements=elements,
                master=outer.fp32_partitioned_groups_flat[group],
                start=start,
            )


def dealt_part(parameter: Any, rank: int) -> tuple[int, int]:
    """ZeRO 3: where a replica's part of a parameter begins, and how many elements of it are real.

    Every rank's part is as long as the first's: the last ones are padded, or nothing but padding.
    """
    length = parameter.ds_tensor.ds_numel
    return rank * length, max(0, min(length, parameter.ds_numel - rank * length))
