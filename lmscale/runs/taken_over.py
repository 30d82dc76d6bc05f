"""What a run that begins with another one's weights (``run.init_from``) may have otherwise.

``RULES`` is the one statement of it. Only looks, before a rank starts, at what the other run's
folder, or a checkpoint's manifest, says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from lmscale.config.model import FAMILIES
from lmscale.config.model_base import ModelConfig
from lmscale.config.objective_base import ObjectiveConfig
from lmscale.config.run import RunConfig
from lmscale.files.jsonl import read_object
from lmscale.files.locations import CheckpointPlace
from lmscale.files.tokenizer_files import KEPT_FOLDER, read_fingerprint
from lmscale.runs.continuation import objective_identity
from lmscale.runs.given_weights import read_import
from lmscale.runs.own_ids import find_other_tokenizer
from lmscale.runs.run_folder import load_run_config


class Taking(Enum):
    """Whether a run that begins with another one's weights may have another value of a setting."""

    SAME = "the same"
    SAME_STATES = "may differ; the same with `run.init_optimizer`"
    FREE = "may differ"


class Rule(NamedTuple):
    """What some keys of a section may be, and why, or how."""

    section: str
    names: str
    taking: Taking
    how: str

    @property
    def keys(self) -> list[str]:
        return [f"{self.section}.{name}" for name in self.names.split()]


# Keys of ``model`` that are not here are of an installed package: the same, unless its section has
# them in ``free``. All other keys may differ.
RULES = (
    Rule(
        "model",
        "family vocab_size layers decoder_layers width heads kv_heads head_width ffn_width cell "
        "bias qkv_bias qk_norm output_norms norm_first positions tied_embeddings token_types "
        "relative_buckets",
        Taking.SAME,
        "the weights have no other shapes",
    ),
    Rule(
        "model",
        "norm norm_eps activation attention_width attention_softcap logit_softcap "
        "scaled_embeddings scaled_logits relative_distance",
        Taking.SAME,
        "the weights would compute something else",
    ),
    Rule("model.mup", "base_width base_head_width", Taking.SAME, "they scale what weights compute"),
    Rule(
        "model",
        "max_positions",
        Taking.FREE,
        "a longer context; the same with `positions: learned`, which has weights of each position",
    ),
    Rule("model", "rope_theta local_rope_theta", Taking.FREE, "a longer context"),
    Rule(
        "model.rope_scaling",
        "kind factor original_positions beta_fast beta_slow high_turns low_turns",
        Taking.FREE,
        "a longer context; `original_positions` are those of the run before",
    ),
    Rule("model", "sliding_windows", Taking.FREE, "what layers see; they have to learn it"),
    Rule(
        "model.lora",
        "rank alpha rank_stabilized targets",
        Taking.SAME_STATES,
        "the same adapters go on; others begin anew, and those of before are merged",
    ),
    Rule(
        "model",
        "pooler text_classes token_classes",
        Taking.SAME_STATES,
        "layers for a task begin anew where that run has none of their shape, and those that tell "
        "classes apart also where it learned another objective or other names",
    ),
    Rule("model", "init_std", Taking.FREE, "of what begins anew"),
    Rule(
        "model",
        "dropout segments attention activation_checkpoint_every activation_checkpoint_saves",
        Taking.FREE,
        "as on a resume",
    ),
    Rule("model.lora", "dropout", Taking.FREE, "as on a resume"),
    Rule("tokenizer", "folder", Taking.FREE, "another place of the same tokenizer"),
    Rule("tokenizer", "ids", Taking.FREE, "those that the run before had have to be there"),
    Rule("engine.optimizer", "kind", Taking.SAME_STATES, "whose states they are"),
    Rule(
        "engine.optimizer",
        "betas",
        Taking.SAME_STATES,
        "the first one, of `kind: schedule_free` alone, whose points it has made",
    ),
    Rule("engine", "keep_zeros", Taking.SAME_STATES, "which zeros stay is kept beside the states"),
    Rule("train", "freeze", Taking.SAME_STATES, "what is trained has states"),
)
TAKEN: Mapping[str, Taking] = {key: rule.taking for rule in RULES for key in rule.keys}


class Source(NamedTuple):
    """What is known of the run that another one begins with."""

    model: ModelConfig  # with all sizes
    tokenizer: str  # its fingerprint; "": not known
    optimizer: str  # its kind
    beta: float | None  # the first one
    freeze: list[str] | None  # None: not known
    keeps_zeros: bool | None  # None: not known
    imported: bool
    objective: Mapping[str, Any] | None  # as its checkpoints have it; None: not known


def read_source(folder: Path) -> Source:
    config = load_run_config(folder)
    return Source(
        model=_with_sizes(config),
        tokenizer=read_fingerprint(folder / KEPT_FOLDER),
        optimizer=config.engine.optimizer.kind,
        beta=config.engine.optimizer.betas[0],
        freeze=[*config.train.freeze],
        keeps_zeros=config.engine.keep_zeros,
        imported=read_import(folder) is not None,
        objective=objective_identity(config),
    )


