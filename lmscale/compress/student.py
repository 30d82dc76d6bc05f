"""A smaller run that learns from a larger one: its configuration, and where it begins.

The student is a run of ``objective: distill`` (Hinton et al. 2015). Where it differs from its
teacher by fewer blocks alone, it begins with some of the teacher's, spread evenly, as DistilBERT
does (Sanh et al. 2019, arXiv 1910.01108: every second one); else with random weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lmscale.compress.made_run import (
    MadeRun,
    change_config,
    merged_changes,
    open_merged,
    plain_shapes,
    plan_config,
    plan_place,
    render_next,
    write_made_run,
)
from lmscale.config import RunConfig
from lmscale.errors import ConfigError
from lmscale.evaluation.found import FoundRun
from lmscale.files.atomic import write_bytes
from lmscale.model.family import account_model, build_model_on
from lmscale.runs.beginnings import find_teacher_problems

_BLOCK = re.compile(r"(blocks\.)(\d+)(\..*)")
_KEPT_OF_OBJECTIVE = ("z_loss", "label_smoothing", "chunk_tokens")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of the model is another one than the teacher's; None: as there."""

    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    ffn_width: int | None = None

    @property
    def given(self) -> dict[str, int]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Student:
    """What is written."""

    teacher: FoundRun
    config: RunConfig
    picked: tuple[int, ...]  # blocks of the teacher, in order; empty: random weights
    first: MadeRun | None  # of these blocks

    @property
    def num_parameters(self) -> tuple[int, int]:
        """The teacher's and the student's."""
        return count_parameters(self.teacher.config), count_parameters(self.config)


def plan_student(
    teacher: FoundRun,
    name: str,
    shape: Shape,
    *,
    share: float,
    temperature: float,
    data: RunConfig | None = None,
    overrides: Sequence[str] = (),
    is_random: bool = False,
) -> Student:
    """``data``: the run whose data and settings it takes, by default the teacher's own.
    ``overrides``: as of ``--set``. ``is_random``: it begins with random weights in any case.

    Raises ``ConfigError`` with all that does not fit, such as another vocabulary.
    """
    out = plan_place(name, teacher.folder)
    before = data or teacher.config
    if not before.stream.sources:
        raise ConfigError(
            f"{teacher.folder} says of no data to learn from (stream.sources). Name a run's YAML, "
            "of data with the same tokenizer: --data"
        )
    model = plan_model(teacher.config, shape)
    step = teacher.manifest.step
    settings = teacher.config.objective.model_dump(mode="json")
    objective = {key: settings[key] for key in _KEPT_OF_OBJECTIVE if key in settings}
    changes: dict[str, Any] = {
        "run.name": out.name,
        "run.folder": str(out),
        "run.init_from": "",
        "run.init_optimizer": False,
        "checkpoint.folder": "",
        "engine.keep_zeros": False,
        "train.freeze": [],
        **merged_changes(before),
        "model": model,
        "objective": objective
        | {"name": "distill", "teacher": f"{teacher.folder.absolute()}@{step}"}
        | {"teacher_share": share, "temperature": temperature},
    }
    picked = () if is_random else pick_blocks(teacher.config, model)
    first_place = plan_place(f"{out}-first", teacher.folder) if picked else None
    if first_place is not None:
        changes["run.init_from"] = str(first_place)
    config = change_config(before, changes, name=f"the student {out.name}", overrides=overrides)
    if problems := find_teacher_problems(config):
        raise ConfigError(problems)
    before_count, count = count_parameters(teacher.config), count_parameters(config)
    if count >= before_count:
        raise ConfigError(
            f"The student would have {count:,} parameters and its teacher has {before_count:,}: "
            "nothing is smaller. Give fewer --layers, or a smaller --width."
        )
    first = _plan_first(teacher, first_place, model, picked) if first_place else None
    return Student(teacher=teacher, config=config, picked=picked, first=first)


def count_parameters(config: RunConfig) -> int:
    """Of the model, its adapters merged."""
    return account_model(config.model.without_adapters, config.sizes).total


def plan_model(config: RunConfig, shape: Shape) -> dict[str, Any]:
    """The section ``model`` of the student. Heads stay as wide as they are, and the feed-forward
    part grows and shrinks as the width does, where they are not given.
    """
    model = config.model.without_adapters.model_dump(mode="json")
    sizes = {"vocab_size": config.vocab_size, "max_positions": config.max_positions}
    given = shape.given
    if unknown := [name for name in given if name not in model]:
        raise ConfigError(
            f"--{unknown[0].replace('_', '-')}: model.family = {config.model.family} has no "
            f"{unknown[0]}. Leave it out."
        )
    if not given:
        raise ConfigError("Nothing is smaller: give --layers, --width, or both.")
    width = given.get("width", model["width"])
    head_width = getattr(config.model, "resolved_head_width", None)
    if head_width and width != model["width"] and "heads" not in given and not width % head_width:
        given["heads"] = width // head_width
        kv_heads = getattr(config.model, "resolved_kv_heads", None)
        if "kv_heads" not in given and kv_heads:
            given["kv_heads"] = max(n for n in range(1, kv_heads + 1) if given["heads"] % n == 0)
    if model.get("ffn_width") and "ffn_width" not in given:
        given["ffn_width"] = max(1, model["ffn_width"] * width // model["width"])
    return model | sizes | given


def pick_blocks(config: RunConfig, model: Mapping[str, Any]) -> tuple[int, ...]:
    """The teacher's blocks that a student of section ``model`` begins with; none where it differs
    by more than their number, or the blocks do not look equally far.
    """
    own = config.model.model_dump(mode="json")
    free = ("layers", "lora", "vocab_size", "max_positions")
    is_shallow = all(model[key] == value for key, value in own.items() if key not in free)
    windows = {*(own.get("sliding_windows") or [0])}
    if config.model.family != "decoder" or not is_shallow or len(windows) > 1:
        return ()
    before, after = own["layers"], model["layers"]
    return tuple(number * before // after for number in range(after)) if after < before else ()


def _plan_first(
    teacher: FoundRun, place: Path, model: Mapping[str, Any], picked: tuple[int, ...]
) -> MadeRun:
    config = plan_config(teacher, place, {"model": dict(model)})
    meta = build_model_on(
        config.model, config.sizes, device=torch.device("meta"), dtype=torch.float32
    )
    plain_shapes(teacher)  # raises for what cannot be taken
    blocks = ", ".join(map(str, picked))
    layers = teacher.config.model.model_dump()["layers"]
    return MadeRun(
        found=teacher,
        config=config,
        shapes={name: tuple(each.shape) for name, each in meta.named_parameters()},
        how=f"blocks {blocks} of {layers}",
    )


def write_student(
    plan: Student, path: Path, advance: Callable[[float], None] = lambda size: None
) -> None:
    """Write the YAML to ``path``, and before it the folder that the student begins with."""
    if plan.first is not None:

        def theirs(name: str) -> str:
            block = _BLOCK.fullmatch(name)
            return f"{block[1]}{plan.picked[int(block[2])]}{block[3]}" if block else name

        with open_merged(plan.teacher) as read:
            write_made_run(plan.first, lambda name: read(theirs(name)), beside={}, advance=advance)
    begins = f"blocks {', '.join(map(str, plan.picked))} of it" if plan.picked else "random weights"
    said = (
        f"A student of {plan.teacher.name}, which begins with {begins}.\n"
        "Written by lmscale distill; yours to change. Then: lmscale train, or lmscale launch."
    )
    write_bytes(path, render_next(plan.config, said).encode())
