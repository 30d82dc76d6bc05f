"""A module under DeepSpeed: contexts, checks, and the engine itself."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lmscale.config.data import BatchPlan
from lmscale.config.deepspeed_config import render_deepspeed_config
from lmscale.config.training import EngineConfig
from lmscale.engine.adafactor import Adafactor, FactoredPart, plan_factored
from lmscale.engine.average import keep_average
from lmscale.engine.engine import MODEL_PREFIX, Engine, whole_shape
from lmscale.engine.masters import base_optimizer, held_slices, master_groups
from lmscale.engine.muon import Matrix, Muon, plan_matrices
from lmscale.engine.optimizer import build_optimizer, plan_parameter_groups, reset_states
from lmscale.engine.shortcuts import take_shortcuts
from lmscale.engine.zeros import keep_zeros
from lmscale.errors import ConfigError
from lmscale.model.initialize import Declared
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
    mapping = _render_checked(config, plan, num_parameters=1)
    # Its dtype argument is not given: 0.19.8 reads it with a wrong precedence and makes bf16 of
    # fp32 where there is no fp16 (partition_parameters.py, _set_dtype). The mapping says the same.
    return deepspeed.zero.Init(config_dict_or_path=mapping)


def _render_checked(config: EngineConfig, plan: BatchPlan, *, num_parameters: int) -> Any:
    """DeepSpeed's mapping. Raises ``ConfigError`` for overrides that it does not take."""
    mapping = render_deepspeed_config(config, plan=plan, num_parameters=num_parameters)
    if config.deepspeed:
        from deepspeed.runtime.config import DeepSpeedConfig

        try:
            DeepSpeedConfig(mapping)
        except (ValueError, TypeError, AssertionError, KeyError, AttributeError) as error:
            said = " ".join(str(error).split())[:500]
            raise ConfigError(
                f"engine.deepspeed: DeepSpeed refuses it: {type(error).__name__}: {said}. Correct "
                "its keys, or leave them out."
            ) from error
    return mapping


