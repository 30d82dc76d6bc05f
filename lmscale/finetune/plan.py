"""A base, what its data holds, and a short YAML → the whole configuration of a run. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmscale.config.finetune import FinetuneConfig
from lmscale.config.model_base import ModelConfig
from lmscale.config.objective import OBJECTIVES
from lmscale.config.objective_base import ObjectiveConfig
from lmscale.config.supervised import BALANCED, LabelledConfig
from lmscale.errors import ConfigError, LmscaleError
from lmscale.files.strangers import quote
from lmscale.finetune.base import Base
from lmscale.finetune.checks import find_data_problems, find_length_problems, leaves_out
from lmscale.finetune.recipe import Sizes, longest_window, plan_rate, plan_sizes
from lmscale.finetune.survey import Survey
from lmscale.finetune.tasks import TASKS, find_base_problems, is_labelled
from lmscale.finetune.trainable import find_frozen
from lmscale.finetune.trees import Tree, look_up, merge, spread
from lmscale.runs.taken_over import learns_the_same
from lmscale.stream.class_balance import balance

LEAST_PATIENCE = 4  # evaluations: two epochs
MAX_WEIGHTS = 20  # of classes, that are shown
DROPOUT = 0.1  # of BERT, GPT-1, T5 and BART, all of them when they were fine-tuned


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run's configuration as a tree, with what was chosen."""

    tree: Mapping[str, Any]
    sizes: Sizes
    limit: int | None = None
    """The most tokens of a document that a window can have; None: there is no such bound."""
    metric: str
    """By which it is stopped, and the best checkpoint kept."""
    reasons: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Section of the tree → why it is as it is."""


def plan_run(
    config: FinetuneConfig,
    base: Base,
    survey: Survey,
    *,
    has_gpu: bool,
    precision: str = "auto",
) -> Plan:
    """``precision``: of the run. Raises ``ConfigError`` with everything by which base, data and
    task do not fit together.
    """
    unfit = list(find_base_problems(config, base.model))
    problems = [*unfit, *find_data_problems(config, survey)]
    if unfit or not all(part.documents for part in survey.parts.values()):
        raise ConfigError(problems)
    objective = plan_objective(config, survey)
    model = plan_model(config, base, objective)
    limit = _find_limit(config, base, objective)
    problems += find_length_problems(config, base.model, survey, limit=limit)
    problems += _find_pair_problems(config, base.model, objective)
    frozen: tuple[str, ...] = ()
    try:
        frozen = find_frozen(base.model, config.trainable, has_task_layers=is_labelled(config.task))
    except LmscaleError as error:
        problems += error.problems
    measured = _list_figures(config, objective)
    problems += _find_metric_problems(config, measured)
    if problems:
        raise ConfigError(problems)
    sizes = plan_sizes(
        config,
        objective,
        *_find_lengths(config, survey, limit),
        limit=limit,
        has_gpu=has_gpu,
    )
    figure = config.early_stopping.metric or measured[0]
    rate, why = plan_rate(config, base.model)
    tree = {
        "run": _plan_run(config, base),
        **_plan_data(config, base, survey, sizes),
        "batch": {"global_windows": sizes.global_windows, "micro_windows": sizes.micro_windows},
        "model": model | _plan_length(base.model, sizes),
        "objective": objective.model_dump(mode="json", exclude_defaults=True)
        | {"name": config.task},
        "engine": _plan_engine(config, rate, sizes, precision),
        **_plan_loop(config, sizes, frozen, f"evaluation/heldout/{figure}", survey),
    }
    if not base.model.max_positions:
        tree["model"].pop("max_positions", None)
    reasons = _explain(config, sizes, why, figure) | {
        "run": [_explain_base(base)],
        "model": [_explain_model(base, objective)],
        "objective": _explain_weights(objective, survey),
    }
    return Plan(
        tree=merge(tree, spread(config.settings)),
        sizes=sizes,
        limit=limit,
        metric=f"evaluation/heldout/{figure}",
        reasons=reasons,
    )


def plan_objective(config: FinetuneConfig, survey: Survey) -> ObjectiveConfig:
    """That of the task, with the names of the classes that were found."""
    section = OBJECTIVES.section(config.task)
    asked = look_up(config.settings, "objective")
    tree: Tree = {"name": config.task, **(asked if isinstance(asked, dict) else {})}
    if survey.names:
        tree["names"] = survey.names
    if "of_pairs" in section.model_fields and config.data.target_field:
        tree["of_pairs"] = True
    return section.model_validate(tree)


def plan_model(config: FinetuneConfig, base: Base, objective: ObjectiveConfig) -> Tree:
    """The base's own section, with the layers of the task in place of those of another one."""
    model = base.model
    known = type(model).model_fields.keys()
    tree = {"family": model.family, **model.model_dump(mode="json", exclude_defaults=True)}
    for key in {"text_classes", "token_classes", "pooler"} & tree.keys():
        del tree[key]
    if isinstance(objective, LabelledConfig):
        tree[objective.outputs] = objective.num_outputs
        if objective.outputs == "text_classes" and "pooler" in known:
            tree["pooler"] = True
        tree["dropout"] = DROPOUT
    elif model.family == "encoder_decoder":
        tree["dropout"] = DROPOUT
    tree.pop("lora", None)  # those of the base are merged, or go on where they are the same
    if config.trainable.kind == "lora":
        lora = config.trainable.lora
        tree["lora"] = lora.model_dump(mode="json", exclude_defaults=True)
    return tree


