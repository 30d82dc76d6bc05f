"""What each task asks of the data and of the base, and what it is judged by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lmscale.config.finetune import FinetuneConfig
from lmscale.config.model import FAMILIES
from lmscale.config.model_base import ModelConfig
from lmscale.config.objective import OBJECTIVES
from lmscale.config.supervised import LabelledConfig
from lmscale.finetune.trees import look_up


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of ``FinetuneConfig.task``; its objective has the same name."""

    needs: Sequence[str] = ()
    """Keys of ``data`` without which there is nothing to learn; ``a | b``: one of both."""
    refuses: Sequence[str] = ()
    """Keys that are another task's."""
    judged_by: Sequence[str] = ("loss",)
    """Held-out figures, the best one first: of those that the objective has."""


TASKS = {
    "classes": Task(
        needs=("label_field",), refuses=("tags_field",), judged_by=("accuracy", "loss")
    ),
    "numbers": Task(needs=("label_field",), refuses=("tags_field", "label_names")),
    "tags": Task(
        needs=("tags_field",),
        refuses=("label_field", "target_field"),
        judged_by=("f1_entities", "accuracy", "loss"),
    ),
    "pairs": Task(needs=("target_field",), refuses=("label_field", "tags_field")),
    "completion": Task(needs=("target_field",), refuses=("label_field", "tags_field")),
    "answers": Task(
        needs=("target_field", "answer_field"),
        refuses=("label_field", "tags_field"),
        judged_by=("f1", "exact_match", "loss"),
    ),
    "dialogue": Task(
        needs=("messages_field | instruction_field",), refuses=("label_field", "tags_field")
    ),
}


def find_task_problems(config: FinetuneConfig) -> Iterator[str]:
    """Why the data's keys are not those of the task."""
    name, task = config.task, TASKS[config.task]
    section = look_up(config.settings, "objective")
    asked = section if isinstance(section, dict) else {}
    if name not in OBJECTIVES.names():
        yield f"task: {name}: no objective of this name is installed."
        return
    for key in task.needs:
        either = key.split(" | ")
        if not any(getattr(config.data, each) for each in either):
            keys = " or ".join(f"data.{each}" for each in either)
            yield f"task: {name} needs {keys}: the key or column of the files that holds it."
    if "names" in asked:
        yield (
            "settings: objective.names are the names of the data: give data.label_names, in the "
            "same order."
        )
    for key in task.refuses:
        if getattr(config.data, key):
            yield f"task: {name} has no use for data.{key}: leave it out, or name another task."


def find_base_problems(config: FinetuneConfig, model: ModelConfig) -> Iterator[str]:
    """Why the base cannot do the task, and what it can do."""
    objective = OBJECTIVES.section(config.task)
    if objective.needs <= model.offers:
        return
    able = [n for n in TASKS if n in OBJECTIVES.names() and _offers(model, n)]
    families = [n for n, each in FAMILIES.own.items() if objective.needs <= each.offers]
    yield (
        f"task: {config.task} is of models of the family {' or '.join(families)}, and the base "
        f"{config.base} is of {model.family}, which can do {', '.join(able) or 'none of them'}. "
        "Name another base or task."
    )


def _offers(model: ModelConfig, task: str) -> bool:
    return OBJECTIVES.section(task).needs <= model.offers


def is_labelled(task: str) -> bool:
    """Whether the task brings layers of its own, for what is said of texts."""
    return issubclass(OBJECTIVES.section(task), LabelledConfig)
