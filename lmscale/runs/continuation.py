"""May a run begin, or go on, in its folder with its configuration? Only looks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

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
from lmscale.runs.run_folder import load_run_config

# What the order of the samples rests on, as on run.seed: with another value, samples already seen
# would come again or never.
STREAM_KEYS = ("sequence_length", "packing", "mask_documents", "window_shards", "mixture_block")
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
    model = config.model.model_dump(mode="json", exclude=set(config.model.free))
    model["vocab_size"], model["max_positions"] = config.vocab_size, config.max_positions
    return model


def objective_identity(config: RunConfig) -> dict[str, Any]:
    """The objective's settings that must stay the same: a step's targets are recounted by them."""
    return config.objective.model_dump(mode="json", exclude=set(config.objective.free))


def fixed_settings(config: RunConfig) -> dict[str, Any]:
    """Dotted key → value of everything that must stay the same."""
    fixed = {f"model.{key}": value for key, value in model_identity(config).items()}
    fixed |= {f"objective.{key}": value for key, value in objective_identity(config).items()}
    fixed |= {f"stream.{key}": getattr(config.stream, key) for key in STREAM_KEYS}
    return fixed | {"run.seed": config.run.seed, "train.freeze": list(config.train.freeze)}


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
        before = fixed_settings(load_config(frozen))
    except LmscaleError:
        return problems  # written by another version, or damaged: the checkpoint itself decides
    now = fixed_settings(config)
    if before["model.family"] != now["model.family"]:  # whose other keys are others'
        now = {"model.family": now["model.family"]}
    return problems + [
        f"{key} = {now[key]!r}, but the run began with {before.get(key)!r} ({frozen}), and its "
        "checkpoints fit nothing else. Set it back, or give the new run a folder of its own "
        "(run.folder)."
        for key in now
        if before.get(key) != now[key]
    ]


def find_source_problems(config: RunConfig) -> list[str]:
    """Why ``run.init_from`` names nothing that a new run can begin with, as far as folders tell.

    Empty where the run goes on from checkpoints of its own. Only reads.
    """
    if not config.run.init_from or read_commits(config.folder):
        return []
    folder, step = config.run.initial_run
    named = f"run.init_from = {config.run.init_from}"
    try:
        load_run_config(folder)
    except LmscaleError as error:
        return [f"{named}: {problem}" for problem in error.problems]
    steps = sorted({commit.step for commit in read_commits(folder)})
    if steps and (step is None or step in steps):
        return []
    known = ", ".join(map(str, steps)) or "none"
    what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
    return [f"{named}: that run has {what}. There are: {known}."]
