"""A module under DeepSpeed: contexts, checks, and the engine itself."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Any

import torch
from torch import Tensor

from lmscale.config.data import BatchPlan
from lmscale.config.training import EngineConfig
from lmscale.engine.deepspeed_config import render_deepspeed_config
from lmscale.engine.engine import MODEL_PREFIX, Engine, whole_shape
from lmscale.engine.masters import base_optimizer, held_slices, master_groups
from lmscale.engine.muon import Matrix, Muon
from lmscale.engine.optimizer import build_optimizer, plan_parameter_groups, reset_states
from lmscale.errors import ConfigError
from lmscale.ranks.collectives import gather_json
from lmscale.ranks.mesh import Mesh


def prepare_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for this device, quietly, and without its CPU extension.

    DeepSpeed 0.19.8 compiles a shared-memory extension at the first ``init_distributed`` on a CPU
    (75 s, and a killed build leaves a lock that hangs the next one). Only inference calls it, so
    it is marked as not there (comm/torch.py, build_shm_op).
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    # Else it runs `numactl` to count CPU devices, at ZeRO 3 in every backward pass.
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # torch 2.13 renames collectives that DeepSpeed 0.19.8 calls by their old names; a user can do
    # nothing about it. Retry without with the next DeepSpeed.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed  # imported here: it reads DS_ACCELERATOR as it loads
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # pyright: ignore
    _import_muon_uncompiled()
    return deepspeed


def _import_muon_uncompiled() -> None:
    """Spare every start of every rank the import of Inductor, a second or more of its core.

    Every ZeRO optimizer of DeepSpeed 0.19.8 imports its Muon, which hands a function to
    torch.compile as it loads (runtime/zero/muon/original_muon.py). Nobody calls it: engine/muon.py.
    """
    from deepspeed.runtime import compiler

    compile_ = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function  # pyright: ignore
    try:
        from deepspeed.runtime.zero.muon import original_muon  # noqa: F401
    finally:
        compiler.compile = compile_


def parameter_context(
    config: EngineConfig, plan: BatchPlan, device: torch.device
) -> AbstractContextManager[Any]:
    """Where a model must be built: at ZeRO 3 its parameters are dealt to the ranks as they are
    made.

    Needs the process group. Elsewhere the model is built whole.
    """
    if config.zero_stage != 3:
        return nullcontext()
    deepspeed = prepare_deepspeed(device)
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    mapping = render_deepspeed_config(config, plan=plan, num_parameters=1)
    # Its dtype argument is not given: 0.19.8 reads it with a wrong precedence and makes bf16 of
    # fp32 where there is no fp16 (partition_parameters.py, _set_dtype). The mapping says the same.
    return deepspeed.zero.Init(config_dict_or_path=mapping)


def gathered(parameter: torch.nn.Parameter) -> AbstractContextManager[Any]:
    """Make one parameter whole while it is written; all ranks enter together and write the same."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)


def build_engine(
    module: torch.nn.Module,
    kinds: Mapping[str, str],
    config: EngineConfig,
    *,
    plan: BatchPlan,
    mesh: Mesh,
    device: torch.device,
) -> Engine:
    """Wrap ``module``, whose parameters hold the initial weights, in DeepSpeed.

    ``kinds`` maps each parameter's name in the model to linear, head, embedding, norm or bias;
    those that need no gradient are frozen. Needs the process group. Raises ``ConfigError`` for a
    precision that the device cannot do.
    """
    check_precision(config, device)
    deepspeed = prepare_deepspeed(device)
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    parameters = {
        name.removeprefix(MODEL_PREFIX): parameter for name, parameter in module.named_parameters()
    }
    count = sum(getattr(p, "ds_numel", p.numel()) for p in parameters.values())
    trained = {name: kind for name, kind in kinds.items() if parameters[name].requires_grad}
    groups = plan_parameter_groups(trained, config.optimizer)
    with torch.no_grad():  # in the order of their elements, by which checkpoints address them
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.contiguous()
    with redirect_stdout(io.StringIO()):  # BF16_Optimizer prints memory tables as it is built
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=build_optimizer(parameters, kinds, config.optimizer),
            config=render_deepspeed_config(config, plan=plan, num_parameters=count),
            dist_init_required=False,
        )
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is not None and hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False  # the guard decides, with a message
    built = Engine(
        deepspeed=engine,
        config=config,
        plan=plan,
        mesh=mesh,
        device=device,
        methods={name: group.method for group in groups for name in group.names},
    )
    reset_states(base_optimizer(built), master_groups(built), config.optimizer)
    _check_methods(built)
    _bind_muon(built)
    if mesh.replicas.size == 1 and _reduces_in_place(engine):
        # One rank's sum is what it has: DeepSpeed 0.19.8 would still flatten, reduce and copy back
        # every gradient (engine.py, buffered_allreduce_fallback). The losses stay bit-identical.
        engine.enable_backward_allreduce = False
    return built


def _reduces_in_place(engine: Any) -> bool:
    """Whether the gradient reduction does nothing but the all-reduce: stage 0, and 1 in bf16.

    The other optimizers also move gradients into their partitions as they reduce.
    """
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    return engine.zero_optimization_stage() == 0 or isinstance(engine.optimizer, BF16_Optimizer)


def check_precision(config: EngineConfig, device: torch.device) -> None:
    """Refuse what would fail later and less clearly."""
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "engine.precision = fp16, but this rank has no GPU and DeepSpeed has no fp16 on a CPU. "
            "Use bf16 or fp32 here: --set engine.precision=bf16"
        )
    if config.precision == "bf16" and device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ConfigError(
                f"engine.precision = bf16, but {torch.cuda.get_device_name(device)} has no bf16 "
                "units. Use --set engine.precision=fp16"
            )


def _check_methods(engine: Engine) -> None:
    """That every trained parameter is where the optimizer it was planned for will find it.

    DeepSpeed has trained by another one than was asked for, without a word (#8438, #8441).
    """
    group_of = {id(master): group for master, group in master_groups(engine)}
    for held in held_slices(engine):
        method = group_of[id(held.master)]["method"]
        planned = engine.methods[held.parameter]
        assert method == planned, f"{held.parameter} is updated by {method}, not by {planned}"


def _bind_muon(engine: Engine) -> None:
    """Tell Muon which matrices, or parts of them, this rank's masters hold, and which the others'.

    A collective of all ranks.
    """
    optimizer = base_optimizer(engine)
    if not isinstance(optimizer, Muon):
        return
    masters = [master for master, _ in master_groups(engine)]
    index_of = {id(master): index for index, master in enumerate(masters)}
    held = {
        part.parameter: [index_of[id(part.master)], part.start, part.offset, part.elements]
        for part in held_slices(engine)
        if engine.methods[part.parameter] == "muon"
    }
    # At stage 0 every rank has everything, and does everything.
    of_ranks = [held] if engine.config.zero_stage == 0 else gather_json(held)
    matrices: dict[Tensor, list[Matrix]] = {master: [] for master in masters}
    for name, parameter in engine.trained_parameters():
        parts = [part[name] for part in of_ranks if name in part]
        if not parts:
            continue
        offsets = [offset for _, _, offset, _ in parts]
        assert offsets == sorted(offsets), f"{name}: its parts are not in the ranks' order"
        rows, columns = whole_shape(parameter)
        matrices[masters[parts[0][0]]].append(
            Matrix(
                shape=(rows, columns),
                start=held[name][1] if name in held else 0,
                elements_of=tuple(part[name][3] if name in part else 0 for part in of_ranks),
            )
        )
    optimizer.bind(matrices, engine.device)
