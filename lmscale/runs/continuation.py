"""May a run go on in its folder with its configuration? Only looks. beginnings.py: may it begin?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from lmscale.config.kinds import KindSection
from lmscale.config.load import load_config
from lmscale.config.run import RunConfig
from lmscale.errors import ConfigError, LmscaleError
from lmscale.files.run_files import (
    COMMITS_FILE,
    CONFIG_FILE,
    FAULTS_FILE,
    RESUMES_FILE,
    SAVE_FILE,
    SLURM_FOLDER,
    STOP_FILE,
    WATCH_FILE,
)
from lmscale.runs.commits import read_commits
from lmscale.runs.given_weights import refuse_training


class Change(Enum):
    """What becomes of a run that goes on with another value of a setting."""

    FREE = "free"
    TRAINING = "told"  # free, and changes the training: the log tells both values
    FIXED = "fixed"  # its checkpoints or its samples would not fit: refused before anything runs


# Every key of the configuration. A key of ``model`` or ``objective`` that is not here is of an
# installed package: fixed, unless its section has it in ``free``.
_TABLE = {
    Change.FIXED: """
        run name seed
        tokenizer ids
        stream sequence_length packing on_overlong mask_documents window_shards mixture_block
        model family vocab_size max_positions layers width heads kv_heads head_width ffn_width
        model positions rope_theta norm norm_eps activation bias qk_norm tied_embeddings init_std
        model cell qkv_bias sliding_windows attention_softcap logit_softcap
        model local_rope_theta token_types pooler text_classes token_classes
        model output_norms attention_width scaled_embeddings
        model.mup base_width base_head_width
        model.lora rank alpha rank_stabilized dropout targets
        model.rope_scaling kind factor original_positions beta_fast beta_slow high_turns low_turns
        model decoder_layers relative_buckets relative_distance norm_first scaled_logits
        objective name rate suffix_first replace keep unit shuffle sentinels mean_span
        objective permute_sentences previous names of_pairs
        objective.augment delete swap
        objective.denoisers.NAME rate mean_span mode weight
        objective.parts.NAME weight
        engine keep_zeros
        engine.optimizer kind
        train freeze""",
    Change.TRAINING: """
        stream.sources.NAME weight
        batch global_windows warmup
        model dropout segments
        objective z_loss label_smoothing teacher_share temperature longest_answer
        objective class_weights
        engine precision deepspeed ema_decay
        engine.optimizer lr momentum muon_lr_ratio betas eps weight_decay decay clip_norm
        engine.schedule kind warmup_steps decay_steps final_ratio
        engine.loss_scale initial_power window hysteresis minimum
        guard max_nonfinite_steps spike_window spike_threshold spike_steps on_divergence
        guard jump_steps max_rewinds
        train steps
        evaluation weights
        evaluation.stop metric patience min_delta mode""",
    Change.FREE: """
        run folder init_from init_optimizer allow_faults
        corpus folder normalization line_ends strip_html min_chars max_chars on_overlong
        corpus drop_exact_duplicates heldout_fraction part_bytes retries
        corpus.sources.NAME inputs format text_field encoding separator max_record_chars
        corpus.sources.NAME max_bad_records target_field messages_field label_field tags_field
        corpus.sources.NAME label_names answer_field answer_start_field word_separator strip_html
        corpus.sources.NAME heldout_fraction instruction_field input_field output_field
        tokenizer folder kind vocab_size character_coverage max_sample_bytes split_digits
        tokenizer special_tokens reserved_tokens chat_template
        shards folder max_bytes block_tokens bos processes
        stream.sources.NAME shards
        stream workers prefetch_steps verify_hashes
        stream.cache folder max_bytes retries
        batch micro_windows
        model attention activation_checkpoint_every activation_checkpoint_saves
        objective chunk_tokens teacher
        engine zero_stage offload_optimizer offload_parameters compile activation_memory_budget
        checkpoint folder every_steps asynchronous when_busy retries keep_last keep_every_steps
        checkpoint probe_windows
        checkpoint.keep_best metric count mode
        checkpoint.local folder every_minutes
        guard compare_every_steps recompute_every_steps
        train log_every_steps peak_tflops
        watch heartbeat_seconds report_seconds limit_seconds start_limit_seconds straggler_ratio
        watch straggler_steps
        evaluation sets every_steps max_windows at_end only_at_end tasks tasks_every_steps
        evaluation tasks_limit tasks_include_path
        export format every_steps folder keep base dtype finish_minutes""",
}
CHANGES = {
    f"{section}.{name}": change
    for change, text in _TABLE.items()
    for section, *names in map(str.split, text.strip().splitlines())
    for name in names
}
CHANGES |= {  # a part of a mixture has the keys of any objective
    key.replace("objective.", "objective.parts.NAME.objective.", 1): change
    for key, change in CHANGES.items()
    if key.startswith("objective.") and not key.startswith("objective.parts.")
}
# What the order of the samples rests on, as on run.seed: with another value, samples already seen
# would come again or never.
STREAM_KEYS = tuple(
    key.removeprefix("stream.")
    for key, change in CHANGES.items()
    if change is Change.FIXED and key.startswith("stream.")
)
# What a launcher, or a start that did not come far, may have put there.
_HARMLESS = {"logs", STOP_FILE, SAVE_FILE, SLURM_FOLDER, "lease.json", "heartbeats", WATCH_FILE}
_HARMLESS |= {COMMITS_FILE, FAULTS_FILE, RESUMES_FILE}


def check_folder(folder: Path, config: RunConfig) -> None:
    """Raise ``ConfigError`` when ``folder`` is another run's, foreign, or cannot be one.

    Names that begin with a dot do not count: a run that was killed inside its very first write
    leaves a temporary file of that kind.
    """
    try:
        problem = _find_problem(folder, config)
    except OSError as error:
        problem = f"{folder} cannot be the run's folder: {error}. Set run.folder."
    if problem:
        raise ConfigError(problem)


def _find_problem(folder: Path, config: RunConfig) -> str | None:
    frozen = folder / CONFIG_FILE
    if problem := refuse_training(folder):
        return problem
    if frozen.is_file():
        try:
            owner = load_config(frozen).run.name
        except LmscaleError:
            return None  # written by another version, or damaged: it is written anew
        if owner != config.run.name:
            return (
                f"{folder} is the folder of the run {owner!r}, not of {config.run.name!r}. Set "
                f"run.folder to another place, or run.name to {owner!r} to go on with that run."
            )
    elif folder.is_dir():
        names = sorted(path.name for path in folder.iterdir())
        foreign = [name for name in names if name not in _HARMLESS and not name.startswith(".")]
        if {"checkpoints", "ledger.jsonl"} & set(foreign):
            return _describe_lost_config(folder)
        if foreign:
            return (
                f"{folder} is not empty and holds no run (found {', '.join(foreign[:3])}). "
                "Set run.folder to an empty or new place."
            )
    else:
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        if not nearest.is_dir():
            return f"{nearest} is a file; run.folder must name a folder."
    return None


def _describe_lost_config(folder: Path) -> str:
    """Of a folder that a run has been in. Every submission to Slurm has frozen a copy."""
    frozen = folder / CONFIG_FILE
    copies = sorted(folder.glob(f"{SLURM_FOLDER}/*/{CONFIG_FILE}"))
    copies = [copy for copy in copies if "-train" in copy.parent.name] or copies
    advice = "Copy it back from where there is one"
    if copies:
        command = f"cp {shlex.quote(str(copies[-1]))} {shlex.quote(str(frozen))}"
        advice = f"Copy back what was submitted last (`{command}`)"
    return (
        f"{folder} holds what a run has made, but its {CONFIG_FILE} is missing, so it is not known "
        f"whose it is. {advice}, or set run.folder to an empty or new place."
    )


def model_identity(config: RunConfig) -> dict[str, Any]:
    """The model's settings that must stay the same over a run's restarts."""
    model = _identity_of_kind(config.model)
    model["vocab_size"], model["max_positions"] = config.vocab_size, config.max_positions
    return model


def objective_identity(config: RunConfig) -> dict[str, Any]:
    """The objective's settings that must stay the same: a step's targets are recounted by them."""
    settings = _identity_of_kind(config.objective)
    # Which numbers they have follows from the section tokenizer, which is none of the model's.
    return settings | ({"added_ids": config.objective_ids} if config.objective_ids else {})


def _identity_of_kind(section: KindSection) -> dict[str, Any]:
    fields = type(section).model_fields
    unused = {
        name for name in section.later_keys() if getattr(section, name) == fields[name].default
    }
    return section.model_dump(mode="json", exclude={*section.free, *unused})


def identity_of(config: RunConfig, tokenizer_fingerprint: str) -> dict[str, Any]:
    """What must stay the same over a run's restarts, as checkpoints carry it."""
    return {
        "run": config.run.name,
        "tokenizer": tokenizer_fingerprint,
        "model": model_identity(config),
        "objective": objective_identity(config),
    }


