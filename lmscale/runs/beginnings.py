"""May a run begin with its configuration: with random weights, another run's, or a teacher?

Only looks, before a rank starts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lmscale.config.kinds import Ability
from lmscale.config.objective import DistillConfig
from lmscale.config.objective_base import NextTokenConfig
from lmscale.config.run import RunConfig
from lmscale.errors import ConfigError, LmscaleError
from lmscale.files.locations import CheckpointPlace, is_remote, split_checkpoint
from lmscale.files.run_files import CHECKPOINTS, CONFIG_FILE
from lmscale.files.tokenizer_files import KEPT_FOLDER, read_fingerprint
from lmscale.runs.commits import read_commits
from lmscale.runs.continuation import check_folder, find_continuation_problems
from lmscale.runs.run_folder import find_runs, load_run_config
from lmscale.runs.students import NAME_IT, read_teacher_steps
from lmscale.runs.taken_over import find_differences, read_alone, read_source

MAX_NAMED = 8


def check_start(
    config: RunConfig,
    find_going_on: Callable[[RunConfig], list[str]] = find_continuation_problems,
) -> None:
    """Raise ``ConfigError`` where the run of ``config`` can neither begin nor go on.

    ``find_going_on``: why it cannot go on, where a person has written other keys than its own.
    """
    check_folder(config.folder, config)
    problems = [
        *find_going_on(config),
        *find_source_problems(config),
        *find_teacher_problems(config),
    ]
    if not (config.folder / CONFIG_FILE).exists():
        problems += [f"{problem}." for problem in config.find_beginning_problems()]
    if problems:
        raise ConfigError(problems)


def find_source_problems(config: RunConfig) -> list[str]:
    """Why ``run.init_from`` names nothing that this run can begin with, as far as folders tell.

    Empty where the run goes on from checkpoints of its own. Only reads.
    """
    if not config.run.init_from or read_commits(config.folder):
        return []
    named, place = f"run.init_from = {config.run.init_from}", config.initial
    if problem := _find_wrong_name(config, place):
        return [f"{named}: {problem}"]
    if place.is_alone:
        source = read_alone(place)
        if isinstance(source, str):
            return [f"{named}: {source}"]
    else:
        if problems := find_missing_checkpoint(named, place.folder, place.step):
            return problems
        source = read_source(place.folder)
    return [f"{named}: {problem}" for problem in find_differences(config, source)]


def _find_wrong_name(config: RunConfig, place: CheckpointPlace) -> str | None:
    """Why the text of ``run.init_from`` names no checkpoint, and what to write."""
    named, folder = config.run.init_from, place.folder
    if is_remote(named):
        return (
            "that is a URL. Name the folder of the run, whose checkpoint.folder may be one, or "
            "copy the checkpoint's folder here and name that."
        )
    if folder.absolute() == config.folder.absolute():
        return "that is this run's own folder. Set run.folder, and run.name, to others."
    run = folder.absolute().parent
    if folder.name == CHECKPOINTS and (run / CONFIG_FILE).is_file():
        steps = [commit.step for commit in read_commits(run)]
        step = f", or {folder.parent}@{steps[-1]}" if steps else ""
        return f"that holds the checkpoints of a run. Write run.init_from: {folder.parent}{step}."
    if place.is_alone or folder.is_dir():
        return None
    beside = config.folder.parent
    what, at, step = named.rpartition("@")
    is_run = what and (Path(what).expanduser().is_dir() or (beside / what).is_dir())
    if at and not step.isdecimal() and is_run:
        return f"behind @ stands the number of a step. Write run.init_from: {what}@500, say."
    runs = [run.name for run in find_runs(beside)] if beside.is_dir() else []
    others = [name for name in runs if name != config.folder.name][:MAX_NAMED]
    there = (
        f"{beside} has {', '.join(others)}" if others else f"there are no other runs in {beside}"
    )
    return (
        f"{folder} is not a run's folder, nor a checkpoint's. Write the folder or the name of a "
        f"run ({there}), with @STEP for a step of it."
    )


def find_teacher_problems(config: RunConfig) -> list[str]:
    """Why a distillation cannot ask its teacher, as far as folders tell. Only reads."""
    if not isinstance(config.objective, DistillConfig):
        return []
    named = f"objective.teacher = {config.objective.teacher}"
    folder, step = split_checkpoint(config.objective.teacher)
    if read_commits(config.folder):  # it goes on with the teacher it began with
        begun = read_teacher_steps(folder, config.folder)
        step = begun[-1] if step is None and begun else step
        if begun and step not in begun:
            return [f"{named}: this run began with that run's step {begun[-1]}. {NAME_IT}"]
    if problems := find_missing_checkpoint(named, folder, step):
        return problems
    teacher, length = load_run_config(folder), config.stream.sequence_length
    needs = (
        (
            teacher.vocab_size == config.vocab_size,
            f"its model has {teacher.vocab_size:,} ids and this run's {config.vocab_size:,}, so "
            f"they cannot be compared. Set model.vocab_size: {teacher.vocab_size}, with the same "
            "tokenizer",
        ),
        (
            Ability.CAUSAL in teacher.model.offers
            and isinstance(teacher.objective, NextTokenConfig),
            f"it was trained for objective.name = {teacher.objective.name!r}, and predicts no next "
            "token. Name a run that does",
        ),
        (
            teacher.max_positions >= length,
            f"it knows {teacher.max_positions:,} positions, fewer than stream.sequence_length = "
            f"{length:,}. Lower that, or name another run",
        ),
    )
    problems = [f"{named}: {problem}." for is_met, problem in needs if not is_met]
    own, others = (
        read_fingerprint(place) for place in (Path(config.tokenizer.folder), folder / KEPT_FOLDER)
    )
    if own and others and own != others:
        problems.append(
            f"{named}: its tokenizer is another one than that of tokenizer.folder ({others[:12]} "
            f"and {own[:12]}), so its ids are other tokens. Name that run's tokenizer."
        )
    return problems


def find_missing_checkpoint(named: str, folder: Path, step: int | None) -> list[str]:
    """Why a run's folder has no checkpoint of a step, or none at all."""
    try:
        load_run_config(folder)
    except LmscaleError as error:
        return [f"{named}: {problem}" for problem in error.problems]
    steps = sorted({commit.step for commit in read_commits(folder)})
    if steps and (step is None or step in steps):
        return []
    existing = ", ".join(map(str, steps)) or "none"
    what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
    return [f"{named}: that run has {what}. There are: {existing}."]