def _find_limit(config: FinetuneConfig, base: Base, objective: ObjectiveConfig) -> int | None:
    """Of the base, and of the windows that were asked for where longer documents are left out."""
    limits = [longest_window(base.model, objective.window(1))]
    length = look_up(config.settings, "stream.sequence_length")
    if isinstance(length, int) and leaves_out(config):
        limits.append(objective.window(length).tokens)
    return min((each for each in limits if each is not None), default=None)


def _find_lengths(
    config: FinetuneConfig, survey: Survey, limit: int | None
) -> tuple[np.ndarray, int]:
    """The tokens of the training documents, and the most of any, of those that are not left out."""
    lengths = {name: survey.lengths(name) for name in survey.parts}
    if limit is not None and leaves_out(config):
        lengths = {name: each[each <= limit] for name, each in lengths.items()}
    return lengths["train"], max(int(each.max(initial=0)) for each in lengths.values())


def _find_pair_problems(
    config: FinetuneConfig, model: ModelConfig, objective: ObjectiveConfig
) -> list[str]:
    if getattr(objective, "of_pairs", False) and getattr(model, "token_types", 0) < 2:
        return [
            f"task: {config.task} with data.target_field tells two texts apart by their types of "
            f"tokens, of which the base {config.base} has {getattr(model, 'token_types', 0)}. Name "
            "a base with model.token_types: 2, or join the texts in the files."
        ]
    return []


def _find_metric_problems(config: FinetuneConfig, measured: Sequence[str]) -> list[str]:
    if config.early_stopping.metric in ("", *measured):
        return []
    return [
        f"early_stopping.metric: {quote(config.early_stopping.metric)} is none of the held-out "
        f"figures of {config.task}: {', '.join(measured)}."
    ]


def _list_figures(config: FinetuneConfig, objective: ObjectiveConfig) -> list[str]:
    """Those of held-out sets, what the task is judged by first."""
    measured = (*objective.set_figures, *objective.held_out)
    best = [each for each in TASKS[config.task].judged_by if each in measured]
    return [*dict.fromkeys([*best, *measured])]


def _explain_base(base: Base) -> str:
    step = "which has no checkpoint yet" if base.step is None else f"by its step {base.step:,}"
    return f"begins with {base.init_from}, {step}"


def _plan_run(config: FinetuneConfig, base: Base) -> Tree:
    folder = {"folder": config.folder} if config.folder else {}
    return {
        "name": config.name, **folder, "seed": config.seed, "init_from": base.init_from
    }  # fmt: skip


def _plan_data(config: FinetuneConfig, base: Base, survey: Survey, sizes: Sizes) -> Tree:
    folder = config.data_folder
    return {
        "corpus": {
            "folder": f"{folder}/corpus",
            "drop_exact_duplicates": False,
            "sources": {
                name: source.model_dump(mode="json", exclude_defaults=True)
                for name, source in config.data.sources(survey.names).items()
            },
        },
        "tokenizer": base.tokenizer.model_dump(mode="json", exclude_defaults=True)
        | {"folder": base.tokenizer.folder, "vocab_size": base.tokenizer.vocab_size},
        "shards": {"folder": f"{folder}/shards", "bos": base.has_bos},
        "stream": {
            "sequence_length": sizes.sequence_length,
            "packing": "best_fit",
            "sources": {"train": {"shards": f"{folder}/shards/train/train"}},
        },
    }


def _plan_length(model: ModelConfig, sizes: Sizes) -> Tree:
    """Positions, of which rope can have more than the base has learned with."""
    return {"max_positions": max(model.max_positions or 0, sizes.sequence_length)}


