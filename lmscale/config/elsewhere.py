"""What a setting of another trainer is called here.

The names are those of Megatron-LM (M), GPT-NeoX (N), torchtitan (T), OLMo-core (O), llm-foundry
(F), transformers' Trainer and model configurations (H), DeepSpeed (D) and nanoGPT (G). A name that
lmscale has too, in one place, needs no line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

BATCH = (
    "Here a step's size is one number, batch.global_windows = windows (sequences) of a micro-batch "
    "× gradient accumulation steps × ranks, and batch.micro_windows is the most of a micro-batch; "
    "the accumulation follows"
)
_MICRO = (
    *("micro_batch_size", "train_micro_batch_size_per_gpu", "per_device_train_batch_size"),  # M D H
    *("per_gpu_train_batch_size", "device_train_microbatch_size", "local_batch_size"),  # H F T
    *("batch_size", "mbs"),  # G
)
_ACCUMULATION = (
    *("gradient_accumulation_steps", "gradient_accumulation", "grad_accum_steps"),  # H N D G
    *("accumulate_grad_batches", "accumulation_steps", "gas"),
)
_GLOBAL = (
    "Here this is batch.global_windows, in windows (sequences) over all ranks. OLMo-core's, which "
    "counts tokens, divided by stream.sequence_length"
)
_RANK_TOKENS = (
    "Here this is batch.micro_windows, in windows (sequences): the tokens / stream.sequence_length"
)
_WARMUP = "Here this is engine.schedule.warmup_steps, in steps: the fraction × train.steps"
_FLOOR = "Here this is engine.schedule.final_ratio, relative to engine.optimizer.lr: min_lr / lr"
_PRECISION = "Here this is engine.precision: bf16, fp16 or fp32"
_BETAS = "Here this is engine.optimizer.betas: [BETA1, BETA2]"
RAW = (
    "Raw files are corpus.sources.NAME.inputs here; what is trained on is stream.sources.NAME."
    "shards, a folder of lmscale shards build (docs/your-own-text.md)"
)
TOKENIZER = (
    "Here this is tokenizer.folder, which lmscale tokenizer train fills; lmscale tokenizer import "
    "takes another program's tokenizer"
)
RESUME = (
    "Nothing needs to be set: a run goes on from the newest sound checkpoint of its folder "
    "(run.folder) when the same command is given again. To begin with another run's weights: "
    "run.init_from"
)
SAVE = "Here this is checkpoint.folder, by default RUN/checkpoints; the run's own is run.folder"
_EPOCHS = (
    "Here a run is train.steps steps long; lmscale stream show CONFIG prints how many epochs they "
    "make of every source"
)
_TOKENS = (
    "Here a run is train.steps steps long: the tokens / (batch.global_windows × "
    "stream.sequence_length)"
)
RECOMPUTE = "Here this is model.activation_checkpoint_every: 1 recomputes every block"
MODEL_PARALLEL = (
    "lmscale splits a model's states by engine.zero_stage alone, and has no tensor, pipeline, "
    "context or expert parallelism; leave it out"
)
_TRACKERS = "Every run writes TensorBoard events and metrics.jsonl into its folder; leave it out"
_ROPE = "Here this is model.rope_theta"
_TIED = "Here this is model.tied_embeddings: true or false"

ELSEWHERE: Mapping[str, str] = {
    # Where there is no sentence, "Here this is " is said before it.
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim"), "model.width"),
    **dict.fromkeys(
        ("num_layers", "n_layer", "n_layers", "num_hidden_layers", "encoder_num_layers"),
        "model.layers",
    ),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), "model.heads"),
    **dict.fromkeys(
        ("num_key_value_heads", "num_query_groups", "n_kv_heads", "num_kv_heads", "kv_n_heads"),
        "model.kv_heads",
    ),
    **dict.fromkeys(("head_dim", "kv_channels", "d_head", "d_kv"), "model.head_width"),
    **dict.fromkeys(
        ("intermediate_size", "ffn_hidden_size", "n_inner", "d_ff", "ffn_dim", "ffn_size"),
        "model.ffn_width",
    ),
    "expansion_ratio": "Here this is model.ffn_width, a number of its own: the ratio × model.width",
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"),
        "model.max_positions",
    ),
    **dict.fromkeys(("hidden_act", "activation_function"), "model.activation"),
    "swiglu": "Here this is model.activation: swiglu",
    **dict.fromkeys(
        ("norm_epsilon", "rms_norm_eps", "layer_norm_eps", "layernorm_epsilon")
        + ("layer_norm_epsilon", "rms_norm_epsilon"),
        "model.norm_eps",
    ),
    "normalization": "Here this is model.norm: rmsnorm or layernorm; corpus.normalization is that "
    "of Unicode",
    **dict.fromkeys(
        ("pos_emb", "position_embedding_type", "position_embeddings"), "model.positions"
    ),
    **dict.fromkeys(("rotary_base", "rotary_emb_base", "rope_base"), _ROPE),
    **dict.fromkeys(("tie_word_embeddings", "tie_embeddings", "weight_tying"), _TIED),
    **dict.fromkeys(
        ("untie_embeddings_and_output_weights", "no_weight_tying"), f"{_TIED}, the other way round"
    ),
    **dict.fromkeys(
        (
            "dropout",
            "hidden_dropout",
            "attention_dropout",
            "resid_pdrop",
            "attn_pdrop",
            "embd_pdrop",
        )
        + ("attn_dropout", "hidden_dropout_prob"),
        "model.dropout",
    ),
    **dict.fromkeys(("initializer_range", "init_method_std"), "model.init_std"),
    **dict.fromkeys(("attention_bias", "add_qkv_bias"), "model.qkv_bias"),
    **dict.fromkeys(("qk_layernorm", "qk_norm_type"), "model.qk_norm"),
    "sliding_window": "model.sliding_windows",
    "vocab_size": "Here this is tokenizer.vocab_size, of which the embedding's rows follow, or "
    "model.vocab_size",
    "padded_vocab_size": "model.vocab_size",
    "make_vocab_size_divisible_by": "The embedding has the next multiple of 128 rows, or "
    "model.vocab_size",
    **dict.fromkeys(
        ("gradient_checkpointing", "activation_checkpointing", "checkpoint_activations")
        + ("checkpoint_num_layers",)
        + ("recompute_granularity", "recompute_activations", "ac_config"),
        RECOMPUTE,
    ),
    **dict.fromkeys(
        ("seq_length", "seq_len", "max_seq_len", "max_seq_length", "block_size", "context_length")
        + ("model_max_length",),
        "stream.sequence_length",
    ),
    **dict.fromkeys(
        ("num_workers", "dataloader_num_workers", "data_loader_workers"), "stream.workers"
    ),
    **dict.fromkeys(("dataloader_prefetch_factor", "prefetch_factor"), "stream.prefetch_steps"),
    **dict.fromkeys((*_MICRO, *_ACCUMULATION), BATCH),
    **dict.fromkeys(("global_batch_size", "train_batch_size", "global_train_batch_size"), _GLOBAL),
    "rank_microbatch_size": _RANK_TOKENS,
    "rampup_batch_size": "Here this is batch.warmup: rows of [steps, windows]",
    "learning_rate": "engine.optimizer.lr",
    **dict.fromkeys(("optimizer_type", "optim"), "engine.optimizer.kind"),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "beta1", "beta2"), _BETAS),
    **dict.fromkeys(("adam_eps", "adam_epsilon"), "engine.optimizer.eps"),
    **dict.fromkeys(
        ("clip_grad", "grad_clip", "gradient_clipping", "max_grad_norm", "max_norm"),
        "engine.optimizer.clip_norm",
    ),
    **dict.fromkeys(("lr_scheduler_type", "lr_decay_style", "decay_type"), "engine.schedule.kind"),
    **dict.fromkeys(("lr_scheduler", "scheduler"), "engine.schedule"),
    **dict.fromkeys(
        ("lr_warmup_iters", "warmup_iters", "t_warmup", "num_warmup_steps"),
        "engine.schedule.warmup_steps",
    ),
    **dict.fromkeys(("lr_warmup_fraction", "warmup_ratio", "warmup_fraction", "warmup"), _WARMUP),
    "lr_warmup_samples": _WARMUP.partition(":")[0],
    **dict.fromkeys(
        ("lr_decay_iters", "lr_decay_steps", "decay_iters"), "engine.schedule.decay_steps"
    ),
    "min_lr": _FLOOR,
    **dict.fromkeys(
        ("lr_min", "alpha_f", "min_lr_factor", "min_lr_ratio", "min_lr_rate"),
        "engine.schedule.final_ratio",
    ),
    "train_data_weights": "stream.sources.NAME.weight",
    "init_method": "Here this is model.init_std, of a normal distribution",
    "wall_clock_breakdown": "Here this is lmscale launch local CONFIG --profile A:B",
    **dict.fromkeys(
        ("bias_gelu_fusion", "bias_dropout_fusion", "rope_fusion", "layernorm_fusion")
        + ("masked_softmax_fusion", "scaled_upper_triang_masked_softmax_fusion"),
        "Here kernels are fused by engine.compile",
    ),
    "decay_lr": "Here this is engine.schedule.kind: constant never decays",
    **dict.fromkeys(("bf16", "fp16", "bfloat16", "mixed_precision", "dtype", "amp"), _PRECISION),
    **dict.fromkeys(("mixed_precision_param", "params_dtype", "torch_dtype"), _PRECISION),
    **dict.fromkeys(
        ("zero_optimization", "zero_optimization_stage", "zero"),
        "Here this is engine.zero_stage; single keys of DeepSpeed stand in engine: {deepspeed: …}",
    ),
    **dict.fromkeys(
        ("use_distributed_optimizer", "fsdp", "fsdp_config", "sharding_strategy")
        + ("data_parallel_shard_degree", "dp_config"),
        "Here this is engine.zero_stage: 1 shards the optimizer's states, 2 gradients too, 3 all",
    ),
    "deepspeed_config": "Here single keys of DeepSpeed stand in engine: {deepspeed: …}",
    **dict.fromkeys(("torch_compile", "compile_model"), "engine.compile"),
    **dict.fromkeys(
        ("cpu_offload", "offload", "enable_cpu_offload", "optimizer_cpu_offload"),
        "Here this is engine.offload_optimizer and engine.offload_parameters",
    ),
    **dict.fromkeys(
        ("initial_loss_scale", "initial_scale_power"), "engine.loss_scale.initial_power"
    ),
    "loss_scale_window": "engine.loss_scale.window",
    "min_loss_scale": "engine.loss_scale.minimum",
    "loss_scale": "Here loss scaling is dynamic, in fp16 alone: engine.loss_scale",
    **dict.fromkeys(
        (
            "train_iters",
            "max_iters",
            "max_steps",
            "num_train_steps",
            "total_steps",
            "training_steps",
        ),
        "train.steps",
    ),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "epochs", "max_epochs"), _EPOCHS),
    **dict.fromkeys(("max_duration", "train_samples", "max_tokens", "train_tokens"), _TOKENS),
    **dict.fromkeys(
        ("log_interval", "logging_steps", "steps_per_print", "log_freq", "console_log_interval"),
        "train.log_every_steps",
    ),
    **dict.fromkeys(
        ("save_steps", "save_interval", "checkpoint_factor", "checkpoint_interval")
        + ("ckpt_interval", "checkpoint_every"),
        "checkpoint.every_steps",
    ),
    **dict.fromkeys(
        ("save_total_limit", "keep_last_n_checkpoints", "save_num_checkpoints_to_keep")
        + ("keep_latest_k", "max_checkpoints"),
        "checkpoint.keep_last",
    ),
    **dict.fromkeys(("async_save", "async_mode"), "checkpoint.asynchronous"),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model"), "checkpoint.keep_best.metric"
    ),
    **dict.fromkeys(("save", "save_dir", "save_folder", "checkpoint_dir"), SAVE),
    **dict.fromkeys(("output_dir", "out_dir", "dump_folder"), "run.folder"),
    **dict.fromkeys(("load", "resume", "resume_from_checkpoint", "autoresume"), RESUME),
    **dict.fromkeys(
        ("load_path", "load_dir", "initial_load_path", "pretrained_checkpoint")
        + ("pretrained", "model_name_or_path", "finetune"),
        "Here this is run.init_from, for a run of lmscale; lmscale import makes a run of a folder "
        "of transformers",
    ),
    **dict.fromkeys(("run_name", "experiment_name", "job_name", "wandb_run_name"), "run.name"),
    **dict.fromkeys(("global_seed", "random_seed", "data_seed", "init_seed"), "run.seed"),
    **dict.fromkeys(
        ("tokenizer_path", "tokenizer_model", "tokenizer_name", "tokenizer_name_or_path")
        + ("tokenizer_type", "hf_assets_path", "vocab_file", "merge_file"),
        TOKENIZER,
    ),
    **dict.fromkeys(
        ("data_path", "train_data_path", "train_data_paths", "dataset", "dataset_path")
        + ("dataset_name", "data", "data_dir", "data_local", "data_remote", "data_paths")
        + ("train_file", "train_files", "data_impl", "train_dataset", "train_loader", "paths"),
        RAW,
    ),
    **dict.fromkeys(
        ("valid_data_path", "valid_data_paths", "validation_file", "eval_dataset", "eval_loader"),
        "Here these are evaluation.sets: NAME: FOLDER; corpus.heldout_fraction makes one of each "
        "source",
    ),
    **dict.fromkeys(("split", "validation_split"), "corpus.heldout_fraction"),
    **dict.fromkeys(
        ("eval_interval", "eval_steps", "eval_every", "eval_freq"), "evaluation.every_steps"
    ),
    **dict.fromkeys(
        ("eval_iters", "max_eval_samples", "eval_batches", "eval_subset_num_batches"),
        "Here this is evaluation.max_windows, in windows of every set",
    ),
    **dict.fromkeys(("eval_tasks", "icl_tasks"), "evaluation.tasks"),
    "early_stopping_patience": "evaluation.stop.patience",
    "label_smoothing_factor": "objective.label_smoothing",
    **dict.fromkeys(("z_loss_multiplier", "z_loss_weight"), "objective.z_loss"),
    **dict.fromkeys(("lora_r", "lora_rank"), "model.lora.rank"),
    **dict.fromkeys(
        ("tensor_model_parallel_size", "pipeline_model_parallel_size", "model_parallel_size")
        + ("pipe_parallel_size", "context_parallel_size", "expert_model_parallel_size")
        + ("tensor_parallel_degree", "pipeline_parallel_degree", "context_parallel_degree")
        + ("partition_activations", "output_layer_parallelism", "enable_async_tensor_parallel")
        + ("expert_parallel_degree", "sequence_parallel", "tp_config", "pp_config", "num_experts"),
        MODEL_PARALLEL,
    ),
    **dict.fromkeys(
        ("report_to", "use_wandb", "wandb_project", "wandb_log", "tensorboard_dir", "logging_dir")
        + ("enable_tensorboard", "enable_wandb", "loggers"),
        _TRACKERS,
    ),
    **dict.fromkeys(
        ("nproc_per_node", "num_gpus", "n_gpus", "num_nodes", "world_size", "num_processes"),
        "The number of ranks is no setting of a run, which may go on with another: lmscale launch "
        "local --nproc N, or launch slurm --nodes N",
    ),
}


def describe_elsewhere(
    key: str, value: Any, beside: Mapping[str, Any], tree: Mapping[str, Any]
) -> str | None:
    """Where another trainer's setting is here, with the arithmetic; None for a name of nobody's.

    ``beside``: the keys that stand beside it, of which some arithmetic takes another factor.
    """
    name = key.lower().replace("-", "_").lstrip("_")
    found = ELSEWHERE.get(name)
    if found is None:
        return None
    return f"{begin_answer(found)}{_calculate(name, value, beside, tree)}."


def begin_answer(found: str) -> str:
    """An answer as it stands in a table, where the mere name of a key stands for a sentence."""
    return found if " " in found else f"Here this is {found}"


def _calculate(name: str, value: Any, beside: Mapping[str, Any], tree: Mapping[str, Any]) -> str:
    """`` (here …)`` of the numbers that are there; "" without them."""
    if name in _MICRO or name in _ACCUMULATION:
        micro = value if name in _MICRO else _first(beside, _MICRO)
        accumulation = value if name in _ACCUMULATION else _first(beside, _ACCUMULATION)
        if not (_is_count(micro) and _is_count(accumulation)):
            return ""
        return f": {micro} × {accumulation} × ranks = {micro * accumulation} × ranks"
    if ELSEWHERE[name] is _WARMUP and _is_number(value) and 0 < value < 1:
        steps = _inside(tree, "train", "steps") or _first(beside, ("train_iters", "max_steps"))
        if _is_count(steps):
            return f" = {round(value * steps)}"
    if name == "min_lr" and _is_number(value):
        rate = _inside(tree, "engine", "optimizer", "lr") or _first(beside, ("lr", "learning_rate"))
        if _is_number(rate) and rate:
            return f" = {value / rate:.4g}"
    return ""


def _inside(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _first(beside: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((beside[name] for name in names if name in beside), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9
