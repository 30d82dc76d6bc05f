"""What a run cannot change once it has begun: one list, for the launcher and for the run itself."""

from __future__ import annotations

from typing import Any

from lmscale.config.load import load_config
from lmscale.config.run import RunConfig
from lmscale.errors import LmscaleError
from lmscale.runs.commits import read_commits
from lmscale.runs.ownership import CONFIG_FILE
from lmscale.runs.run_folder import load_run_config

STREAM_KEYS = ("sequence_length", "packing", "mask_documents", "window_shards", "mixture_block")
"""What the order of the samples rests on, as on run.seed: with another value, samples already seen
would come again or never."""


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