def read_alone(place: CheckpointPlace) -> Source | str:
    """By the checkpoint's own manifest, whose hash is looked at when it is read; or why not."""
    folder = place.own_folder
    tree = read_object(folder / "manifest.json")
    identity, optimizer = tree.get("identity"), tree.get("optimizer")
    model = identity.get("model") if isinstance(identity, dict) else None
    if not (isinstance(identity, dict) and isinstance(model, dict) and isinstance(optimizer, dict)):
        return (
            f"{folder} is no checkpoint: it has no manifest.json, or a damaged one. Name a run's "
            "folder, as RUN or RUN@STEP, or a checkpoint's, as RUN/checkpoints/step-000000500."
        )
    averaging, objective = optimizer.get("averaging"), identity.get("objective")
    try:
        section = FAMILIES.section(model.get("family")).model_validate(model)
    except (ValidationError, ValueError):
        return f"the model of {folder} is none that this lmscale, with its packages, can read."
    return Source(
        model=section,
        tokenizer=str(identity.get("tokenizer", "")),
        optimizer=str(optimizer.get("kind")),
        beta=averaging.get("beta") if isinstance(averaging, dict) else None,
        freeze=None,
        keeps_zeros=None,
        imported=optimizer.get("kind") == "none",
        objective=objective if isinstance(objective, dict) else None,
    )


def learns_the_same(objective: ObjectiveConfig, learned: object) -> bool:
    """Whether a layer that tells classes apart goes on: whether another run's objective, as its
    checkpoints have it, has the same name and the same names of classes. None: it is not known, and
    the layer's shape alone decides.
    """
    if not isinstance(learned, Mapping):
        return True
    names = [*getattr(objective, "names", ())]
    return learned.get("name") == objective.name and (learned.get("names") or []) == names


def _with_sizes(config: RunConfig) -> ModelConfig:
    sizes = {"vocab_size": config.vocab_size, "max_positions": config.max_positions}
    return config.model.model_copy(update=sizes)


def find_differences(config: RunConfig, source: Source) -> Iterator[str]:
    """Everything that may not differ and does."""
    own = read_fingerprint(Path(config.tokenizer.folder))
    if own and source.tokenizer and own != source.tokenizer:
        told = find_other_tokenizer(config, own)
        yield (
            told.partition(": ")[2]
            if told
            else (
                f"its tokenizer is another one than that of tokenizer.folder "
                f"({source.tokenizer[:12]} and {own[:12]}). Name the tokenizer of that run."
            )
        )
    with_states, model = config.run.init_optimizer, _with_sizes(config)
    yield from _find_model_differences(model, source, with_states=with_states)
    if with_states:
        yield from _find_state_differences(config, source)


def _find_model_differences(
    model: ModelConfig, source: Source, *, with_states: bool
) -> Iterator[str]:
    if model.family != source.model.family:  # whose other keys are others'
        yield (
            f"it is of model.family = {source.model.family!r}, and this run of {model.family!r}. "
            "Take over its model section."
        )
        return
    here, there = (dict(_flatten(each)) for each in (model, source.model))
    learned = getattr(model, "positions", "") == "learned"
    for key, value in here.items():
        other = Taking.FREE if key.rpartition(".")[2] in model.free else Taking.SAME
        taking = TAKEN.get(key, other)
        if key == "model.max_positions" and learned:
            taking = Taking.SAME
        is_fixed = taking is Taking.SAME or (with_states and taking is Taking.SAME_STATES)
        if is_fixed and key in there and there[key] != value:
            yield _advise(key, value, there[key], taking, source)


def _advise(key: str, here: Any, there: Any, taking: Taking, source: Source) -> str:
    said = f"there {key} is {json.dumps(there)}, and here {json.dumps(here)}. Write {key}: "
    said += json.dumps(there)
    if taking is Taking.SAME_STATES:
        return f"{said}, or leave run.init_optimizer out."
    if key == "model.vocab_size" and source.imported:
        return f"{said}, or import it once more with --vocab-size {here}, which makes new rows."
    return f"{said}."


def _find_state_differences(config: RunConfig, source: Source) -> Iterator[str]:
    """Why the optimizer's states cannot come along."""
    kind, weights_alone = config.engine.optimizer.kind, "leave run.init_optimizer out"
    if source.imported or source.optimizer == "none":
        yield f"it is an import, of weights alone: {weights_alone}."
    elif source.optimizer != kind:
        yield (
            f"it has the states of engine.optimizer.kind = {source.optimizer!r}, and this run's is "
            f"{kind!r}. Write engine.optimizer.kind: {source.optimizer}, or {weights_alone}."
        )
    elif kind == "schedule_free" and source.beta not in (None, config.engine.optimizer.betas[0]):
        yield (
            f"there engine.optimizer.betas begin with {source.beta}, which made its points, "
            f"and here with {config.engine.optimizer.betas[0]}. Write the same, or {weights_alone}."
        )
    freeze = [*config.train.freeze]
    if source.freeze is not None and {*freeze} != {*source.freeze}:
        yield (
            f"it trained with train.freeze = {json.dumps(source.freeze)}, and this run's is "
            f"{json.dumps(freeze)}. Write train.freeze: {json.dumps(source.freeze)}, or "
            f"{weights_alone}."
        )
    if source.keeps_zeros not in (None, config.engine.keep_zeros):
        here, there = (json.dumps(each) for each in (config.engine.keep_zeros, source.keeps_zeros))
        yield (
            f"there engine.keep_zeros is {there}, and here {here}. Write engine.keep_zeros: "
            f"{there}, or {weights_alone}."
        )


def _flatten(section: BaseModel, prefix: str = "model.") -> Iterator[tuple[str, Any]]:
    """The keys of a model's section with their values, those left out as they are meant."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _flatten(value, f"{prefix}{name}.")
            continue
        if value is None:
            other = "head_width" if name == "attention_width" else name
            value = getattr(section, f"resolved_{other}", None)
        yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