class Setting(NamedTuple):
    """A key of a run's configuration, as in the YAML, and what may become of it."""

    key: str
    value: Any
    change: Change


def list_settings(config: RunConfig) -> Iterator[Setting]:
    """Every setting of a configuration."""
    # By its betas schedule-free AdamW's points make the average.
    fixed = {"engine.optimizer.betas"} if config.engine.optimizer.kind == "schedule_free" else ()
    for setting in _list_section(config, "", ""):
        yield setting._replace(change=Change.FIXED) if setting.key in fixed else setting


def _list_section(section: BaseModel, prefix: str, pattern: str) -> Iterator[Setting]:
    resolved = {}
    if isinstance(section, RunConfig):  # where left out, they follow from other sections
        sizes = {"vocab_size": section.vocab_size, "max_positions": section.max_positions}
        resolved["model"] = section.model.model_copy(update=sizes)
    for name in type(section).model_fields:
        value = resolved.get(name, getattr(section, name))
        key, known_as = f"{prefix}{name}", f"{pattern}{name}"
        if isinstance(value, BaseModel):
            yield from _list_section(value, f"{key}.", f"{known_as}.")
        elif isinstance(value, dict) and known_as not in CHANGES:
            if known_as.startswith("objective."):  # which a window is of goes by their places
                yield Setting(key, [*value], Change.FIXED)
            for each, inner in value.items():
                yield from _list_section(inner, f"{key}.{each}.", f"{known_as}.NAME.")
        else:
            free = section.free if isinstance(section, KindSection) else frozenset()
            other = Change.TRAINING if name in free else Change.FIXED
            value = list(value) if isinstance(value, tuple) else value
            yield Setting(key, value, CHANGES.get(known_as, other))