def gathered(parameter: torch.nn.Parameter) -> AbstractContextManager[Any]:
    """Make one parameter whole while it is written; all ranks enter together and write the same."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)


def build_engine(
    module: torch.nn.Module,
    declared: Mapping[str, Declared],
    config: EngineConfig,
    *,
    plan: BatchPlan,
    mesh: Mesh,
    device: torch.device,
) -> Engine:
    """Wrap ``module``, whose parameters hold the initial weights, in DeepSpeed.

    ``declared`` is what the model's modules say of each parameter, by its name in the model; those
    that need no gradient are frozen. Needs the process group. Raises ``ConfigError`` for a
    precision that the device cannot do.
    """
    check_precision(config, device)
    deepspeed = prepare_deepspeed(device)
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    parameters = {
        name.removeprefix(MODEL_PREFIX): parameter for name, parameter in module.named_parameters()
    }
    count = sum(getattr(p, "ds_numel", p.numel()) for p in parameters.values())
    trained = {name: what for name, what in declared.items() if parameters[name].requires_grad}
    groups = plan_parameter_groups(trained, config.optimizer)
    with torch.no_grad():  # in the order of their elements, by which checkpoints address them
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.contiguous()
    with redirect_stdout(io.StringIO()):  # BF16_Optimizer prints memory tables as it is built
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=build_optimizer(parameters, declared, config.optimizer),
            config=_render_checked(config, plan, num_parameters=count),
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
    _bind_muon(built, declared)
    _bind_adafactor(built, declared)
    keep_average(built)
    if config.keep_zeros:
        keep_zeros(built)
    if config.zero_stage == 0:
        _accumulate_in_fp32(built)
    take_shortcuts(engine, config, replicas=mesh.replicas.size)
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
    assert config.precision != "auto", (
        "auto is settled before an engine is built: train/precision.py"
    )
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


def _accumulate_in_fp32(engine: Engine) -> None:
    """Let autograd add up each parameter's gradient in fp32, whatever the parameter's dtype.

    DeepSpeed 0.19.8 leaves the sum at stage 0 to autograd, which takes the parameter's dtype: in
    bf16, of 8 bits, a micro-batch is lost as soon as the sum is 256 times as large. What DeepSpeed
    does with the sum, it does in any dtype.
    """
    for _, parameter in engine.trained_parameters():
        parameter.grad_dtype = torch.float32


def _check_methods(engine: Engine) -> None:
    """That every trained parameter is where the optimizer it was planned for will find it.

    DeepSpeed has trained by another one than was asked for, without a word (#8438, #8441).
    """
    group_of = {id(master): group for master, group in master_groups(engine)}
    for piece in held_slices(engine):
        method = group_of[id(piece.master)]["method"]
        planned = engine.methods[piece.parameter]
        assert method == planned, f"{piece.parameter} is updated by {method}, not by {planned}"


def _bind_muon(engine: Engine, declared: Mapping[str, Declared]) -> None:
    """Tell Muon which matrices, or pieces of them, this rank's masters hold, and which the others'.

    A collective of all ranks.
    """
    optimizer = base_optimizer(engine)
    if not isinstance(optimizer, Muon):
        return
    masters = [master for master, _ in master_groups(engine)]
    own_pieces, of_ranks = _gather_pieces(engine, masters, "muon")
    # At stage 0 every rank has everything, and does everything.
    is_whole = engine.config.zero_stage == 0
    matrices: dict[Tensor, list[Matrix]] = {master: [] for master in masters}
    for name, parameter in engine.trained_parameters():
        pieces = [pieces[name] for pieces in of_ranks if name in pieces]
        if not pieces:
            continue
        spans = [span for _, _, span in pieces]
        assert spans == sorted(spans), f"{name}: its pieces are not in the ranks' order"
        rows, columns = whole_shape(parameter)
        matrices[masters[pieces[0][0]]] += plan_matrices(
            declared[name].parts or (rows,),
            columns,
            held=[pieces[name][2] if name in pieces else (0, 0) for pieces in of_ranks],
            rank=0 if is_whole else dist.get_rank(),
            start=own_pieces[name][1] if name in own_pieces else 0,
        )
    optimizer.bind(matrices, engine.device)


def _bind_adafactor(engine: Engine, declared: Mapping[str, Declared]) -> None:
    """Tell Adafactor what this rank's masters hold of every matrix. A collective of all ranks."""
    optimizer = base_optimizer(engine)
    if not isinstance(optimizer, Adafactor):
        return
    masters = [master for master, _ in master_groups(engine)]
    own_pieces, of_ranks = _gather_pieces(engine, masters, "adafactor")
    parts: dict[Tensor, list[FactoredPart]] = {master: [] for master in masters}
    for name, parameter in engine.trained_parameters():
        index = next(pieces[name][0] for pieces in of_ranks if name in pieces)
        _, start, held = own_pieces.get(name, (index, 0, (0, 0)))
        parts[masters[index]] += plan_factored(
            name, whole_shape(parameter), declared[name].parts, held=held, start=start
        )
    optimizer.bind(parts, engine.device, is_dealt=engine.config.zero_stage > 0)


Pieces = dict[str, Any]  # parameter → [which master, start in it, (from, to) in the parameter]


def _gather_pieces(
    engine: Engine, masters: Sequence[Tensor], method: str
) -> tuple[Pieces, list[Pieces]]:
    """This rank's pieces of the parameters that ``method`` updates, and those of all ranks that
    hold different ones: at stage 0 the first's stand for all.
    """
    index_of = {id(master): index for index, master in enumerate(masters)}
    own_pieces: Pieces = {
        piece.parameter: [
            index_of[id(piece.master)],
            piece.start,
            (piece.offset, piece.offset + piece.elements),
        ]
        for piece in held_slices(engine)
        if engine.methods[piece.parameter] == method
    }
    is_whole = engine.config.zero_stage == 0
    return own_pieces, [own_pieces] if is_whole else gather_json(own_pieces)
