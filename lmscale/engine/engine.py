"""The DeepSpeed engine behind a small surface: accumulate a step's gradient, then update."""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmscale.config.batch import BatchPlan
from lmscale.config.training import EngineConfig
from lmscale.engine.deepspeed_config import render_deepspeed_config
from lmscale.engine.optimizer import build_optimizer, reset_states
from lmscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one optimizer step did."""

    gradient_norm: float  # global, before clipping; inf when not finite
    is_skipped: bool  # a gradient overflowed, the weights did not change
    loss_scale: float  # 1 unless fp16


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A model under DeepSpeed. ``deepspeed`` is its engine; nobody but checkpoint/ looks inside."""

    deepspeed: Any
    config: EngineConfig
    plan: BatchPlan
    device: torch.device
    name_prefix: str = ""  # what the objective puts before the model's own parameter names

    @property
    def module(self) -> torch.nn.Module:
        return self.deepspeed.module

    def __call__(self, *inputs: Tensor) -> Any:
        """One forward pass, through DeepSpeed's hooks."""
        return self.deepspeed(*inputs)

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The model's parameters by the names they have without the objective around it."""
        for name, parameter in self.module.named_parameters():
            yield name.removeprefix(self.name_prefix), parameter

    def accumulate(self, losses: Iterable[Callable[[], Tensor]], *, targets: int) -> None:
        """Add up the gradient of one step.

        Each element of ``losses``, called, runs one forward pass and returns its summed loss, f32
        []. The gradient is that of the sum over all micro-batches and ranks divided by
        ``targets``, the step's global target count: DeepSpeed averages over ranks, hence the
        factor world size.
        """
        scale = self.plan.world_size / targets
        for forward in losses:
            loss = forward() * scale
            self.deepspeed.backward(loss, scale_wrt_gas=False)
            if not self.deepspeed.is_gradient_accumulation_boundary():
                self.deepspeed.step()  # counts the micro-batch; the last one is counted by update()

    def update(self, *, learning_rate: float) -> Update:
        """Clip, take one AdamW step, and clear the gradient."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        plain_norm = None
        if isinstance(self.deepspeed.optimizer, torch.optim.Optimizer):
            # Stage 0 in fp32: torch's bare optimizer, for which DeepSpeed keeps no norm.
            gradients = [p.grad for _, p in self.named_parameters() if p.grad is not None]
            plain_norm = float(torch.nn.utils.get_total_norm(gradients))
        skipped_before, scale_before = self.deepspeed.skipped_steps, self.loss_scale
        self.deepspeed.step()
        norm = self.deepspeed.get_global_grad_norm() if plain_norm is None else plain_norm
        unscaled = math.nan if norm is None else float(norm) / self._norm_scale(scale_before)
        return Update(
            gradient_norm=unscaled,
            is_skipped=self.deepspeed.skipped_steps > skipped_before,
            loss_scale=self.loss_scale,
        )

    def _norm_scale(self, scale_before: float) -> float:
        """What is left of the gradient's loss scale in the norm that DeepSpeed 0.19.8 gives.

        All of it at stage 0 (fp16/unfused_optimizer.py: "norm is in fact norm*scale"); at stage 3
        what one update of the scale changed, as it divides by the new one (stage3.py, step).
        """
        if self.config.zero_stage == 0:
            return scale_before
        return scale_before / self.loss_scale if self.config.zero_stage == 3 else 1.0

    @property
    def loss_scale(self) -> float:
        if self.config.precision != "fp16":
            return 1.0
        return float(self.deepspeed.optimizer.loss_scale)


def prepare_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for this device, quietly, and without its CPU extension.

    DeepSpeed 0.19.8 compiles a shared-memory extension at the first ``init_distributed`` on a CPU
    (75 s, and a killed build leaves a lock that hangs the next one). Only inference calls it, so
    it is marked as not there (comm/torch.py, build_shm_op).
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
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
    torch.compile as it loads (runtime/zero/muon/original_muon.py); AdamW never calls it.
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
    device: torch.device,
    name_prefix: str = "",
) -> Engine:
    """Wrap ``module``, whose parameters hold the initial weights, in DeepSpeed.

    ``kinds`` maps each parameter's name (without ``name_prefix``) to linear, embedding, norm or
    bias. Needs the process group. Raises ``ConfigError`` for a precision that the device cannot do.
    """
    check_precision(config, device)
    deepspeed = prepare_deepspeed(device)
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    parameters = {
        name.removeprefix(name_prefix): parameter for name, parameter in module.named_parameters()
    }
    count = sum(getattr(p, "ds_numel", p.numel()) for p in parameters.values())
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
        deepspeed=engine, config=config, plan=plan, device=device, name_prefix=name_prefix
    )
    reset_states(base_optimizer(built), master_tensors(built))
    if plan.world_size == 1 and _reduces_in_place(engine):
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
                "units. "
                "Use --set engine.precision=fp16"
            )


def base_optimizer(engine: Engine) -> torch.optim.Optimizer:
    """torch's optimizer under whatever DeepSpeed has put around it."""
    outer = engine.deepspeed.optimizer
    return outer if isinstance(outer, torch.optim.Optimizer) else outer.optimizer


def master_tensors(engine: Engine) -> list[Tensor]:
    """The fp32 tensors that this rank's optimizer updates."""
    outer = engine.deepspeed.optimizer
    if engine.config.zero_stage == 3:
        return list(outer.fp32_partitioned_groups_flat)
    return [master for group in base_optimizer(engine).param_groups for master in group["params"]]