def _values(config: RunConfig, change: Change) -> dict[str, Any]:
    return {
        setting.key: setting.value for setting in list_settings(config) if setting.change is change
    }


def describe_changes(before: RunConfig, now: RunConfig) -> list[str]:
    """What may change and changes the training, with both values."""
    old, new = _values(before, Change.TRAINING), _values(now, Change.TRAINING)

    def show(values: dict[str, Any], key: str) -> str:
        return repr(values[key]) if key in values else "not there"

    return [
        f"{key}: {show(old, key)} → {show(new, key)}"
        for key in dict.fromkeys([*old, *new])
        if show(old, key) != show(new, key)
    ]


def find_continuation_problems(config: RunConfig) -> list[str]:
    """Why the run in ``config.folder`` cannot go on with ``config``, by its own config.yaml.

    Empty where there is no checkpoint: such a run begins anew. Only reads.
    """
    newest = max((commit.step for commit in read_commits(config.folder)), default=None)
    if newest is None:
        return []
    problems = []
    if config.train.steps < newest:
        problems.append(
            f"train.steps = {config.train.steps:,}, but the newest checkpoint of {config.folder} "
            f"has {newest:,} steps already. Raise train.steps, or start a new run."
        )
    frozen = config.folder / CONFIG_FILE
    try:
        before = load_config(frozen)
    except LmscaleError:
        return problems  # written by another version, or damaged: the checkpoint itself decides
    return problems + [
        f"{key} = {here!r}, but the run began with {there!r} ({frozen}), and its checkpoints fit "
        "nothing else. Set it back, or give the new run a folder of its own (run.folder). If the "
        "run never had that, its file is damaged: correct the line there."
        for key, (there, here) in find_fixed_changes(before, config).items()
    ]


def find_fixed_changes(before: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """What may not change and has changed: key → the values before and now."""
    old, new = _values(before, Change.FIXED), _values(now, Change.FIXED)
    for kind in ("model.family", "objective.name"):
        if old[kind] != new[kind]:  # whose other keys are others'
            section = kind.partition(".")[0]
            new = {k: v for k, v in new.items() if k == kind or not k.startswith(f"{section}.")}
    if old["engine.optimizer.kind"] != new["engine.optimizer.kind"]:
        new.pop("engine.optimizer.betas", None)  # fixed for one kind alone
    return {key: (old.get(key), new[key]) for key in new if old.get(key) != new[key]}
