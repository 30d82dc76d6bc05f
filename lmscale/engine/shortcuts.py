"""What DeepSpeed 0.19.8 does in every micro-batch and step that changes nothing, left out.

A small model's step is so short that passes over all gradients and Python per module show. Each
function names the place in DeepSpeed's source, and changes the optimizer that was built, never the
library. Where ``engine.deepspeed`` sets a key of ``zero_optimization``, its user wants ZeRO as it
is, and nothing is left out. What the shortcuts bring: docs/performance.md, benchmarks/step.py.

======= ================================================================= ======================
stage   left out                                                          where
======= ================================================================= ======================
0       a search of each gradient for infinities, which the norm shows    unfused_optimizer.py
1       gradients that are zeroed to be added to, a copy of each in fp32  bf16_optimizer.py
1, 2    the same search                                                   stage_1_and_2.py
1 to 3  one replica: bucket, division, all-reduce, copies back            and stage3.py
3       a copy of all gradients before the update                         stage3.py
3       one replica: hooks of every module, a second copy of the weights  parameter_offload.py
======= ================================================================= ======================
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from lmscale.config.deepspeed_config import has_shortcuts
from lmscale.config.training import EngineConfig

# Attributes that Python renames in DeepSpeed's class.
_PARTS_OF_STAGE_3 = "_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition"


def take_shortcuts(deepspeed: Any, config: EngineConfig, *, replicas: int) -> None:
    """Leave out what an engine that was just built need not do, of so many ``replicas``."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    outer = deepspeed.optimizer
    if not has_shortcuts(config):
        return
    if config.zero_stage == 0:
        if hasattr(outer, "overflow_checker"):  # not of fp32
            # unfused_optimizer.py, step: it asks the host of every parameter, and then refuses a
            # norm that is not finite by itself.
            outer.overflow_checker.check = _never
    elif isinstance(outer, BF16_Optimizer):
        _add_in_one_pass(outer)
    elif config.zero_stage == 3:
        outer._prepare_fp32_grad_for_sub_group = partial(_lend_gradients, outer)
        if replicas == 1:
            _accumulate_parts(outer)
            _keep_weights_whole(deepspeed)
    else:
        # stage_1_and_2.py, check_overflow: step() refuses a norm that is not finite by itself.
        outer.check_overflow = _do_nothing
        if replicas == 1:
            _accumulate_slices(outer)


def _do_nothing(*_: Any, **__: Any) -> None: ...


def _never(*_: Any) -> bool:
    return False


def _add_in_one_pass(outer: Any) -> None:
    """bf16_optimizer.py, clear_lp_grads and update_hp_grads: 0 + g is g, and add_ converts."""

    @torch.no_grad()
    def add(clear_lp_grads: bool = False) -> None:
        masters, gradients = [], []
        for group, sums, has_any in zip(
            outer.bf16_groups,
            outer.fp32_groups_gradients,
            outer.fp32_groups_has_gradients,
            strict=True,
        ):
            for index, parameter in enumerate(group):
                if parameter.grad is not None:
                    parameter._hp_grad = sums[index]
                    has_any[index] = True
                    masters.append(sums[index].view(-1))
                    gradients.append(parameter.grad.view(-1))
        if masters:
            torch._foreach_add_(masters, gradients)  # pyright: ignore - not in torch's __all__

    outer.update_hp_grads = add
    outer.backward_prologue = partial(outer.clear_lp_grads, set_to_none=True)


def _accumulate_slices(outer: Any) -> None:
    """stage_1_and_2.py, process_gradients: a replica that has no other adds a gradient to its
    place in the flat fp32 sum, and frees it.
    """
    places: dict[int, tuple[int, int, torch.Size]] = {}

    def place_of(parameter: Any, group: int) -> tuple[int, int, torch.Size]:
        number = outer.get_param_id(parameter)
        if number not in places:
            start = outer.grad_partition_insertion_offset[group][0][number]
            places[number] = (int(start), parameter.numel(), parameter.shape)
        return places[number]

    @torch.no_grad()
    def add(parameter: Any, group: int) -> None:
        if parameter.grad is None:
            return
        start, elements, shape = place_of(parameter, group)
        flat = outer._get_compact_grad_partition_buffer(group).flat_partition
        flat.narrow(0, start, elements).view(shape).add_(parameter.grad)
        parameter.grad = None

    outer._use_compact_grad_partition_buffer = _always
    outer.process_gradients = add
    outer.reduce_ipg_grads = _do_nothing


def _always(*_: Any) -> bool:
    return True


def _accumulate_parts(outer: Any) -> None:
    """stage3.py, reduce_independent_p_g_buckets_and_remove_grads: the same for a lone replica."""
    parts = getattr(outer, _PARTS_OF_STAGE_3)

    @torch.no_grad()
    def add(parameter: Any) -> None:
        part = parts[parameter.ds_id].view(parameter.grad.shape)
        if outer.micro_step_id == 0:
            part.copy_(parameter.grad)
        else:
            part.add_(parameter.grad)
        parameter.grad = None

    outer.reduce_independent_p_g_buckets_and_remove_grads = add
    for bucket in outer.ipg_buckets.values():
        bucket.buffer = torch.empty(0)  # of 2 bytes a parameter


def _lend_gradients(outer: Any, group: int) -> None:
    """stage3.py, _prepare_fp32_grad_for_sub_group: the parts of a group's gradients lie one behind
    the other, as its masters do; there they are copied to be so once more. Clipping scales them in
    their place, and ``Engine.update`` clears them.
    """
    parts, master = outer.averaged_gradients[group], outer.fp32_partitioned_groups_flat[group]
    first = parts[0]
    master.grad = first.as_strided((master.numel(),), (1,), first.storage_offset())
    outer.averaged_gradients[group] = None


def _keep_weights_whole(deepspeed: Any) -> None:
    """parameter_offload.py: a replica that has no other has every weight whole in its part, which
    the update writes to in place. Nothing is to be gathered or released before and after a module.
    """
    outer = deepspeed.optimizer
    for parameter in deepspeed.module.parameters():
        part = parameter.ds_tensor
        parameter.data = part.data.narrow(0, 0, parameter.ds_numel).view(parameter.ds_shape)
        parameter.ds_status = type(parameter.ds_status).AVAILABLE
    outer.parameter_offload._remove_module_hooks()
    outer.persistent_parameters = []
    outer._partition_all_parameters = _do_nothing
