"""A sweep: one run for every combination of some settings, below one folder. Pure but for YAML."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from launcher.job import SweepPlan
from lmscale.config import RunConfig, load_config
from lmscale.config.places import with_absolute_places
from lmscale.errors import ConfigError
from lmscale.files.run_files import SLURM_FOLDER, SWEEP_FILE

MAX_RUNS = 1000  # Slurm's own default for the size of an array is 1001


def parse_axis(text: str) -> tuple[str, tuple[str, ...]]:
    """``engine.optimizer.lr=1e-3,3e-4`` → the key and its values, as --set takes them.

    A comma inside of [brackets], {braces} or quotes separates nothing.
    """
    key, separator, values = text.partition("=")
    advice = f"--array {text}: write it as section.key=value1,value2."
    if not separator or not key.strip():
        raise ConfigError(advice)
    if key.strip() in ("run.name", "run.folder"):
        raise ConfigError(f"--array {text}: a sweep names its runs and their folders itself.")
    try:
        node = yaml.compose(f"[{values}]", Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise ConfigError(advice)
    parts = tuple(f"[{values}]"[item.start_mark.index : item.end_mark.index] for item in node.value)
    if len(set(parts)) < len(parts) or not all(parts):
        raise ConfigError(f"--array {text}: every value once, and none empty.")
    return key.strip(), parts


def plan_sweep(
    config_path: Path,
    overrides: Sequence[str],
    axes: Sequence[tuple[str, tuple[str, ...]]],
    *,
    name: str | None = None,
) -> SweepPlan:
    """The runs NAME-000, NAME-001, …: the last axis turns fastest.

    Each run has a folder of its own, also below ``checkpoint.folder`` where that is set.

    Raises ``ConfigError`` with the problems of all runs.
    """
    base = with_absolute_places(load_config(config_path, overrides))
    name = name or f"{base.run.name}-sweep"
    root = base.folder.parent / name
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys):
        raise ConfigError("--array: name every key once, with all of its values.")
    choices = list(itertools.product(*(values for _, values in axes)))
    if len(choices) > MAX_RUNS:
        raise ConfigError(f"--array: {len(choices)} runs are more than {MAX_RUNS}.")
    members, problems = [], []
    for index, choice in enumerate(choices):
        values = [f"{key}={value}" for key, value in zip(keys, choice, strict=True)]
        run = f"{name}-{index:03d}"
        own = [f"run.name={json.dumps(run)}", f"run.folder={json.dumps(str(root / run))}"]
        try:
            config = load_config(config_path, [*overrides, *values, *own])
            if config.checkpoint.folder and "checkpoint.folder" not in keys:
                place = f"{config.checkpoint.folder.rstrip('/')}/{run}"
                own.append(f"checkpoint.folder={json.dumps(place)}")
                config = load_config(config_path, [*overrides, *values, *own])
        except ConfigError as error:
            problems += [f"{' '.join(values)}: {problem}" for problem in error.problems]
            continue
        members.append((tuple(values), with_absolute_places(config)))
    if problems:
        raise ConfigError(problems)
    return SweepPlan(name=name, root=root, keys=tuple(keys), members=tuple(members))


def render_sweep(plan: SweepPlan, base: RunConfig, job: str) -> str:
    """The text of ``sweep.json``."""
    runs = [
        {
            "index": index,
            "run": config.run.name,
            "folder": str(config.folder),
            "values": dict(_split(value) for value in values),
        }
        for index, (values, config) in enumerate(plan.members)
    ]
    content = {
        "name": plan.name,
        "keys": list(plan.keys),
        "base_config": base.model_dump(mode="json"),
        "runs": runs,
        "job": job,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def find_conflict(plan: SweepPlan) -> str | None:
    """Why the sweep's folder cannot take these runs, or None. A sweep may be submitted again."""
    if not plan.root.exists():
        return None
    try:
        old = json.loads((plan.root / SWEEP_FILE).read_bytes())
        before = [(run["run"], run["values"]) for run in old["runs"]]
    except FileNotFoundError:
        foreign = [path for path in plan.root.glob("*") if path.name != SLURM_FOLDER]
        if not foreign:
            return None
        return f"{plan.root} is not empty and holds no sweep. Name another one with --sweep."
    except (OSError, ValueError, KeyError, TypeError):
        return f"{plan.root / SWEEP_FILE} cannot be read. Name another sweep with --sweep."
    now = [
        (config.run.name, dict(_split(value) for value in values))
        for values, config in plan.members
    ]
    if before != now:
        return (
            f"{plan.root} holds a sweep over other values ({', '.join(old.get('keys', []))}, "
            f"{len(before)} runs). Name another one with --sweep."
        )
    return None


def _split(value: str) -> tuple[str, str]:
    key, _, text = value.partition("=")
    return key, text
