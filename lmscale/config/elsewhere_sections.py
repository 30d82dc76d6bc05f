"""What a key is called here that another trainer has in a section of its own.

The sections are those of torchtitan, OLMo-core, llm-foundry, nanotron and GPT-NeoX. A key means
what it means there: a ``hidden_size`` of OLMo-core's ``feed_forward`` is no width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lmscale.config.elsewhere import (
    BATCH,
    MODEL_PARALLEL,
    RAW,
    RECOMPUTE,
    RESUME,
    SAVE,
    TOKENIZER,
    begin_answer,
    describe_elsewhere,
)

MAX_DEPTH = 4  # of sections in each other

# Their section → ours, in which a key of the same name means the same.
SECTIONS: Mapping[str, str] = {
    **dict.fromkeys(("training", "trainer", "tokens"), "train"),
    **dict.fromkeys(("optimizer", "optim", "optimizer_factory", "params"), "engine.optimizer"),
    **dict.fromkeys(
        ("lr_scheduler", "scheduler", "learning_rate_scheduler"),
        "engine.schedule",
    ),
    **dict.fromkeys(("job", "general"), "run"),
    **dict.fromkeys(("data_loader", "train_loader"), "stream"),
    **dict.fromkeys(("validation", "evaluator"), "evaluation"),
    **dict.fromkeys(("checkpoints", "checkpointer"), "checkpoint"),
    "model_config": "model",
}

_ALWAYS = "Checkpoints are always written, every checkpoint.every_steps; leave it out"
_PROFILE = "Here this is lmscale launch local CONFIG --profile A:B, for the steps A to B - 1"
_RANKS = (
    "The number of ranks is no setting of a run: lmscale launch local --nproc N, or launch slurm "
    "--nodes N; engine.zero_stage says what they share"
)

IN_SECTION: Mapping[str, str] = {
    # The section's name and the key's; an answer is as in ELSEWHERE.
    "model.name": "model.family",
    "model.flavor": "A size is a configuration of its own here: lmscale config list names those "
    "that lmscale brings",
    "tokenizer.name": TOKENIZER,
    "feed_forward.hidden_size": "model.ffn_width",
    "attention.name": "model.attention",
    "init_method.std": "model.init_std",
    **dict.fromkeys(("optim.name", "optimizer.name", "optimizer.type"), "engine.optimizer.kind"),
    "optimizer_factory.name": "engine.optimizer.kind",
    **dict.fromkeys(("scheduler.name", "lr_scheduler.name"), "engine.schedule.kind"),
    "lr_scheduler.decay_ratio": "Here this is engine.schedule.decay_steps: the ratio × train.steps",
    "learning_rate_scheduler.lr_warmup_steps": "engine.schedule.warmup_steps",
    "learning_rate_scheduler.min_decay_lr": "Here this is engine.schedule.final_ratio: "
    "min_decay_lr / lr",
    "checkpoint.interval": "checkpoint.every_steps",
    **dict.fromkeys(("checkpoint.enable", "checkpoint.enable_checkpoint"), _ALWAYS),
    "checkpoints.checkpoints_path": SAVE,
    "checkpoints.resume_checkpoint_path": RESUME,
    **dict.fromkeys(
        ("evaluation.interval", "evaluation.freq", "validation.freq", "validation.interval")
        + ("evaluator.eval_interval", "tokens.val_check_interval"),
        "evaluation.every_steps",
    ),
    "validation.enable": "Here this is evaluation.sets: without a set there is no evaluation",
    "validation.steps": "Here this is evaluation.max_windows, in windows of every set",
    "validation.dataset": "Here these are evaluation.sets: NAME: FOLDER",
    "compile.enable": "engine.compile",
    "activation_checkpoint.mode": RECOMPUTE,
    **dict.fromkeys(
        ("profiling.enable_profiling", "profiling.profile_freq", "profiling.enable"), _PROFILE
    ),
    **dict.fromkeys(
        ("parallelism.dp", "parallelism.data_parallel_replicate_degree"),
        _RANKS,
    ),
    **dict.fromkeys(
        ("parallelism.tp", "parallelism.pp", "parallelism.expert_parallel_size"), MODEL_PARALLEL
    ),
    "general.run": "run.name",
    "tokens.train_steps": "train.steps",
    "tokens.batch_accumulation_per_replica": BATCH,
    **dict.fromkeys(("dataset.local", "dataset.remote", "data_stages.data"), RAW),
}


class Answer(NamedTuple):
    """What to do about a key, ``path`` from the section in which the unknown one stands."""

    path: tuple[str, ...]
    sentence: str


def describe_in_section(section: str, key: str) -> str | None:
    """Where a key of another trainer's section is here; None where its name alone says it."""
    found = IN_SECTION.get(f"{section}.{key}".lower())
    return None if found is None else f"{begin_answer(found)}."


def describe_section(
    path: tuple[str, ...],
    section: Mapping[str, Any],
    tree: Mapping[str, Any],
    own: Mapping[str, Sequence[str]],
) -> Iterator[Answer]:
    """Every key in a section that is not of ours, at ``path``, and in the sections in it.

    ``own``: a key of ours → its paths. The keys of which nothing is known come last, in one answer.
    """
    unknown: list[str] = []
    for key, value in section.items():
        key = str(key)
        sentence = _answer(path[-1], key, value, section, tree, own)
        if sentence is not None:
            yield Answer((*path, key), sentence)
        elif isinstance(value, Mapping) and value and len(path) < MAX_DEPTH:
            yield from describe_section((*path, key), value, tree, own)
        else:
            unknown.append(key)
    if unknown:
        yield Answer(
            path,
            f"Nothing here is called {', '.join(unknown)}; docs/configuration.md lists what there "
            "is.",
        )


def _answer(
    section: str,
    key: str,
    value: Any,
    beside: Mapping[str, Any],
    tree: Mapping[str, Any],
    own: Mapping[str, Sequence[str]],
) -> str | None:
    if said := describe_in_section(section, key):
        return said
    if isinstance(value, Mapping) and key.lower() in SECTIONS:
        return None  # its keys are answered
    ours = SECTIONS.get(section.lower())
    if ours and f"{ours}.{key}" in own.get(key, ()):
        return f"Here this is {ours}.{key}."
    if said := describe_elsewhere(key, value, beside, tree):
        return said
    places = own.get(key, ())
    return f"Here this is {places[0]}." if len(places) == 1 and places[0] != key else None
