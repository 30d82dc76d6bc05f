"""The one file that spells DeepSpeed's keys. Every default is written out, because defaults move.

Between DeepSpeed 0.18 and 0.19.8 ``gradient_clipping`` went from 0 to 1.0 (#8068) and the bf16
overflow check from off to on (#8035). A test holds this file against the fields that DeepSpeed
itself declares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lmscale.config.data import BatchPlan
from lmscale.config.problems import describe_unknown
from lmscale.config.training import EngineConfig
from lmscale.errors import ConfigError

# Elements of a communication bucket. DeepSpeed's 5e8 allocates 2 GB of fp32 before the first step;
# on InfiniBand the gain flattens out well below (a bucket of 1e8 elements moves for milliseconds).
MAX_BUCKET_ELEMENTS = 200_000_000

# Whatever a key says that no batch has a part in.
ONE_RANK = BatchPlan(global_windows=1, data_ranks=1, micro_windows=1, accumulation=1)

# Sections that lmscale leaves out, but a person may add to look into DeepSpeed.
DIAGNOSTICS = ("comms_logger", "flops_profiler", "aio")

# What a person may not override: lmscale's own arithmetic rests on these.
RESERVED = {
    "train_batch_size": "batch.global_windows",
    "train_micro_batch_size_per_gpu": "batch.micro_windows",
    "gradient_accumulation_steps": "batch.micro_windows",
    "managed_gradient_accumulation": "nothing: the engine counts micro-batches by it",
    "gradient_allreduce_op": "nothing: the loss is scaled for the mean",
    "gradient_clipping": "engine.optimizer.clip_norm",
    "optimizer": "engine.optimizer",
    "scheduler": "engine.schedule",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.round_robin_gradients": "nothing: checkpoints rely on it",
    "zero_optimization.offload_optimizer": "engine.offload_optimizer",
    "zero_optimization.offload_param": "engine.offload_parameters",
    "bf16.enabled": "engine.precision",
    "bf16.bf16_master_weights_and_grads": "nothing: checkpoints hold fp32 masters",
    "bf16.bf16_optimizer_states": "nothing: checkpoints hold fp32 states",
    "fp16.enabled": "engine.precision",
}


def render_deepspeed_config(
    engine: EngineConfig, *, plan: BatchPlan, num_parameters: int
) -> dict[str, Any]:
    """The whole mapping that DeepSpeed is given, with ``engine.deepspeed`` merged in last.

    Raises ``ConfigError`` for a key that is set elsewhere or unknown, and a value for a section.
    """
    problems: list[str] = []
    mapping = _merge(_render_defaults(engine, plan, num_parameters), engine.deepspeed, "", problems)
    if problems:
        raise ConfigError(problems)
    return mapping


def _render_defaults(engine: EngineConfig, plan: BatchPlan, num_parameters: int) -> dict[str, Any]:
    return {
        "train_batch_size": plan.global_windows,
        "train_micro_batch_size_per_gpu": plan.micro_windows,
        "gradient_accumulation_steps": plan.accumulation,
        "managed_gradient_accumulation": True,
        "gradient_clipping": engine.optimizer.clip_norm,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "gradient_allreduce_op": "mean",  # of the ranks' sums: Engine.accumulate reckons with it
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        # On by default, and it waits for the device twice a micro-batch (utils/timer.py, 0.19.8).
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        "memory_breakdown": False,
        "dump_state": False,
        "log_level": "warning",
        "disable_python_gc": False,
        # torch's own AdamW stands in for DeepSpeedCPUAdam: fused, vectorised, nothing to compile.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": engine.optimizer.kind != "adamw",
        # Sums over ranks in fp32, so that the number of ranks moves the result least (as
        # torchtitan does).
        "communication_data_type": "fp32",
        # Micro-batches accumulate in fp32. At stage 0 DeepSpeed refuses to be told so (engine.py,
        # _do_optimizer_sanity_check), and torch is (build.py, _accumulate_in_fp32).
        "data_types": {
            "grad_accum_dtype": None if engine.zero_stage == 0 else "fp32",
            "param_dtype": None,
            "buffer_dtype": None,
        },
        "bf16": {
            "enabled": engine.precision == "bf16",
            "immediate_grad_update": False,
            "check_grad_overflow": True,
            "bf16_master_weights_and_grads": False,
            "bf16_optimizer_states": False,
        },
        "fp16": {
            "enabled": engine.precision == "fp16",
            "auto_cast": False,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": engine.loss_scale.initial_power,
            "loss_scale_window": engine.loss_scale.window,
            "hysteresis": engine.loss_scale.hysteresis,
            "consecutive_hysteresis": False,
            "min_loss_scale": engine.loss_scale.minimum,
            "fp16_master_weights_and_grads": False,
        },
        "torch_autocast": {"enabled": False},
        "zero_optimization": _zero(engine, plan, num_parameters),
    }


def find_override_problems(config: Any) -> Iterator[str]:
    """What ``engine.deepspeed`` may not say, on however many ranks: the keys are the same."""
    problems: list[str] = []
    _merge(_render_defaults(config.engine, ONE_RANK, 1), config.engine.deepspeed, "", problems)
    yield from problems


def has_shortcuts(engine: EngineConfig) -> bool:
    """Whether ZeRO is built without what the run does not need: engine/shortcuts.py."""
    is_offloaded = engine.offload_optimizer or engine.offload_parameters
    return not (is_offloaded or "zero_optimization" in engine.deepspeed)


def _zero(engine: EngineConfig, plan: BatchPlan, num_parameters: int) -> dict[str, Any]:
    # A multiple of DeepSpeed's alignment (2 elements), or it refuses.
    bucket = min(MAX_BUCKET_ELEMENTS, -(-num_parameters // 1024) * 1024)
    return {
        "stage": engine.zero_stage,
        "contiguous_gradients": True,
        # ZeRO 1 and 2 all-reduce either way (use_multi_rank_bucket_allreduce). With it they divide
        # in 16 bit, and flatten and copy gradients once more (stage_1_and_2.py, average_tensor).
        "reduce_scatter": engine.zero_stage == 3 or not has_shortcuts(engine),
        "reduce_bucket_size": bucket,
        "use_multi_rank_bucket_allreduce": True,
        "allgather_partitions": True,
        "allgather_bucket_size": bucket,
        "overlap_comm": None,  # DeepSpeed: on at stage 3, off below
        "compute_grad_norm": True,
        "load_from_fp32_weights": True,
        "elastic_checkpoint": False,
        "offload_param": dict(_OFFLOAD_PARAMETERS) if engine.offload_parameters else None,
        "offload_optimizer": dict(_OFFLOAD_OPTIMIZER) if engine.offload_optimizer else None,
        "zenflow": None,
        "sub_group_size": 1_000_000_000,
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_param_persistence_threshold": 100_000,
        "stage3_model_persistence_threshold": 2**63 - 1,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
        "stage3_gather_16bit_weights_on_model_save": False,
        "stage3_module_granularity_threshold": 0,
        "stage3_use_all_reduce_for_fetch_params": False,
        "stage3_allgather_sequential": False,
        "ignore_unused_parameters": True,
        "legacy_stage1": False,
        # False, so that a parameter's place in the flat group is its place in the model:
        # checkpoint/fragments.py reads it off DeepSpeed's fragment addresses.
        "round_robin_gradients": False,
        "parameter_alignment": False,
        "zero_hpz_partition_size": 1,
        "zero_quantized_weights": False,
        "zero_quantized_nontrainable_weights": False,
        "zero_quantized_gradients": False,
        # Its own torch.nn.functional.linear, of Python, lets go of weights that come and go.
        "memory_efficient_linear": plan.data_ranks > 1 or not has_shortcuts(engine),
        "pipeline_loading_checkpoint": False,
        "override_module_apply": True,
        "log_trace_cache_warnings": False,
        "enable_sanity_checks": False,
        "save_muon_momentum_buffer_in_memory": False,
        # leaf_module is left out: 0.19.8 warns when what it names is not in the model, and its
        # defaults name classes of transformers.
    }


_OFFLOAD_PARAMETERS: dict[str, Any] = {
    "device": "cpu",
    "nvme_path": None,
    "buffer_count": 5,
    "buffer_size": 100_000_000,
    "max_in_cpu": 1_000_000_000,
    "pin_memory": True,
}
_OFFLOAD_OPTIMIZER: dict[str, Any] = {
    "device": "cpu",
    "nvme_path": None,
    "buffer_count": 4,
    "pin_memory": True,
    "pipeline_read": False,
    "pipeline_write": False,
    "fast_init": False,
    "ratio": 1.0,
    "super_offload": False,
    "cpuadam_cores_perc": 0.8,
}


def _merge(
    base: dict[str, Any], override: Mapping[str, Any], path: str, problems: list[str]
) -> dict[str, Any]:
    """``base`` with the override's keys, as far as they may be given: others become problems.

    A key that is not in ``base`` DeepSpeed would ignore without a word: it reads no other.
    """
    merged = dict(base)
    for key, value in override.items():
        name, below = f"{path}{key}", base.get(key)
        where = f"engine.deepspeed.{name}"
        if name in RESERVED:
            problems.append(
                f"{where}: set {RESERVED[name]} instead; lmscale's own arithmetic rests on it."
            )
        elif key not in base and name not in DIAGNOSTICS:
            valid_keys = list(base) if path else [*base, *DIAGNOSTICS, "optimizer", "scheduler"]
            problems.append(f"{where}: {describe_unknown(key, valid_keys)}")
        elif isinstance(below, dict) and isinstance(value, Mapping):
            merged[key] = _merge(below, value, f"{name}.", problems)
        elif isinstance(below, dict) and not path:
            problems.append(f"{where}: give a mapping of single keys, not {value!r}.")
        else:
            merged[key] = value
    return merged