def _plan_engine(config: FinetuneConfig, rate: float, sizes: Sizes, precision: str) -> Tree:
    decay = 0.0 if config.trainable.kind == "lora" else 0.01
    return {
        "precision": precision,
        "optimizer": {"lr": rate, "betas": [0.9, 0.999], "weight_decay": decay},
        "schedule": {
            "kind": "linear",
            "warmup_steps": sizes.steps // 10,
            "final_ratio": 0.0,
        },
    }


def plan_patience(config: FinetuneConfig, sizes: Sizes) -> int:
    """Evaluations. A figure of few documents stands still for a while before it moves: by default a
    quarter of all of them.
    """
    asked = config.early_stopping.patience
    return asked or max(LEAST_PATIENCE, sizes.steps // sizes.every_steps // 4)


def _plan_loop(
    config: FinetuneConfig, sizes: Sizes, frozen: Sequence[str], metric: str, survey: Survey
) -> Tree:
    stop, shards = config.early_stopping, f"{config.data_folder}/shards"
    heldout = "heldout/train" if config.data.heldout else "train/heldout"
    sets = {"heldout": f"{shards}/{heldout}"}
    if "test" in survey.parts:
        sets["test"] = f"{shards}/test/train"
    stopping: Tree = {"metric": metric, "patience": plan_patience(config, sizes)}
    if stop.min_delta:
        stopping["min_delta"] = stop.min_delta
    return {
        "checkpoint": {
            "every_steps": sizes.every_steps,
            "keep_last": 2,
            "keep_best": {"metric": metric},
        },
        "train": {
            "steps": sizes.steps,
            "log_every_steps": max(1, sizes.every_steps // 5),
            **({"freeze": list(frozen)} if frozen else {}),
        },
        "evaluation": {
            "every_steps": sizes.every_steps,
            "sets": sets,
            **({"only_at_end": ["test"]} if "test" in sets else {}),
            **({"stop": stopping} if stop.is_on else {}),
        },
    }


def _explain_model(base: Base, objective: ObjectiveConfig) -> str:
    """Whether the layers of the task go on or begin anew, as the run itself will have it."""
    if not isinstance(objective, LabelledConfig):
        return "the base's own section"
    if getattr(base.model, objective.outputs, 0) != objective.num_outputs:
        return "the base's own section, with layers for the task that begin anew"
    if learns_the_same(objective, base.learned):
        return "the base's own section, whose layers for the task go on: it has learned the same"
    return "the base's own section; its layers for a task are another one's, and begin anew"


def _explain_weights(objective: ObjectiveConfig, survey: Survey) -> list[str]:
    """What ``balanced`` comes to, by the files; the run counts its shards, which hold the same."""
    if getattr(objective, "class_weights", None) != BALANCED:
        return []
    counts = survey.counts("train")
    weights = balance(np.array([*counts.values()]))
    named = [f"{n} {w:.4g}" for n, w in zip(counts, weights, strict=True)]
    more = ", …" if len(named) > MAX_WEIGHTS else ""
    return [f"{', '.join(named[:MAX_WEIGHTS])}{more}: balanced, by the training files"]


def _explain(config: FinetuneConfig, sizes: Sizes, why: str, figure: str) -> dict[str, list[str]]:
    epochs = "as asked for" if config.epochs else "3, of small data up to 20, for enough steps"
    each = f"{sizes.documents_per_step:.3g} documents a step in {sizes.windows:,} windows an epoch"
    kinds = {
        "all": "all parameters are trained",
        "head": "the task's own layers alone are trained",
        "top": f"the last {config.trainable.layers} layers and the task's own are trained",
        "lora": "adapters and the task's own layers are trained, the rest stays as it is",
    }
    ends = (
        f"ends after {plan_patience(config, sizes)} evaluations in a row (one every "
        f"{sizes.every_steps} steps) whose {figure} is no better"
        if config.early_stopping.is_on
        else "all epochs are trained"
    )
    return {
        "stream": ["whole documents, in windows that hold the longest"],
        "batch": [each],
        "engine": [
            f"learning rate: {why}",
            "linear after a warm-up of a tenth of the steps (Devlin et al. 2019)",
        ],
        "checkpoint": [f"the checkpoint with the best held-out {figure} is kept"],
        "train": [f"{sizes.epochs:g} epochs ({epochs})", kinds[config.trainable.kind]],
        "evaluation": [ends],
    }
